"""Fine-tuned classification of texts and of pairs of texts: accuracy and macro F1 (ASSIN 2, HateBR, ToLD-Br)."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from flexqwen.evaluation.finetuning import (
    Row,
    Settings,
    classification,
    fine_tune,
    load_tokenizer,
    sample,
    separated,
    unseen,
)
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import over_seeds

DRAWS = 100


@dataclass(frozen=True)
class Example:
    """One item: its texts (one, or two of a pair), its label, and the subsets that it is part of besides "all"."""

    id: str
    texts: tuple[str, ...]
    label: float
    subsets: frozenset[str] = field(default_factory=frozenset)


def encode(tokenizer, examples: list[Example]) -> tuple[list[Row], int]:
    """Rows without labels, and how many of them were cut to the model's length."""
    columns = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
    if len(columns) == 2:
        columns[0] = separated(tokenizer, columns[0])
    encoded = tokenizer(*columns, truncation=True)
    cut = sum(len(ids) > tokenizer.model_max_length for ids in tokenizer(*columns, verbose=False)["input_ids"])
    return [{key: encoded[key][number] for key in encoded} for number in range(len(examples))], cut


def macro_f1(gold, predicted, classes: int) -> float:
    """Mean F1 of all classes; a class that is neither there nor predicted counts as 0."""
    return f1_score(gold, predicted, labels=range(classes), average="macro", zero_division=0)


def baselines(train: list[int], test: list[int], classes: int) -> dict[str, tuple[float, str]]:
    """What can be had without reading: accuracy of training's most frequent class, macro F1 of random labels.

    A constant answer has a low macro F1 (1/3 of two even classes); random labels are the harder level to pass.
    """
    frequent = Counter(train).most_common(1)[0][0]
    random = np.random.default_rng(0)
    drawn = [macro_f1(test, random.choice(train, len(test)), classes) for _ in range(DRAWS)]
    return {
        "accuracy": (accuracy_score(test, [frequent] * len(test)), "majority class of train"),
        "macro_f1": (float(np.mean(drawn)), "random labels in train's proportions"),
    }


def classify(
    task: str,
    version: int,
    model_folder: str,
    train: list[Example],
    dev: list[Example],
    test: list[Example],
    classes: int,
    settings: Settings,
    num_train_epochs: float,
    name: str = "all",
) -> list[Result]:
    """Accuracy and macro F1 on the test examples, and on each of their subsets; macro F1 decides on dev.

    Args:
        name: what `Result.subset` says of all test examples.
    """
    train, dev, test = (sample(examples, settings.limit) for examples in (train, dev, test))
    test, overlap = unseen(test, [" ".join(example.texts) for example in test], settings)
    tokenizer = load_tokenizer(model_folder, settings)
    (train_rows, cut), (dev_rows, _), (test_rows, test_cut) = (encode(tokenizer, e) for e in (train, dev, test))
    for row, example in zip(train_rows, train, strict=True):
        row["labels"] = int(example.label)
    dev_labels = [int(example.label) for example in dev]
    tuned = fine_tune(
        task,
        model_folder,
        classification(classes),
        tokenizer,
        train_rows,
        dev_rows,
        test_rows,
        lambda outputs: macro_f1(dev_labels, [output.argmax() for output in outputs], classes),
        "macro_f1",
        settings,
        num_train_epochs,
    )
    gold = np.array([int(example.label) for example in test])
    predicted = np.array([[output.argmax() for output in outputs] for outputs in tuned.outputs])
    details = {**tuned.details, **overlap, "cut_texts": {"train": cut, "test": test_cut}}
    train_labels = [row["labels"] for row in train_rows]
    results = []
    for subset in [name, *sorted(set().union(*(example.subsets for example in test)))]:
        part = np.array([number for number, e in enumerate(test) if subset == name or subset in e.subsets])
        levels = baselines(train_labels, gold[part].tolist(), classes)
        metrics = {
            "accuracy": lambda seed, drawn, part=part: np.mean(gold[part[drawn]] == predicted[seed, part[drawn]]),
            "macro_f1": lambda seed, drawn, part=part: macro_f1(
                gold[part[drawn]], predicted[seed, part[drawn]], classes
            ),
        }
        for metric, function in metrics.items():
            values, interval = over_seeds(function, len(predicted), len(part))
            result = Result(
                task,
                version,
                "finetuned",
                metric,
                float(np.mean(values)),
                interval,
                len(part),
                *levels[metric],
                subset,
                {**details, "per_seed": values},
            )
            if metric == "accuracy":
                result.items = (gold == predicted).mean(0)[part].tolist()
                result.item_ids = [test[number].id for number in part]
            results.append(result)
    return results
