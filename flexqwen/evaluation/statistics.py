"""The one bootstrap: 95 % percentile intervals (Efron, 1979) of a mean, and of a metric over seeds; Wilson's for few.

Items that depend on each other, such as the words of a sentence, are a cluster, and clusters are drawn whole (Davison
and Hinkley, 1997, 3.8). The draws are the same each time.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy import optimize, stats

SAMPLES = 1000
FEW = 30  # clusters

Metric = Callable[[int, np.ndarray], float]
"""From the number of a seed and the numbers of the units drawn (int64, with repetitions) to the metric's value."""
Clusters = Sequence[Hashable]
Pooled = tuple[float, int] | None
"""Variance of a seed's figure and its degrees of freedom, where more than the seeds at hand tell it."""


def resample(draw: Callable[[np.random.Generator], float]) -> list[float]:
    """The 95 % interval of a statistic: `draw` draws a sample with replacement and gives the statistic of it."""
    generator = np.random.default_rng(0)
    values = [draw(generator) for _ in range(SAMPLES)]
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def number_clusters(clusters: Clusters) -> np.ndarray:
    """Names of clusters as numbers from 0, in the order in which they come: int64, of the same length."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=np.int64)


def mean_interval(
    items: Sequence[float], weights: Sequence[float] | None = None, clusters: Clusters | None = None, bounds=None
) -> list[float]:
    """The interval of the mean, weighted by `weights`, over items, or over clusters of them.

    With `bounds`, between which every item lies, and fewer than FEW clusters, it is Wilson's (1927): a bootstrap of two
    right answers would say [1, 1]. Values between the bounds vary no more than its binomial.

    That of a paired difference (Efron and Tibshirani, 1993, chapter 8) is that of the mean of the items' differences.
    """
    items = np.asarray(items, dtype=np.float64)
    weights = np.ones_like(items) if weights is None else np.asarray(weights, dtype=np.float64)
    numbers = np.arange(len(items)) if clusters is None else number_clusters(clusters)
    products, totals = np.bincount(numbers, items * weights), np.bincount(numbers, weights)
    low, high = bounds or (0, 0)
    if len(totals) < FEW and low <= (mean := products.sum() / totals.sum()) <= high and low < high:
        share, n, z = (mean - low) / (high - low), len(totals), stats.norm.ppf(0.975)
        middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
        ends = min(share, (middle - half) / (1 + z**2 / n)), max(share, (middle + half) / (1 + z**2 / n))
        return [float(low + (high - low) * end) for end in ends]

    def draw(generator: np.random.Generator) -> float:
        chosen = generator.integers(0, len(totals), len(totals))
        return products[chosen].sum() / totals[chosen].sum()

    return resample(draw)


def over_seeds(
    metric: Metric, seeds: int, units: int, clusters: Clusters | None = None
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


JOINT_SAMPLES = 2000


def joint_interval(
    values: np.ndarray, weights: np.ndarray, clusters: Clusters, pooled: Pooled = None
) -> tuple[float, float, float]:
    """The mean over seeds of a mean of items, and its 95 % interval: chance of the items and of the seeds.

    The two are independent: a percentile bootstrap over clusters of items, drawn whole, of the mean over seeds; and
    Student's t on the seeds' figures. Their half-widths are added as the root of the sum of their squares.

    `values` are float64 `(seeds, items)`; differences of two models are taken seed by seed and item by item. `weights`,
    `(items,)`, are those of the items in their mean.
    """
    by_seed, drawn = _draw_means(values, weights, clusters)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    value, (error, freedom) = float(by_seed.mean()), _seed_error(by_seed, pooled)
    spread = stats.t.ppf(0.975, freedom) * error
    return value, value - math.hypot(value - low, spread), value + math.hypot(high - value, spread)


def joint_p_value(
    values: np.ndarray, weights: np.ndarray, clusters: Clusters, pooled: Pooled = None, bounds: Sequence[float] = (0.0,)
) -> float:
    """One minus the level of the widest `joint_interval` that leaves out all bounds, with normal chance of the items.

    Arguments as there. With two bounds it is large unless the mean is surely between them, or surely beyond one. Where
    nothing varies, 0 for a mean that is no bound.
    """
    by_seed, drawn = _draw_means(values, weights, clusters)
    value, spread = min(abs(float(by_seed.mean()) - bound) for bound in bounds), float(np.nanstd(drawn))
    error, freedom = _seed_error(by_seed, pooled)

    def leaves_out(log_p: float) -> float:
        tail = math.exp(log_p) / 2
        return value - math.hypot(stats.norm.isf(tail) * spread, stats.t.isf(tail, freedom) * error)

    if value == 0 or spread == error == 0:
        return float(value == 0)
    smallest = -50.0
    return 0.0 if leaves_out(smallest) > 0 else math.exp(optimize.brentq(leaves_out, smallest, 0.0))


def _seed_error(by_seed: np.ndarray, pooled: Pooled) -> tuple[float, int]:
    """Standard error of the mean over seeds, 0 for one alone, and its degrees of freedom."""
    if len(by_seed) < 2:
        return 0.0, 1
    variance, freedom = pooled or (by_seed.var(ddof=1), len(by_seed) - 1)
    return math.sqrt(variance / len(by_seed)), freedom


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) correction for the number of tests: what is at most 0.05 is shown, at 5 % for all together."""
    order, count, adjusted = np.argsort(p_values, kind="stable"), len(p_values), np.empty(len(p_values))
    steps = [min(1.0, (count - rank) * p_values[place]) for rank, place in enumerate(order)]
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def _draw_means(values: np.ndarray, weights: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the items for each seed, and in each bootstrap sample of the clusters the mean over seeds."""
    names = np.unique(clusters, return_inverse=True)[1]
    total, sums = np.bincount(names, weights), np.bincount(names, values.mean(0) * weights)
    drawn = _drawn(len(total))
    with np.errstate(invalid="ignore"):  # a sample may hold no item of a subset
        return values @ weights / weights.sum(), (drawn @ sums) / (drawn @ total)


@functools.lru_cache(maxsize=4)
def _drawn(count: int) -> np.ndarray:
    """How often each cluster is drawn in each sample, the same for all figures: `(samples, count)`."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), JOINT_SAMPLES)
