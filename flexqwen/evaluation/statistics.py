"""The one bootstrap: 95 % percentile intervals (Efron, 1979) of a mean, and of a metric over seeds.

Items that depend on each other, such as the words of a sentence, are a cluster, and clusters are drawn whole (Davison
and Hinkley, 1997, 3.8). The draws are the same each time.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

SAMPLES = 1000

Metric = Callable[[int, np.ndarray], float]
"""From the number of a seed and the numbers of the units drawn (int64, with repetitions) to the metric's value."""


def resample(draw: Callable[[np.random.Generator], float]) -> list[float]:
    """The 95 % interval of a statistic: `draw` draws a sample with replacement and gives the statistic of it."""
    generator = np.random.default_rng(0)
    values = [draw(generator) for _ in range(SAMPLES)]
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def number_clusters(clusters: Sequence[Hashable]) -> np.ndarray:
    """Names of clusters as numbers from 0, in the order in which they come: int64, of the same length."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=np.int64)


def mean_interval(
    items: Sequence[float], weights: Sequence[float] | None = None, clusters: Sequence[Hashable] | None = None
) -> list[float]:
    """The interval of the mean, weighted by `weights`, over items, or over clusters of them.

    That of a paired difference (Efron and Tibshirani, 1993, chapter 8) is that of the mean of the items' differences.
    """
    items = np.asarray(items, dtype=np.float64)
    weights = np.ones_like(items) if weights is None else np.asarray(weights, dtype=np.float64)
    numbers = np.arange(len(items)) if clusters is None else number_clusters(clusters)
    products, totals = np.bincount(numbers, items * weights), np.bincount(numbers, weights)

    def draw(generator: np.random.Generator) -> float:
        chosen = generator.integers(0, len(totals), len(totals))
        return products[chosen].sum() / totals[chosen].sum()

    return resample(draw)


def over_seeds(
    metric: Metric, seeds: int, units: int, clusters: Sequence[Hashable] | None = None
) -> tuple[list[float], list[float]]:
    """The metric of each seed over all units, and the interval of their mean.

    Each sample draws as many seeds and as many units as there are, the same units for every seed. Units are what was
    drawn when the data were made: texts, not the words in them. Where several units depend on each other, `clusters`
    names the cluster that each is of.
    """
    everything = np.arange(units)
    numbers = everything if clusters is None else number_clusters(clusters)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])

    def draw(generator: np.random.Generator) -> float:
        drawn = np.concatenate([members[number] for number in generator.integers(0, len(members), len(members))])
        times = Counter(generator.integers(0, seeds, seeds).tolist())
        return sum(count * metric(seed, drawn) for seed, count in times.items()) / seeds

    return [float(metric(seed, everything)) for seed in range(seeds)], resample(draw)
