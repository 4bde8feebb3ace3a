"""UD Portuguese Bosque: universal part of speech of each syntactic word (UPOS accuracy).

The model reads the sentence as it is written (`# text`), where a contraction such as "das" is one word; the treebank
tags its syntactic words ("de" ADP, "as" DET). So a written word's label is the tags of its syntactic words, joined:
"ADP+DET". The division is the treebank's own: of the labels with as many parts as the word has, the likeliest is taken,
and each part is scored against its syntactic word. Combinations that train does not hold cannot be predicted.

The baseline gives each written word the label that it most often has in train, and an unknown one the most frequent
label with as many parts.
"""

import gzip
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score

from flexqwen.cli import InputError
from flexqwen.evaluation.finetuning import Settings, sample, unseen
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import over_seeds
from flexqwen.evaluation.tasks import Task
from flexqwen.evaluation.tasks.data_files import data_file
from flexqwen.evaluation.tasks.tagging import Tagged, tag

VERSION = 2
NUM_TRAIN_EPOCHS = 5
FILES = {
    "train": "pt_bosque-ud-train.from-documents.conllu.gz",
    "dev": "pt_bosque-ud-dev.conllu",
    "test": "pt_bosque-ud-test.conllu",
}
JOIN = "+"


def read_conllu(path: Path) -> list[Tagged]:
    """The sentences of a CoNLL-U file, plain or gzipped: written words and their joined tags.

    Raises:
        InputError: a sentence whose lines are not CoNLL-U, or whose words are not those of its text.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        blocks = file.read().strip().split("\n\n")
    sentences = []
    for number, block in enumerate(blocks, 1):
        lines = block.split("\n")
        comments = dict(line[2:].split(" = ", 1) for line in lines if line.startswith("# ") and " = " in line)
        name = comments.get("sent_id", f"sentence {number}")
        try:
            sentences.append(_sentence(name, comments["text"], [line for line in lines if not line.startswith("#")]))
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}, {name}: not CoNLL-U with a text ({error}); fetch the file again") from error
    return sentences


def _sentence(name: str, text: str, lines: list[str]) -> Tagged:
    words, labels = [], []
    place, last = 0, 0  # in the text; the last syntactic word of the written one
    for line in lines:
        number, form, _, tag, *rest = line.split("\t")
        if len(rest) != 6:
            raise ValueError(f"a line of {len(rest) + 4} columns")
        if "." in number:  # an empty node: not in the text
            continue
        first, _, end = number.partition("-")
        if not end and int(first) <= last:  # a part of the contraction that stands above
            labels[-1] = labels[-1] + JOIN + tag if labels[-1] else tag
            continue
        start = text.find(form, place)
        if start < 0 or text[place:start].strip():
            raise ValueError(f"{form!r} is not what follows {text[:place]!r}")
        words.append((" " if start > place else "") + form)
        labels.append("" if end else tag)
        place = start + len(form)
        last = int(end or first)
    return Tagged(name, words, labels)


def parts(label: str) -> int:
    return label.count(JOIN) + 1


def predict(logits: list[np.ndarray], texts: list[Tagged], labels: list[str]) -> list[list[str]]:
    """Tags of the syntactic words of each text, from the logits `(words, labels)` of its written words.

    How many syntactic words a written one has is given. Where train has no label with as many, each gets label 0.
    """
    sizes = np.array([parts(label) for label in labels])
    predicted = []
    for text, scores in zip(texts, logits, strict=True):
        tags = []
        for label, row in zip(text.labels, scores, strict=True):
            fitting = np.flatnonzero(sizes == parts(label))
            best = labels[fitting[row[fitting].argmax()]] if len(fitting) else JOIN.join([labels[0]] * parts(label))
            tags += best.split(JOIN)
        predicted.append(tags)
    return predicted


def gold_tags(texts: list[Tagged]) -> list[list[str]]:
    """Tags of the syntactic words of each text."""
    return [[tag for label in text.labels for tag in label.split(JOIN)] for text in texts]


def frequent_labels(train: list[Tagged], test: list[Tagged], labels: list[str]) -> list[list[str]]:
    """The baseline's tags of the syntactic words of each test text."""
    of_word, overall = defaultdict(Counter), Counter()
    for text in train:
        overall.update(text.labels)
        for word, label in zip(text.words, text.labels, strict=True):
            of_word[word.strip().lower()][label] += 1
    common = np.array([overall[label] for label in labels]) / (
        overall.total() + 1
    )  # under 1: decides where all are even
    ranks = []
    for text in test:
        seen = [of_word[word.strip().lower()] for word in text.words]
        ranks.append(np.array([[counter[label] for label in labels] for counter in seen]) + common)
    return predict(ranks, test, labels)


def run(model_folder: str, folder: Path, settings: Settings) -> list[Result]:
    """Accuracy over syntactic words; the interval draws sentences, `items` are words, `clusters` their sentences."""
    splits = {split: sample(read_conllu(data_file(folder, name)), settings.limit) for split, name in FILES.items()}
    splits["test"], overlap = unseen(splits["test"], ["".join(text.words) for text in splits["test"]], settings)
    labels = [label for label, _ in Counter(label for text in splits["train"] for label in text.labels).most_common()]
    gold, dev_gold = gold_tags(splits["test"]), np.concatenate(gold_tags(splits["dev"]))
    tuned = tag(
        "bosque_pos",
        model_folder,
        **splits,
        labels=labels,
        dev_score=lambda logits: accuracy_score(dev_gold, np.concatenate(predict(logits, splits["dev"], labels))),
        dev_metric="accuracy",
        settings=settings,
        num_train_epochs=NUM_TRAIN_EPOCHS,
    )
    right = []  # for each seed and sentence, whether each syntactic word is right
    for logits in tuned.outputs:
        tags = predict(logits, splits["test"], labels)
        right.append([np.array(said) == np.array(true) for said, true in zip(tags, gold, strict=True)])
    sums = np.array([[sentence.sum() for sentence in seed] for seed in right])
    lengths = np.array([len(tags) for tags in gold])
    values, interval = over_seeds(
        lambda seed, drawn: sums[seed, drawn].sum() / lengths[drawn].sum(), len(sums), len(gold)
    )
    baseline = accuracy_score(
        np.concatenate(gold), np.concatenate(frequent_labels(splits["train"], splits["test"], labels))
    )
    items = np.mean([np.concatenate(seed) for seed in right], axis=0)
    return [
        Result(
            "bosque_pos",
            VERSION,
            "finetuned",
            "accuracy",
            float(np.mean(values)),
            interval,
            len(items),
            baseline,
            "each word's most frequent tag in train",
            details={**tuned.details, **overlap, "per_seed": values, "sentences": len(gold)},
            items=items.tolist(),
            item_ids=[f"{t.id}/{n}" for t, tags in zip(splits["test"], gold, strict=True) for n in range(len(tags))],
            clusters=np.repeat(np.arange(len(gold)), lengths).tolist(),
        )
    ]


TASK = Task("bosque_pos", VERSION, fine_tune=run, folder="ud_bosque")
