"""A metric over seeds and items, with its bootstrap interval."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

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
