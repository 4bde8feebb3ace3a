"""What likelihood tasks share: an item, the context of an evaluation, and how a choice is counted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TIE = 1e-4
"""Scores that differ by no more are equal: nats, the precision to which scores are known."""


@dataclass(frozen=True)
class Context:
    """What an evaluation is told besides its model.

    Attributes:
        dataset: folder made by carolina_originality.py; split: of its held-out config; documents: of it, at most.
        within_word: mask all tokens of a word together.
        limit: items of a task, at most.
    """

    dataset: str = "carolina_originality"
    split: str = "test"
    documents: int = 500
    within_word: bool = False
    limit: int | None = None


@dataclass
class Item:
    """One item of a task.

    Attributes:
        text: what a model must not have been trained on; looked for in the training splits.
        group: the subset that it belongs to.
        data: what the task needs to score it.
    """

    id: str
    text: str
    group: str = "all"
    data: dict[str, Any] = field(default_factory=dict)


def some(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, always the same, in their order."""
    if limit is None or len(items) <= limit:
        return items
    chosen = sorted(items, key=lambda item: hashlib.sha256(f"some|{item.id}".encode()).digest())[:limit]
    kept = {item.id for item in chosen}
    return [item for item in items if item.id in kept]


def credit(scores: Sequence[float], right: int) -> tuple[float, bool]:
    """What choosing the highest score is worth, and whether there was a tie.

    1 if the right one is highest, 0 if not; k equal highest scores share the point, so that a model that cannot tell
    them apart is at chance.
    """
    scores = np.asarray(scores, dtype=np.float64)
    best = scores >= scores.max() - TIE
    return float(best[right]) / best.sum(), bool(best.sum() > 1)
