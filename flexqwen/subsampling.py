"""The one way to take fewer of something: documents of a corpus, items of a task, examples to fine-tune on."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
FORMAT = 2  # raise it where the same items, limit and seed give another choice; 1 was the order of SHA-256


def subsample(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """At most `limit` of the items, drawn by the seed, in their order; a smaller limit takes a part of the same."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 0]).permutation(len(items))[:limit]
    return [items[place] for place in np.sort(chosen)]
