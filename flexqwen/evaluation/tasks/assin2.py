"""ASSIN 2: does a sentence entail another (RTE), and how similar are they, from 1 to 5 (STS)?

Real et al., PROPOR 2020. 6,500 / 500 / 2,448 pairs, half of each entailed. RTE: accuracy and macro F1. STS: Pearson's
correlation and mean squared error, as the shared task's own script. The two are trained apart.

The baseline of STS is the share of the two sentences' words that both have (Jaccard), as a line fitted on train. It is
a hard one: nearly all sentences of dev stand in train too, but under half of those of test do, so a weak model that
learns sentences instead of comparing them passes it on dev and not on test.
"""

import math
import re
from pathlib import Path

import numpy as np
from lxml import etree
from scipy.stats import pearsonr
from sklearn.metrics import mean_squared_error

from flexqwen.cli import InputError
from flexqwen.evaluation.finetuning import Settings, fine_tune, load_tokenizer, regression, sample, unseen
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import over_seeds
from flexqwen.evaluation.tasks import Task
from flexqwen.evaluation.tasks.data_files import data_file
from flexqwen.evaluation.tasks.text_classification import Example, classify, encode

VERSION = 2
NUM_TRAIN_EPOCHS = 5
FILES = {"train": "assin2-train-only.xml", "dev": "assin2-dev.xml", "test": "assin2-test.xml"}
ENTAILMENT = {"None": 0, "Entailment": 1}
LOWEST, HIGHEST = 1.0, 5.0
WORD = re.compile(r"\w+")


def read(folder: Path) -> dict[str, dict[str, list[Example]]]:
    """The pairs as `{"rte": {"train": ..., "dev": ..., "test": ...}, "sts": ...}`.

    The XML is read with no entities, no DTD and no network.

    Raises:
        InputError: a file is missing, is not XML, or a pair lacks a text or a label.
    """
    splits: dict[str, dict[str, list[Example]]] = {"rte": {}, "sts": {}}
    for split, name in FILES.items():
        path = data_file(folder, name)
        try:
            parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
            tree = etree.parse(str(path), parser)
        except etree.XMLSyntaxError as error:
            raise InputError(f"{path} is not XML ({error}); fetch the file again") from error
        if tree.docinfo.doctype:  # entities would be left out of the texts
            raise InputError(f"{path} declares a document type, which ASSIN 2's files do not; fetch the file again")
        for subtask in splits:
            splits[subtask][split] = []
        for pair in tree.getroot().findall("pair"):
            texts = (pair.findtext("t"), pair.findtext("h"))
            entailment = ENTAILMENT.get(pair.get("entailment"))
            try:
                similarity = float(pair.get("similarity", "nan"))
            except ValueError:
                similarity = math.nan
            if not all(texts) or entailment is None or not LOWEST <= similarity <= HIGHEST:
                place = f"{path}, line {pair.sourceline}"
                raise InputError(
                    f"{place}: a pair needs t, h, entailment ({' or '.join(ENTAILMENT)}) and similarity (1 to 5); "
                    "fetch the file again"
                )
            splits["rte"][split].append(Example(pair.get("id"), texts, entailment))
            splits["sts"][split].append(Example(pair.get("id"), texts, similarity))
    return splits


def pearson(gold, predicted) -> float:
    """Pearson's correlation; 0 where either is constant."""
    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(pearsonr(gold, predicted).statistic)


def word_overlap(examples: list[Example]) -> np.ndarray:
    """Share of the words of both texts that both have, float64 `(examples,)`."""
    words = [[set(WORD.findall(text.lower())) for text in example.texts] for example in examples]
    return np.array([len(one & other) / max(len(one | other), 1) for one, other in words])


def baseline(train: list[Example], test: list[Example]) -> np.ndarray:
    """The similarities that word overlap predicts: its least-squares line on train, kept within 1 to 5."""
    line = np.polynomial.Polynomial.fit(word_overlap(train), [example.label for example in train], 1)
    return np.clip(line(word_overlap(test)), LOWEST, HIGHEST)


def similarity(model_folder: str, splits: dict[str, list[Example]], settings: Settings) -> list[Result]:
    """Pearson's correlation and mean squared error of predicted similarities, kept within 1 to 5."""
    train, dev, test = (sample(splits[split], settings.limit) for split in ("train", "dev", "test"))
    test, seen = unseen(test, [" ".join(example.texts) for example in test], settings)
    tokenizer = load_tokenizer(model_folder, settings)
    train_rows, dev_rows, test_rows = (encode(tokenizer, examples)[0] for examples in (train, dev, test))
    levels = np.array([example.label for example in train])
    mean, spread = levels.mean(), levels.std() or 1.0  # the head learns standard scores: its own scale
    for row, level in zip(train_rows, levels, strict=True):
        row["labels"] = float((level - mean) / spread)
    gold, dev_gold = (np.array([example.label for example in examples]) for examples in (test, dev))

    def similarities(outputs: list[np.ndarray]) -> np.ndarray:
        return np.clip(
            np.array([output.item() for output in outputs], dtype=np.float64) * spread + mean, LOWEST, HIGHEST
        )

    tuned = fine_tune(
        "assin2, STS",
        model_folder,
        regression(),
        tokenizer,
        train_rows,
        dev_rows,
        test_rows,
        lambda outputs: pearson(dev_gold, similarities(outputs)),
        "pearson",
        settings,
        NUM_TRAIN_EPOCHS,
    )
    predicted = np.array([similarities(outputs) for outputs in tuned.outputs])
    errors = (predicted - gold) ** 2
    overlap = baseline(train, test)
    constant = {"pearson": 0.0, "mse": mean_squared_error(gold, np.full_like(gold, mean))}
    results = []
    for metric, function in {"pearson": pearson, "mse": mean_squared_error}.items():
        values, interval = over_seeds(
            lambda seed, drawn, function=function: function(gold[drawn], predicted[seed, drawn]),
            len(predicted),
            len(gold),
        )
        result = Result(
            "assin2",
            VERSION,
            "finetuned",
            metric,
            float(np.mean(values)),
            interval,
            len(gold),
            float(function(gold, overlap)),
            "word overlap",
            "sts",
            {**tuned.details, **seen, "per_seed": values, "mean_similarity_of_train": constant[metric]},
        )
        if metric == "mse":
            result.items, result.item_ids = errors.mean(0).tolist(), [example.id for example in test]
        results.append(result)
    return results


def run(model_folder: str, folder: Path, settings: Settings) -> list[Result]:
    """RTE: accuracy, macro F1. STS: Pearson's correlation, mean squared error."""
    splits = read(folder)
    entailment = classify(
        "assin2",
        VERSION,
        model_folder,
        **splits["rte"],
        classes=2,
        settings=settings,
        num_train_epochs=NUM_TRAIN_EPOCHS,
        name="rte",
    )
    return entailment + similarity(model_folder, splits["sts"], settings)


TASK = Task("assin2", VERSION, fine_tune=run)
