"""Fine-tuned tagging of words: a label for each word of a text, however long. See docs/tasks.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import AutoModelForTokenClassification

from flexqwen.data.packing import IGNORE
from flexqwen.evaluation import finetuning

OVERLAP = 1 / 4


@dataclass(frozen=True)
class Tagged:
    """A text as words, each with the space before it, and the label of each."""

    id: str
    words: list[str]
    labels: list[str]


class Place(NamedTuple):
    """Where a word is learned and read: word `word` of text `text` at token `position` of row `row`."""

    text: int
    word: int
    row: int
    position: int


def cut_windows(lengths: Sequence[int], room: int, overlap: int) -> list[range]:
    """Stretches of words, of these lengths in tokens, that together hold each word, in as few as the overlap allows.

    Two share at most `overlap` tokens. A word that is longer than `room` has a window of its own.
    """
    found, start = [], 0
    while True:
        end, tokens = start, 0
        while end < len(lengths) and (end == start or tokens + lengths[end] <= room):
            tokens += lengths[end]
            end += 1
        found.append(range(start, end))
        if end == len(lengths):
            return found
        # The next one takes along what overlaps, but not so much that it holds nothing new.
        tokens = sum(lengths[start:end])
        while start < end and (tokens > overlap or tokens + lengths[end] > room or start == found[-1].start):
            tokens -= lengths[start]
            start += 1


def choose_windows(stretches: list[range]) -> list[int]:
    """For each word the window in which it stands farthest from an edge; the first of those that are even."""
    best: dict[int, tuple[int, int]] = {}  # distance from the nearer edge, and minus the window's number
    for number, stretch in enumerate(stretches):
        for word in stretch:
            here = min(word - stretch.start, stretch.stop - 1 - word), -number
            best[word] = max(best.get(word, here), here)
    return [-best[word][1] for word in sorted(best)]


def encode(tokenizer, texts: list[Tagged]) -> tuple[list[finetuning.Row], list[Place]]:
    """Rows without labels, and the place of every word that has a token (a tokenizer may drop odd characters)."""
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    rows, places = [], []
    for number, text in enumerate(texts):
        whole = tokenizer(text.words, is_split_into_words=True, add_special_tokens=False, verbose=False)
        lengths = np.bincount(whole.word_ids(), minlength=len(text.words)).tolist()
        stretches = cut_windows(lengths, room, int(OVERLAP * room))
        owner = choose_windows(stretches)
        for stretch_number, stretch in enumerate(stretches):
            words = text.words[stretch.start : stretch.stop]
            row = tokenizer(words, is_split_into_words=True, truncation=True, return_offsets_mapping=True)
            offsets = row.pop("offset_mapping")
            first: dict[int, int] = {}
            for position, word in reversed(list(enumerate(row.word_ids()))):
                if word is not None and (word not in first or words[word][slice(*offsets[position])].strip()):
                    first[word] = position
            for word, position in sorted(first.items()):
                if owner[stretch.start + word] == stretch_number:
                    places.append(Place(number, stretch.start + word, len(rows), position))
            rows.append(dict(row))
    return rows, places


def gather(outputs: list[np.ndarray], places: list[Place], texts: list[Tagged]) -> list[np.ndarray]:
    """The logits of each text's words, `(words, labels)`; a word without a token prefers label 0."""
    labels = outputs[0].shape[-1]
    gathered = [np.eye(1, labels).repeat(len(text.words), axis=0) for text in texts]
    for text, word, row, position in places:
        gathered[text][word] = outputs[row][position]
    return gathered


def tag(
    name, model_folder: str, splits: dict[str, list[Tagged]], labels: list[str], dev_score, dev_metric, context, epochs
) -> tuple[list[list[np.ndarray]], dict[str, Any]]:
    """Fine-tunes and predicts as `fine_tune`, but that logits are of the words of a text, of shape `(words, labels)`.

    `labels` are all there are; the first is what a word without a token gets.
    """
    tokenizer = finetuning.load_tokenizer(model_folder, context)
    numbers = {label: number for number, label in enumerate(labels)}
    rows, places = finetuning.encode_splits(encode, tokenizer, splits)
    for row in rows["train"]:
        row["labels"] = [IGNORE] * len(row["input_ids"])
    for text, word, row, position in places["train"]:
        rows["train"][row]["labels"][position] = numbers[splits["train"][text].labels[word]]
    head = finetuning.Head(AutoModelForTokenClassification, {"num_labels": len(labels)})
    choices = lambda outputs: dev_score(gather(outputs, places["dev"], splits["dev"])), dev_metric, context, epochs
    outputs, details = finetuning.fine_tune(name, model_folder, head, tokenizer, rows, *choices)
    details["test_words_without_tokens"] = sum(len(text.words) for text in splits["test"]) - len(places["test"])
    return [gather(seed, places["test"], splits["test"]) for seed in outputs], details
