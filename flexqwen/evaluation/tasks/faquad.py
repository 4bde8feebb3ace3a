"""FaQuAD: where in a paragraph is the answer to a question? Sayama et al., BRACIS 2019. Exact match and F1.

The authors' files (github.com/liafacom/faquad): 837 questions to train, of which six subjects (104 questions) choose
the learning rate, and the 63 of `dev.json` to test. Three things about the files:

- The test paragraphs and questions are in lower case, those of train are not. All are put in lower case here.
- Many test paragraphs stand in train too, so every figure is also given for the questions whose paragraph shares no 13
  words in a row with a paragraph of train.
- Some answers do not stand where their offset says. In training, the nearest place where one does stand is taken.

Metrics are those of SQuAD's script (Rajpurkar et al., 2016): the best over the answers of a question, after lower case,
no punctuation, no articles and single spaces; F1 is that of the bags of words. For Portuguese, punctuation is any
Unicode punctuation, and the articles are o, a, os, as, um, uma, uns, umas; contractions with a preposition (do, na, à)
stay. An empty prediction counts as wrong.

The baseline answers with the sentence of the paragraph that has the most words of the question.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flexqwen.cli import InputError
from flexqwen.evaluation.finetuning import (
    Row,
    Settings,
    fine_tune,
    load_tokenizer,
    question_answering,
    sample,
    separated,
    unseen,
)
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import number_clusters, over_seeds
from flexqwen.evaluation.tasks import Task
from flexqwen.evaluation.tasks.data_files import data_file

VERSION = 2
NUM_TRAIN_EPOCHS = 8
FILES = {"train": "train.json", "test": "dev.json"}
DEV_SUBJECTS = ("UFMS", "POSCOMP", "PROFESSOR", "MEC", "TCC", "MONOGRAFIA")
ARTICLES = re.compile(r"\b(?:os?|as?|uns|umas?|um)\b")
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
SEEN_WORDS = 13
MAX_ANSWER_TOKENS = 160
"""Only spans up to this length are considered. The longest answer has 98 words; 95 % have at most 37."""


@dataclass(frozen=True)
class Question:
    """A question on a paragraph, all in lower case.

    Attributes:
        answers: what annotators gave, in their order.
        span: characters `[start, end)` of the first answer that stands in the context, or None.
        subject: the document that the paragraph is from.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    span: tuple[int, int] | None
    subject: str


def locate(context: str, answer: str, start: int) -> tuple[int, int] | None:
    """Characters `[start, end)` of the occurrence of the answer that is nearest to `start`."""
    found = [match.start() for match in re.finditer(f"(?={re.escape(answer)})", context)]
    if not answer or not found:
        return None
    nearest = min(found, key=lambda place: abs(place - start))
    return nearest, nearest + len(answer)


def read(folder: Path) -> dict[str, list[Question]]:
    """The questions of `train`, `dev` and `test`.

    Raises:
        InputError: a file is missing, or is not of SQuAD's form.
    """
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for split, name in FILES.items():
        path = data_file(folder, name)
        try:
            subjects = json.loads(path.read_text(encoding="utf-8"))["data"]
            for subject in subjects:
                for paragraph in subject["paragraphs"]:
                    context = paragraph["context"].lower()
                    for asked in paragraph["qas"]:
                        answers = [(answer["text"].lower(), answer["answer_start"]) for answer in asked["answers"]]
                        spans = [span for text, start in answers if (span := locate(context, text, start))]
                        question = Question(
                            asked["id"],
                            asked["question"].lower(),
                            context,
                            tuple(text for text, _ in answers),
                            spans[0] if spans else None,
                            subject["title"],
                        )
                        splits["dev" if split == "train" and subject["title"] in DEV_SUBJECTS else split].append(
                            question
                        )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not in SQuAD's form ({error!r}); fetch the file again") from error
    return splits


def normalized(text: str) -> str:
    """The text as answers are compared: see the module's docstring."""
    kept = "".join(character for character in text.lower() if unicodedata.category(character)[0] != "P")
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(answer: str, predicted: str) -> float:
    said = normalized(predicted)
    return float(said != "" and said == normalized(answer))


def f1(answer: str, predicted: str) -> float:
    true, said = normalized(answer).split(), normalized(predicted).split()
    common = sum((Counter(true) & Counter(said)).values())
    return 2 * common / (len(true) + len(said)) if common else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "f1": f1}


def score(metric: str, questions: list[Question], predicted: list[str]) -> np.ndarray:
    """The metric of each question, float64 `(questions,)`: the best over its answers."""
    pairs = zip(questions, predicted, strict=True)
    return np.array([max(METRICS[metric](answer, said) for answer in question.answers) for question, said in pairs])


def encode(tokenizer, questions: list[Question]) -> tuple[list[Row], list[tuple[int, list[tuple[int, int] | None]]]]:
    """Windows of question and context, without labels; they overlap by a third of their length.

    Returns:
        rows: one or more a question.
        windows: of each row, its question's number and, for each token of the context, its characters `[start, end)`
            without white space at the ends; None for any other token.

    Raises:
        InputError: a question that takes more than a third of the window.
    """
    third = tokenizer.model_max_length // 3
    rows, windows = [], []
    for number, question in enumerate(questions):
        asked = separated(tokenizer, [question.question])[0]
        if len(tokenizer(asked, verbose=False)["input_ids"]) > third:
            raise InputError(
                f"question {question.id} takes more than a third of an input of {tokenizer.model_max_length} tokens; "
                "raise max_length, or use a model that takes longer inputs"
            )
        encoded = tokenizer(
            asked,
            question.context,
            truncation="only_second",
            stride=third,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for window, offsets in enumerate(encoded["offset_mapping"]):
            places: list[tuple[int, int] | None] = []
            for side, (start, end) in zip(encoded.sequence_ids(window), offsets, strict=True):
                inside = question.context[start:end] if side == 1 else ""
                start += len(inside) - len(inside.lstrip())  # byte-level tokens hold the space before a word
                places.append((start, start + len(inside.strip())) if inside.strip() else None)
            kept = ("input_ids", "attention_mask", "token_type_ids")
            rows.append({key: encoded[key][window] for key in kept if key in encoded})
            windows.append((number, places))
    return rows, windows


def positions(places: list[tuple[int, int] | None], span: tuple[int, int]) -> tuple[int, int] | None:
    """First and last token of the characters `[start, end)`, or None where the window does not hold all of them."""
    inside = [n for n, place in enumerate(places) if place and place[0] < span[1] and place[1] > span[0]]
    if not inside or places[inside[0]][0] > span[0] or places[inside[-1]][1] < span[1]:
        return None
    return inside[0], inside[-1]


def unreachable(questions: list[Question], windows) -> int:
    """How many questions have an answer that no window holds whole, or that is longer than what is considered."""
    reached = set()
    for number, places in windows:
        span = questions[number].span
        found = positions(places, span) if span else None
        if found and found[1] - found[0] < MAX_ANSWER_TOKENS:
            reached.add(number)
    return len(questions) - len(reached)


def answers(outputs: list[np.ndarray], windows, questions: list[Question]) -> list[str]:
    """The likeliest span of each question over all its windows: the sum of its start and end logits is highest."""
    best: dict[int, tuple[float, str]] = {}
    for logits, (number, places) in zip(outputs, windows, strict=True):
        tokens = np.array([n for n, place in enumerate(places) if place], dtype=np.int64)
        if not len(tokens):
            continue
        sums = logits[tokens, 0][:, None] + logits[tokens, 1][None, :]
        possible = np.triu(np.ones_like(sums, dtype=bool)) & ~np.triu(np.ones_like(sums, dtype=bool), MAX_ANSWER_TOKENS)
        sums = np.where(possible, sums, -np.inf)
        start, end = np.unravel_index(sums.argmax(), sums.shape)
        if number not in best or sums[start, end] > best[number][0]:
            text = questions[number].context[places[tokens[start]][0] : places[tokens[end]][1]]
            best[number] = float(sums[start, end]), text
    return [best[number][1] if number in best else "" for number in range(len(questions))]


def nearest_sentences(questions: list[Question]) -> list[str]:
    """The baseline's answers."""
    found = []
    for question in questions:
        asked = set(normalized(question.question).split())
        sentences = SENTENCE_END.split(question.context)
        found.append(max(sentences, key=lambda sentence: len(asked & set(normalized(sentence).split()))))
    return found


def grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[place : place + SEEN_WORDS]) for place in range(len(words) - SEEN_WORDS + 1)}


def run(model_folder: str, folder: Path, settings: Settings) -> list[Result]:
    """Exact match and F1, of all questions and of those on paragraphs that train does not hold; F1 decides on dev."""
    splits = read(folder)
    seen = set().union(*(grams(context) for context in {q.context for q in splits["train"] + splits["dev"]}))
    train, dev, test = (sample(splits[split], settings.limit) for split in ("train", "dev", "test"))
    test, overlap = unseen(test, [f"{question.context} {question.question}" for question in test], settings)
    tokenizer = load_tokenizer(model_folder, settings)
    train = [question for question in train if question.span]
    (train_rows, train_windows), (dev_rows, dev_windows), (test_rows, test_windows) = (
        encode(tokenizer, questions) for questions in (train, dev, test)
    )
    for row, (number, places) in zip(train_rows, train_windows, strict=True):
        # A window without the answer points at its first token, as BERT's SQuAD script has it.
        row["start_positions"], row["end_positions"] = positions(places, train[number].span) or (0, 0)
    tuned = fine_tune(
        "faquad",
        model_folder,
        question_answering(),
        tokenizer,
        train_rows,
        dev_rows,
        test_rows,
        lambda outputs: score("f1", dev, answers(outputs, dev_windows, dev)).mean(),
        "f1",
        settings,
        NUM_TRAIN_EPOCHS,
    )
    predicted = [answers(outputs, test_windows, test) for outputs in tuned.outputs]
    details = {
        **tuned.details,
        **overlap,
        "empty_predictions": [sum(not normalized(text) for text in texts) for texts in predicted],
        "unreachable_answers": {"train": unreachable(train, train_windows), "test": unreachable(test, test_windows)},
    }
    new = [number for number, question in enumerate(test) if not grams(question.context) & seen]
    results = []
    for subset, part in (("all", np.arange(len(test))), ("paragraphs not in train", np.array(new, dtype=np.int64))):
        if not len(part):
            continue
        paragraphs = [test[number].context for number in part]  # an interval draws them whole
        for metric in METRICS:
            scores = np.array([score(metric, test, texts)[part] for texts in predicted])
            values, interval = over_seeds(
                lambda seed, drawn, scores=scores: scores[seed, drawn].mean(), len(scores), len(part), paragraphs
            )
            results.append(
                Result(
                    "faquad",
                    VERSION,
                    "finetuned",
                    metric,
                    float(np.mean(values)),
                    interval,
                    len(part),
                    float(score(metric, test, nearest_sentences(test))[part].mean()),
                    "sentence with the most words of the question",
                    subset,
                    {**details, "per_seed": values},
                    scores.mean(0).tolist(),
                    [test[number].id for number in part],
                    clusters=number_clusters(paragraphs).tolist(),
                )
            )
    return results


TASK = Task("faquad", VERSION, fine_tune=run)
