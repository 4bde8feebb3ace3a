"""A metric over seeds and items, with its bootstrap interval."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import stats

from flexqwen.evaluation.results import numbered

SAMPLES = 1000

Metric = Callable[[int, np.ndarray], float]
"""From the number of a seed and the numbers of the units drawn (int64, with repetitions) to the metric's value."""


def over_seeds(
    metric: Metric, seeds: int, units: int, clusters: Sequence[Hashable] | None = None
) -> tuple[list[float], list[float]]:
    """The metric of each seed over all units, and the 95 % bootstrap interval of their mean.

    Each of 1,000 samples draws as many seeds and as many units as there are, both with replacement, the same units for
    every seed. Units are what was drawn when the data were made: texts, not the words in them. Where several units
    depend on each other, `clusters` names the cluster that each is of, and clusters are drawn whole.
    """
    everything = np.arange(units)
    values = [float(metric(seed, everything)) for seed in range(seeds)]
    numbers = everything if clusters is None else numbered(clusters)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    random = np.random.default_rng(0)
    means = []
    for _ in range(SAMPLES):
        drawn = np.concatenate([members[number] for number in random.integers(0, len(members), len(members))])
        times = Counter(random.integers(0, seeds, seeds).tolist())
        means.append(sum(count * metric(seed, drawn) for seed, count in times.items()) / seeds)
    return values, [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


JOINT_SAMPLES = 2000


def joint_interval(values: np.ndarray, weights: np.ndarray, clusters: Sequence[Hashable]) -> tuple[float, float, float]:
    """The mean over seeds of a mean of items, and its 95 % interval: chance of the items and of the seeds.

    The two are independent: a percentile bootstrap over clusters of items, drawn whole, of the mean over seeds; and
    Student's t on the seeds' figures. Their half-widths are added as the root of the sum of their squares.

    Args:
        values: float64 `(seeds, items)`; differences of two models are taken seed by seed and item by item.
        weights: of the items in their mean, `(items,)`.

    Returns:
        The mean and the interval's bounds.
    """
    by_seed = values @ weights / weights.sum()
    names = np.unique(clusters, return_inverse=True)[1]
    total, sums = np.bincount(names, weights), np.bincount(names, values.mean(0) * weights)
    drawn = _drawn(len(total))
    with np.errstate(invalid="ignore"):  # a sample may hold no item of a subset
        low, high = np.nanpercentile((drawn @ sums) / (drawn @ total), [2.5, 97.5])
    seeds, value = len(by_seed), float(by_seed.mean())
    spread = stats.t.ppf(0.975, seeds - 1) * by_seed.std(ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
    return value, value - math.hypot(value - low, spread), value + math.hypot(high - value, spread)


@functools.lru_cache(maxsize=4)
def _drawn(count: int) -> np.ndarray:
    """How often each cluster is drawn in each sample, the same for all figures: `(samples, count)`."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), JOINT_SAMPLES)
