"""Fine-tuned classification of texts and of pairs of texts, two classes: accuracy and macro F1."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline, make_union
from transformers import AutoModelForSequenceClassification

from flexqwen.evaluation import finetuning, sources
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Task

DRAWS = 100


@dataclass(frozen=True)
class Example:
    """One item: its texts (one, or two of a pair), its label, and the subsets that it is part of besides "all"."""

    id: str
    texts: tuple[str, ...]
    label: float
    subsets: frozenset[str] = field(default_factory=frozenset)


def read_csv(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of the evaluation data, by the names in its first line."""
    return list(csv.DictReader(io.StringIO(sources.read(name).decode(), newline="")))


def encode(tokenizer, examples: list[Example]) -> tuple[list[finetuning.Row], int]:
    """Rows without labels, and how many of them were cut to the model's length."""
    columns = [list(column) for column in zip(*(example.texts for example in examples), strict=True)]
    if len(columns) == 2:
        columns[0] = finetuning.separate_pairs(tokenizer, columns[0])
    encoded = tokenizer(*columns, truncation=True)
    cut = sum(len(ids) > tokenizer.model_max_length for ids in tokenizer(*columns, verbose=False)["input_ids"])
    return [{key: encoded[key][number] for key in encoded} for number in range(len(examples))], cut


def compute_macro_f1(gold, predicted) -> float:
    """Mean F1 of the two classes; a class that is neither there nor predicted counts as 0."""
    return f1_score(gold, predicted, labels=[0, 1], average="macro", zero_division=0)


def predict_by_words(train: list[Example], test: list[Example]) -> np.ndarray:
    """Labels by logistic regression over the counts of words and pairs of neighbours, of each text by itself."""
    if len({example.label for example in train}) == 1:
        return np.full(len(test), train[0].label, dtype=int)

    def count_in(place: int) -> CountVectorizer:
        return CountVectorizer(ngram_range=(1, 2), preprocessor=lambda example: example.texts[place].lower())

    model = make_pipeline(make_union(*map(count_in, range(len(train[0].texts)))), LogisticRegression(max_iter=1000))
    return model.fit(train, [int(example.label) for example in train]).predict(test)


def score_without_reading(train: list[int], test: list[int]) -> dict[str, dict[str, float]]:
    """By metric what training's most frequent class would reach, and random labels in training's proportions.

    A constant answer has a low macro F1 (1/3 of two even classes); random labels are the harder level to pass.
    """
    constant, random = [Counter(train).most_common(1)[0][0]] * len(test), np.random.default_rng(0)
    drawn, levels = [random.choice(train, len(test)) for _ in range(DRAWS)], {}
    for metric, compute in (("accuracy", accuracy_score), ("macro_f1", compute_macro_f1)):
        mean = float(np.mean([compute(test, labels) for labels in drawn]))
        levels[metric] = {"majority": float(compute(test, constant)), "random": mean}
    return levels


def classify(
    task: Task, model_folder: str, splits: dict[str, list[Example]], context: Context, epochs: float, name="all"
) -> list[Result]:
    """Accuracy and macro F1 on the test examples (`name`), and on each of their subsets; macro F1 decides on dev."""
    splits, overlap = finetuning.prepare_splits(splits, lambda example: " ".join(example.texts), context)
    tokenizer = finetuning.load_tokenizer(model_folder, context)
    rows, cut = finetuning.encode_splits(encode, tokenizer, splits)
    labels = {split: [int(example.label) for example in examples] for split, examples in splits.items()}
    for row, label in zip(rows["train"], labels["train"], strict=True):
        row["labels"] = label

    def score_dev(outputs: list[np.ndarray]) -> float:
        return compute_macro_f1(labels["dev"], [output.argmax() for output in outputs])

    head = finetuning.Head(AutoModelForSequenceClassification, {"num_labels": 2})
    outputs, details = finetuning.fine_tune(
        task.name, model_folder, head, tokenizer, rows, score_dev, "macro_f1", context, epochs
    )
    details = {**details, **overlap, "cut_texts": {"train": cut["train"], "test": cut["test"]}}
    test, gold = splits["test"], np.array(labels["test"])
    predicted = np.array([[output.argmax() for output in seed] for seed in outputs])
    by_words = predict_by_words(splits["train"], test)
    results = []
    for subset in [name, *sorted(set().union(*(example.subsets for example in test)))]:
        part = np.array([number for number, e in enumerate(test) if subset == name or subset in e.subsets])
        true, said = gold[part], predicted[:, part]
        levels = score_without_reading(labels["train"], true.tolist())
        items = {"items": (true == said).mean(0).tolist(), "item_ids": [test[number].id for number in part]}
        for metric, compute, more in (
            ("accuracy", lambda true, said: np.mean(true == said), items),
            ("macro_f1", compute_macro_f1, {}),
        ):
            fields = {"baseline": float(compute(true, by_words[part])), "baseline_name": "bag of words", **more}
            fields |= {"subset": subset, "details": {**details, **levels[metric]}}
            results.append(finetuning.seeds_result(task, metric, compute, true, said, **fields))
    return results
