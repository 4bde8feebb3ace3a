"""Bootstrap intervals."""

import numpy as np
import pytest
from scipy.stats import binomtest

from flexqwen.evaluation.statistics import mean_interval


def test_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = mean_interval(generator.random(80) < 0.7)
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 99


@pytest.mark.parametrize("weights", [None, "lengths"])
def test_clusters_are_drawn_whole(weights):
    """Copies of an item tell no more than the item: with them in one cluster its interval stays as wide."""
    generator = np.random.default_rng(0)
    items = generator.random(100)
    weights = generator.integers(1, 9, 100) if weights else np.ones(100)
    alone = np.array(mean_interval(items, weights))
    copies, names = np.repeat(items, 9), np.repeat([f"c{n}" for n in range(100)], 9)
    together = mean_interval(copies, np.repeat(weights, 9), names.tolist())
    assert together == pytest.approx(alone)
    assert np.diff(together) == pytest.approx(3 * np.diff(mean_interval(copies, np.repeat(weights, 9))), rel=0.15)
    assert mean_interval(items, weights, range(100)) == alone.tolist()
    order = generator.permutation(900)  # those of one cluster need not stand together
    mixed = mean_interval(copies[order], np.repeat(weights, 9)[order], names[order].tolist())
    assert np.diff(mixed) == pytest.approx(np.diff(together), rel=0.15)


def test_a_share_of_few_items_is_not_certain():
    """Known answers: Wilson's interval of 2 of 2 and of 8 of 10 (Brown, Cai and DasGupta, 2001, equation 4)."""
    assert mean_interval([1.0, 1.0], bounds=(0, 1)) == pytest.approx([0.342, 1.0], abs=5e-4)
    wilson = binomtest(8, 10).proportion_ci(method="wilson")
    assert mean_interval([1.0] * 8 + [0.0] * 2, bounds=(0, 1)) == pytest.approx([wilson.low, wilson.high])
    assert mean_interval([1.0] * 20, clusters=[0, 1] * 10, bounds=(0, 1)) == pytest.approx([0.342, 1.0], abs=5e-4)
    low, high = mean_interval([1.0, 1.0], bounds=(-1, 1))  # two differences
    assert low < 0 and high == 1
    many = [0.0, 1.0] * 50
    assert mean_interval(many, bounds=(0, 1)) == mean_interval(many)
