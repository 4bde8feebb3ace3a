"""ASSIN 2: does a sentence entail another (RTE), and how similar are they, from 1 to 5 (STS)?

Real et al., PROPOR 2020. 6,500 / 500 / 2,448 pairs, half of each entailed. RTE: accuracy and macro F1. STS: Pearson's
correlation and mean squared error, as the shared task's own script. The two are trained apart.

The baseline of STS is the share of the two sentences' words that both have (Jaccard), as a line fitted on train. It is
a hard one: nearly all sentences of dev stand in train too, but under half of those of test do, so a weak model that
learns sentences instead of comparing them passes it on dev and not on test.
"""

import re

import numpy as np
from lxml import etree
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error
from transformers import AutoModelForSequenceClassification

from flexqwen.evaluation import finetuning, sources
from flexqwen.evaluation.finetuning.text_classification import Example, classify, encode
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Task

NUM_TRAIN_EPOCHS = 5
FILES = {"train": "assin2-train-only.xml", "dev": "assin2-dev.xml", "test": "assin2-test.xml"}
ENTAILMENT = {"None": 0, "Entailment": 1}
LOWEST, HIGHEST = 1.0, 5.0
WORD = re.compile(r"\w+")


def read() -> dict[str, dict[str, list[Example]]]:
    """The pairs as `{"rte": {"train": ..., "dev": ..., "test": ...}, "sts": ...}`."""
    splits: dict[str, dict[str, list[Example]]] = {"rte": {}, "sts": {}}
    for split, name in FILES.items():
        pairs = [
            (pair.get("id"), (pair.findtext("t"), pair.findtext("h")), pair.get("entailment"), pair.get("similarity"))
            for pair in etree.fromstring(sources.read(f"assin2/{name}")).findall("pair")
        ]
        splits["rte"][split] = [Example(id, texts, ENTAILMENT[label]) for id, texts, label, _ in pairs]
        splits["sts"][split] = [Example(id, texts, float(similarity)) for id, texts, _, similarity in pairs]
    return splits


def compute_pearson(gold, predicted) -> float:
    """Pearson's correlation; 0 where either is constant."""
    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(pearsonr(gold, predicted).statistic)


def measure_overlap(examples: list[Example]) -> np.ndarray:
    """Share of the words of both texts that both have, float64 `(examples,)`."""
    words = [[set(WORD.findall(text.lower())) for text in example.texts] for example in examples]
    return np.array([len(one & other) / max(len(one | other), 1) for one, other in words])


def predict_by_overlap(train: list[Example], test: list[Example]) -> np.ndarray:
    """The similarities that word overlap predicts: its least-squares line on train, kept within 1 to 5."""
    line = np.polynomial.Polynomial.fit(measure_overlap(train), [example.label for example in train], 1)
    return np.clip(line(measure_overlap(test)), LOWEST, HIGHEST)


def fine_tune_similarity(model_folder: str, splits: dict[str, list[Example]], context: Context) -> list[Result]:
    """Pearson's correlation and mean squared error of predicted similarities, kept within 1 to 5."""
    splits, seen = finetuning.prepare_splits(splits, lambda example: " ".join(example.texts), context)
    tokenizer = finetuning.load_tokenizer(model_folder, context)
    rows, _ = finetuning.encode_splits(encode, tokenizer, splits)
    gold = {split: np.array([example.label for example in examples]) for split, examples in splits.items()}
    mean, spread = gold["train"].mean(), gold["train"].std() or 1.0  # the head learns standard scores: its own scale
    for row, level in zip(rows["train"], gold["train"], strict=True):
        row["labels"] = float((level - mean) / spread)

    def rescale(outputs: list[np.ndarray]) -> np.ndarray:
        levels = np.array([output.item() for output in outputs], dtype=np.float64) * spread + mean
        return np.clip(levels, LOWEST, HIGHEST)

    def score_dev(outputs: list[np.ndarray]) -> float:
        return compute_pearson(gold["dev"], rescale(outputs))

    head = finetuning.Head(AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"})
    outputs, details = finetuning.fine_tune(
        "assin2, STS", model_folder, head, tokenizer, rows, score_dev, "pearson", context, NUM_TRAIN_EPOCHS
    )
    true, predicted = gold["test"], np.array([rescale(seed) for seed in outputs])
    overlap = predict_by_overlap(splits["train"], splits["test"])
    constant = {"pearson": 0.0, "mse": mean_squared_error(true, np.full_like(true, mean))}
    items = {"items": ((predicted - true) ** 2).mean(0).tolist(), "item_ids": [e.id for e in splits["test"]]}
    results = []
    for metric, compute, more in (("pearson", compute_pearson, {}), ("mse", mean_squared_error, items)):
        fields = {"baseline": float(compute(true, overlap)), "baseline_name": "word overlap", "subset": "sts", **more}
        fields["details"] = {**details, **seen, "mean_similarity_of_train": constant[metric]}
        results.append(finetuning.seeds_result(ASSIN2, metric, compute, true, predicted, **fields))
    return results


def run(model_folder: str, context: Context) -> list[Result]:
    """RTE: accuracy, macro F1. STS: Pearson's correlation, mean squared error."""
    splits = read()
    entailment = classify(ASSIN2, model_folder, splits["rte"], context, NUM_TRAIN_EPOCHS, "rte")
    return entailment + fine_tune_similarity(model_folder, splits["sts"], context)


ASSIN2 = Task("assin2", 3, fine_tune=run)
