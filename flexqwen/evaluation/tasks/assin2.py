"""ASSIN 2: does a sentence entail another (RTE), and how similar are they, from 1 to 5 (STS)? See docs/tasks.md."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from lxml import etree
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from flexqwen.evaluation import finetuning, sources
from flexqwen.evaluation.finetuning.text_classification import Example, classify, encode
from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task

NUM_TRAIN_EPOCHS = 5
FILES = {"train": "assin2-train-only.xml", "dev": "assin2-dev.xml", "test": "assin2-test.xml"}
ENTAILMENT = {"None": 0, "Entailment": 1}
LOWEST, HIGHEST = 1.0, 5.0
BATCH = 64  # sentences embedded at a time
WORD = re.compile(r"\w+")


def read() -> dict[str, dict[str, list[Example]]]:
    """The pairs as `{"rte": {"train": ..., "dev": ..., "test": ...}, "sts": ...}`."""
    splits: dict[str, dict[str, list[Example]]] = {"rte": {}, "sts": {}}
    for split, name in FILES.items():
        splits["rte"][split], splits["sts"][split] = [], []
        for pair in etree.fromstring(sources.read(f"assin2/{name}")).findall("pair"):
            named = pair.get("id"), (pair.findtext("t"), pair.findtext("h"))
            splits["rte"][split].append(Example(*named, ENTAILMENT[pair.get("entailment")]))
            splits["sts"][split].append(Example(*named, float(pair.get("similarity"))))
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


ASSIN2 = Task("assin2", 3, fine_tune=run, sources="assin2")


def load_pairs(context: Context) -> list[Item]:
    """The pairs of the test set."""
    examples = read()["sts"]["test"]
    return [Item(e.id, " ".join(e.texts), [list(map(Request, e.texts))], label=e.label) for e in examples]


@torch.inference_mode()
def embed(scorer: Scorer, texts: Sequence[str], is_causal: bool) -> np.ndarray:
    """The mean of each text's last hidden states: float32 `(texts, hidden)`."""
    found, device = [], scorer.model.device
    options = {"is_causal": is_causal} if scorer.kind == "flexqwen" else {}
    for start in range(0, len(texts), BATCH):
        encodings = scorer.backend.encode_batch(list(texts[start : start + BATCH]))
        ids = [torch.tensor(encoding.ids[: scorer.length]) for encoding in encodings]
        real = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
        rows = pad_sequence(ids, batch_first=True).to(device)
        states = scorer.model.base_model(input_ids=rows, attention_mask=real, **options).last_hidden_state
        found.append(((states * real[..., None]).sum(1) / real.sum(1, keepdim=True)).float().cpu().numpy())
    return np.concatenate(found)


def correlate(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    pairs = [Example(item.id, tuple(request.text for request in item.questions[0]), item.label) for item in items]
    one, other = (embed(scorer, [pair.texts[place] for pair in pairs], mode == "causal") for place in (0, 1))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    gold = [pair.label for pair in pairs]
    items_of = [influences(gold, values) for values in (cosines, measure_overlap(pairs))]
    baseline = {"baseline": float(items_of[1].mean()), "baseline_name": "word overlap"}
    return [task.mean_result(items, items_of[0], mode=mode, metric="pearson", **baseline)]


def influences(one, other) -> np.ndarray:
    """What each pair of values does to Pearson's correlation r: float64 `(pairs,)`, whose mean is r.

    The influence function of r (Devlin, Gnanadesikan and Kettenring, 1975) plus r. The mean of the products of standard
    scores is r, too, but takes mean and spread for known: its interval is far too wide where r is high.
    """
    values = np.array([one, other], dtype=np.float64)
    spread = values.std(1, keepdims=True)
    scores = (values - values.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    r = scores.prod(0).mean()
    return scores.prod(0) - r * (scores**2).mean(0) + r


ASSIN2_EMBEDDINGS = Task("assin2_embeddings", 2, load_pairs, correlate, modes=("causal", "masked"))
