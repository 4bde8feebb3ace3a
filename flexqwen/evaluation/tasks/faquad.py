"""FaQuAD: where in a paragraph is the answer to a question? Exact match and F1. See docs/tasks.md."""

import json
import re
from dataclasses import dataclass

import numpy as np
from transformers import AutoModelForQuestionAnswering

from flexqwen.cli import InputError
from flexqwen.data.passages import Passages, hash_passages
from flexqwen.evaluation import finetuning, sources
from flexqwen.evaluation.metrics.squad_pt.squad_pt import METRICS, normalize_answer, score_answers
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import number_clusters
from flexqwen.evaluation.tasks import Context, Task

NUM_TRAIN_EPOCHS = 8
FILES = {"train": "train.json", "test": "dev.json"}
DEV_SUBJECTS = ("UFMS", "POSCOMP", "PROFESSOR", "MEC", "TCC", "MONOGRAFIA")
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+")
MAX_ANSWER_TOKENS = 160
"""Only spans up to this length are considered. The longest answer has 98 words; 95 % have at most 37."""

Places = list[tuple[int, int] | None]
"""For each token of a window, its characters `[start, end)` in the context, without white space at the ends; None for
a token that is not of the context."""


@dataclass(frozen=True)
class Question:
    """A question on a paragraph, all in lower case."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]  # of the annotators
    span: tuple[int, int] | None  # characters `[start, end)` of the first answer that stands in the context


def locate(context: str, answer: str, start: int) -> tuple[int, int] | None:
    """Characters `[start, end)` of the occurrence of the answer that is nearest to `start`."""
    found = [match.start() for match in re.finditer(f"(?={re.escape(answer)})", context)] if answer else []
    nearest = min(found, key=lambda place: abs(place - start), default=None)
    return None if nearest is None else (nearest, nearest + len(answer))


def read() -> dict[str, list[Question]]:
    """The questions of `train`, `dev` and `test`."""
    splits = {"train": [], "dev": [], "test": []}
    for split, name in FILES.items():
        for subject in json.loads(sources.read(f"faquad/{name}"))["data"]:
            part = "dev" if split == "train" and subject["title"] in DEV_SUBJECTS else split
            for paragraph in subject["paragraphs"]:
                context = paragraph["context"].lower()
                for asked in paragraph["qas"]:
                    texts = tuple(answer["text"].lower() for answer in asked["answers"])
                    places = zip(texts, (answer["answer_start"] for answer in asked["answers"]), strict=True)
                    span = next(filter(None, (locate(context, *place) for place in places)), None)
                    splits[part].append(Question(asked["id"], asked["question"].lower(), context, texts, span))
    return splits


def encode(tokenizer, questions: list[Question]) -> tuple[list[finetuning.Row], list[tuple[int, Places]]]:
    """Windows of question and context, without labels, that overlap by a third; their questions' numbers and places."""
    third = tokenizer.model_max_length // 3
    overlapping = {"stride": third, "return_overflowing_tokens": True, "return_offsets_mapping": True}
    rows, windows = [], []
    for number, question in enumerate(questions):
        asked = finetuning.separate_pairs(tokenizer, [question.question])[0]
        if len(tokenizer(asked, verbose=False)["input_ids"]) > third:
            what = f"question {question.id} takes more than a third of an input of {tokenizer.model_max_length} tokens"
            raise InputError(f"{what}; leave faquad out of --tasks, or take a model of longer inputs")
        encoded = tokenizer(asked, question.context, truncation="only_second", **overlapping)
        for window, offsets in enumerate(encoded["offset_mapping"]):
            places: Places = []
            for side, (start, end) in zip(encoded.sequence_ids(window), offsets, strict=True):
                inside = question.context[start:end] if side == 1 else ""
                start += len(inside) - len(inside.lstrip())  # byte-level tokens hold the space before a word
                places.append((start, start + len(inside.strip())) if inside.strip() else None)
            kept = ("input_ids", "attention_mask", "token_type_ids")
            rows.append({key: encoded[key][window] for key in kept if key in encoded})
            windows.append((number, places))
    return rows, windows


def find_span(places: Places, span: tuple[int, int]) -> tuple[int, int] | None:
    """First and last token of the characters `[start, end)`, or None where the window does not hold all of them."""
    inside = [n for n, place in enumerate(places) if place and place[0] < span[1] and place[1] > span[0]]
    if not inside or places[inside[0]][0] > span[0] or places[inside[-1]][1] < span[1]:
        return None
    return inside[0], inside[-1]


def count_unreachable(questions: list[Question], windows) -> int:
    """How many questions have an answer that no window holds whole, or that is longer than what is considered."""
    spans = ((number, find_span(places, questions[number].span or (0, 0))) for number, places in windows)
    reached = {number for number, span in spans if span and span[1] - span[0] < MAX_ANSWER_TOKENS}
    return len(questions) - len(reached)


def extract_answers(outputs: list[np.ndarray], windows, questions: list[Question]) -> list[str]:
    """The likeliest span of each question over all its windows: the sum of its start and end logits is highest."""
    best = {number: (-np.inf, "") for number in range(len(questions))}
    for logits, (number, places) in zip(outputs, windows, strict=True):
        tokens = [n for n, place in enumerate(places) if place]
        if not tokens:
            continue
        sums = logits[tokens, 0][:, None] + logits[tokens, 1]
        is_span = np.triu(np.ones_like(sums)) - np.triu(np.ones_like(sums), MAX_ANSWER_TOKENS)
        sums[is_span == 0] = -np.inf
        start, end = np.unravel_index(sums.argmax(), sums.shape)
        if sums[start, end] > best[number][0]:
            text = questions[number].context[places[tokens[start]][0] : places[tokens[end]][1]]
            best[number] = sums[start, end], text
    return [text for _, text in best.values()]


def find_nearest_sentences(questions: list[Question]) -> list[str]:
    """The baseline's answers."""
    answers = []
    for question in questions:
        asked = set(normalize_answer(question.question).split())
        words = {text: set(normalize_answer(text).split()) for text in SENTENCE_END.split(question.context)}
        answers.append(max(words, key=lambda text: len(asked & words[text])))
    return answers


def run(model_folder: str, context: Context) -> list[Result]:
    """Exact match and F1, of all questions and of those on paragraphs that train does not hold; F1 decides on dev."""
    splits = read()
    known = Passages(np.unique(hash_passages([asked.context for asked in splits["train"] + splits["dev"]])[0]))
    splits, seen = finetuning.prepare_splits(splits, lambda asked: f"{asked.context} {asked.question}", context)
    splits["train"] = [question for question in splits["train"] if question.span]
    tokenizer = finetuning.load_tokenizer(model_folder, context)
    rows, windows = finetuning.encode_splits(encode, tokenizer, splits)
    for row, (number, places) in zip(rows["train"], windows["train"], strict=True):
        # A window without the answer points at its first token, as BERT's SQuAD script has it.
        row["start_positions"], row["end_positions"] = find_span(places, splits["train"][number].span) or (0, 0)
    answers = {split: [question.answers for question in questions] for split, questions in splits.items()}

    def score_dev(outputs: list[np.ndarray]) -> float:
        return score_answers("f1", answers["dev"], extract_answers(outputs, windows["dev"], splits["dev"])).mean()

    head = finetuning.Head(AutoModelForQuestionAnswering)
    outputs, details = finetuning.fine_tune(
        "faquad", model_folder, head, tokenizer, rows, score_dev, "f1", context, NUM_TRAIN_EPOCHS
    )
    test, right = splits["test"], answers["test"]
    predicted = [extract_answers(seed, windows["test"], test) for seed in outputs]
    details |= seen | {
        "empty_predictions": [sum(not normalize_answer(text) for text in texts) for texts in predicted],
        "unreachable_answers": {split: count_unreachable(splits[split], windows[split]) for split in ("train", "test")},
    }
    nearest = find_nearest_sentences(test)
    shares = known.find_shares([question.context for question in test])  # NaN for less than 13 words
    new = [number for number, share in enumerate(shares) if not share > 0]
    results = []
    for subset, part in (("all", list(range(len(test)))), ("paragraphs not in train", new)):
        paragraphs = [test[number].context for number in part]  # an interval draws them whole
        clusters = number_clusters(paragraphs).tolist()
        fields = {"subset": subset, "details": details, "clusters": clusters, "item_ids": [test[n].id for n in part]}
        fields["baseline_name"] = "sentence with the most words of the question"
        for metric in METRICS if part else ():
            scores = np.array([score_answers(metric, right, texts)[part] for texts in predicted])
            fields["baseline"] = float(score_answers(metric, right, nearest)[part].mean())
            fields["items"] = scores.mean(0).tolist()
            results.append(
                finetuning.seeds_result(FAQUAD, metric, lambda _, s: s.mean(), scores[0], scores, paragraphs, **fields)
            )
    return results


FAQUAD = Task("faquad", 4, fine_tune=run, sources="faquad")
