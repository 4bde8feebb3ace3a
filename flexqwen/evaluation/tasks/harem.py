"""HAREM: named entities of Portuguese. Santos et al., LREC 2006.

The First HAREM collection to train (121 documents) and to choose the learning rate (8), MiniHAREM (128) to test: the
files that BERTimbau was evaluated on (github.com/neuralmind-ai/portuguese-bert, `ner_evaluation/data`), in which vague
and alternative annotations are already resolved. The *selective* scenario has 5 classes (PESSOA, ORGANIZACAO, LOCAL,
TEMPO, VALOR), the *total* one 10; they are trained apart. The figure is the micro F1 of entities with the right span
and class (CoNLL-2003), over words and single punctuation marks, labelled B, I, O.

The baseline is that of CoNLL-2003 (Tjong Kim Sang & De Meulder, 2003): an entity is the longest stretch of words that
is an entity in train, always of one class.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities

from flexqwen.cli import InputError
from flexqwen.evaluation.finetuning import Settings, sample, unseen
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import over_seeds
from flexqwen.evaluation.tasks import Task
from flexqwen.evaluation.tasks.data_files import data_file
from flexqwen.evaluation.tasks.tagging import Tagged, tag

VERSION = 1
NUM_TRAIN_EPOCHS = 15
SCENARIOS = ("selective", "total")
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def words_and_labels(document: dict) -> Tagged:
    """A document of the files as words with B, I, O labels.

    Raises:
        ValueError: an entity overlaps another, is not whole words, or is not where its offsets say.
    """
    text = document["doc_text"]
    spans = [match.span() for match in WORD.finditer(text)]
    labels = ["O"] * len(spans)
    starts, ends = ({span[side]: number for number, span in enumerate(spans)} for side in (0, 1))
    for entity in document["entities"]:
        start, end = entity["start_offset"], entity["end_offset"]
        covered = text[start:end]
        if covered != entity["text"]:
            raise ValueError(f"entity {entity['text']!r} does not stand at {start}")
        first = starts.get(start + len(covered) - len(covered.lstrip()))
        last = ends.get(start + len(covered.rstrip()))
        if first is None or last is None or set(labels[first : last + 1]) != {"O"}:
            raise ValueError(f"entity {entity['text']!r} at {start} is not whole words, or overlaps another")
        labels[first : last + 1] = [f"B-{entity['label']}"] + [f"I-{entity['label']}"] * (last - first)
    words = [(" " if start and text[start - 1].isspace() else "") + text[start:end] for start, end in spans]
    return Tagged(document["doc_id"], words, labels)


def read(folder: Path, scenario: str) -> dict[str, list[Tagged]]:
    """The documents of `train`, `dev` and `test` of a scenario.

    Raises:
        InputError: a file is missing or damaged.
    """
    names = {
        "train": f"FirstHAREM-{scenario}-train.json",
        "dev": f"FirstHAREM-{scenario}-dev.json",
        "test": f"MiniHAREM-{scenario}.json",
    }
    splits = {}
    for split, name in names.items():
        path = data_file(folder, name)
        try:
            documents = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); fetch the file again") from error
        splits[split] = []
        for document in documents:
            try:
                splits[split].append(words_and_labels(document))
            except (KeyError, ValueError) as error:
                place = document.get("doc_id", "a document without doc_id")
                raise InputError(f"{path}, {place}: {error}; fetch the file again") from error
    return splits


def known_entities(train: list[Tagged], test: list[Tagged]) -> list[list[str]]:
    """The baseline's labels of the test documents."""
    classes = defaultdict(set)
    for text in train:
        words = [word.strip() for word in text.words]
        for label, start, end in get_entities(text.labels):
            classes[tuple(words[start : end + 1])].add(label)
    known = {words: labels.copy().pop() for words, labels in classes.items() if len(labels) == 1}
    longest = max(map(len, known), default=0)
    predicted = []
    for text in test:
        words = [word.strip() for word in text.words]
        labels = ["O"] * len(words)
        place = 0
        while place < len(words):
            for length in range(min(longest, len(words) - place), 0, -1):
                if label := known.get(tuple(words[place : place + length])):
                    labels[place : place + length] = [f"B-{label}"] + [f"I-{label}"] * (length - 1)
                    break
            else:
                length = 1
            place += length
        predicted.append(labels)
    return predicted


def counts(gold: list[list[str]], predicted: list[list[str]]) -> np.ndarray:
    """Entities of each document, int64 `(documents, 3)`: right, predicted, gold."""
    found = []
    for gold_labels, labels in zip(gold, predicted, strict=True):
        true, said = set(get_entities(gold_labels)), set(get_entities(labels))
        found.append((len(true & said), len(said), len(true)))
    return np.array(found)


def f1(counted: np.ndarray) -> float:
    """Micro F1 of such counts: seqeval's of the same documents, but quick enough for the bootstrap."""
    right, predicted, gold = counted.sum(0)
    return 2 * right / max(predicted + gold, 1)


def run(model_folder: str, folder: Path, settings: Settings) -> list[Result]:
    """Entity F1 of both scenarios."""
    results = []
    for scenario in SCENARIOS:
        splits = {split: sample(texts, settings.limit) for split, texts in read(folder, scenario).items()}
        splits["test"], overlap = unseen(splits["test"], ["".join(text.words) for text in splits["test"]], settings)
        names = sorted({label for text in splits["train"] for label in text.labels} - {"O"})
        labels = ["O", *names]

        def labelled(logits: list[np.ndarray], labels=labels) -> list[list[str]]:
            return [[labels[number] for number in text.argmax(-1)] for text in logits]

        gold, dev_gold = ([text.labels for text in splits[split]] for split in ("test", "dev"))
        tuned = tag(
            f"harem, {scenario}",
            model_folder,
            **splits,
            labels=labels,
            dev_score=lambda logits, gold=dev_gold: f1_score(gold, labelled(logits), zero_division=0),
            dev_metric="entity_f1",
            settings=settings,
            num_train_epochs=NUM_TRAIN_EPOCHS,
        )
        counted = np.array([counts(gold, labelled(logits)) for logits in tuned.outputs])
        values, interval = over_seeds(
            lambda seed, drawn, counted=counted: f1(counted[seed, drawn]), len(counted), len(gold)
        )
        right, predicted, true = counted.sum(1).T
        details = {
            **tuned.details,
            **overlap,
            "per_seed": values,
            "precision": (right / predicted.clip(min=1)).tolist(),
            "recall": (right / true.clip(min=1)).tolist(),
            "documents": len(gold),
        }
        baseline = f1_score(gold, known_entities(splits["train"], splits["test"]), zero_division=0)
        results.append(
            Result(
                "harem",
                VERSION,
                "finetuned",
                "entity_f1",
                float(np.mean(values)),
                interval,
                int(true[0]),
                float(baseline),
                "entities of train, looked up",
                scenario,
                details,
            )
        )
    return results


TASK = Task("harem", VERSION, fine_tune=run)
