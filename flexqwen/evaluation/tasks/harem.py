"""HAREM: named entities of Portuguese. See docs/tasks.md."""

import json
import re
from collections import defaultdict

import numpy as np
from seqeval.metrics.sequence_labeling import get_entities

from flexqwen.evaluation import finetuning, sources
from flexqwen.evaluation.finetuning.tagging import Tagged, tag
from flexqwen.evaluation.metrics.entity_f1.entity_f1 import count_entities, entity_f1
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Task

NUM_TRAIN_EPOCHS = 15
SCENARIOS = ("selective", "total")
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


def bio(label: str, words: int) -> list[str]:
    """The labels of an entity's words."""
    return [f"B-{label}"] + [f"I-{label}"] * (words - 1)


def label_words(document: dict) -> Tagged:
    """A document of the files, whose entities are whole words, as words with B, I, O labels."""
    text = document["doc_text"]
    spans = [match.span() for match in WORD.finditer(text)]
    labels = ["O"] * len(spans)
    starts, ends = ({span[side]: number for number, span in enumerate(spans)} for side in (0, 1))
    for entity in document["entities"]:
        covered, start = entity["text"], entity["start_offset"]
        first = starts[start + len(covered) - len(covered.lstrip())]
        last = ends[start + len(covered.rstrip())]
        labels[first : last + 1] = bio(entity["label"], last + 1 - first)
    words = [(" " if start and text[start - 1].isspace() else "") + text[start:end] for start, end in spans]
    return Tagged(document["doc_id"], words, labels)


def read(scenario: str) -> dict[str, list[Tagged]]:
    """The documents of `train`, `dev` and `test` of a scenario."""
    names = {split: f"FirstHAREM-{scenario}-{split}" for split in ("train", "dev")} | {"test": f"MiniHAREM-{scenario}"}
    files = {split: json.loads(sources.read(f"harem/{name}.json")) for split, name in names.items()}
    return {split: list(map(label_words, documents)) for split, documents in files.items()}


def look_up_entities(train: list[Tagged], test: list[Tagged]) -> list[list[str]]:
    """The baseline's labels of the test documents."""
    classes = defaultdict(set)
    for text in train:
        words = [word.strip() for word in text.words]
        for label, start, end in get_entities(text.labels):
            classes[tuple(words[start : end + 1])].add(label)
    known = {words: next(iter(labels)) for words, labels in classes.items() if len(labels) == 1}
    longest = max(map(len, known), default=0)
    predicted = []
    for text in test:
        words = [word.strip() for word in text.words]
        labels = []
        while (place := len(labels)) < len(words):
            parts = (tuple(words[place : place + length]) for length in range(longest, 0, -1))
            part = next((part for part in parts if part in known), None)
            labels += bio(known[part], len(part)) if part else ["O"]
        predicted.append(labels)
    return predicted


def fine_tune_scenario(scenario: str, model_folder: str, context: Context) -> Result:
    """Entity F1; the interval draws documents."""
    splits, seen = finetuning.prepare_splits(read(scenario), lambda text: "".join(text.words), context)
    labels = ["O", *sorted({label for text in splits["train"] for label in text.labels} - {"O"})]
    gold = {split: [text.labels for text in texts] for split, texts in splits.items()}

    def count(split: str, logits: list[np.ndarray]) -> np.ndarray:
        return count_entities(gold[split], [[labels[number] for number in text.argmax(-1)] for text in logits])

    def score_dev(logits: list[np.ndarray]) -> float:
        return entity_f1(count("dev", logits))

    name = f"harem, {scenario}"
    outputs, details = tag(name, model_folder, splits, labels, score_dev, "entity_f1", context, NUM_TRAIN_EPOCHS)
    counts = np.array([count("test", logits) for logits in outputs])
    right, predicted, true = counts.sum(1).T
    precision, recall = ((right / total.clip(min=1)).tolist() for total in (predicted, true))
    details |= seen | {"precision": precision, "recall": recall, "documents": len(gold["test"])}
    baseline = entity_f1(count_entities(gold["test"], look_up_entities(splits["train"], splits["test"])))
    fields = {"baseline": baseline, "baseline_name": "entities of train, looked up", "n": int(true[0])}
    fields |= {"subset": scenario, "details": details}
    return finetuning.seeds_result(HAREM, "entity_f1", lambda _, drawn: entity_f1(drawn), counts[0], counts, **fields)


HAREM = Task(
    "harem",
    2,
    fine_tune=lambda *where: [fine_tune_scenario(scenario, *where) for scenario in SCENARIOS],
    sources="harem",
)
