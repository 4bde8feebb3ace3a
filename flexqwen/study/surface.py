"""What a sweep over shares of causal rows and repetitions says: the best share, and a law of overfitting."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from flexqwen.study.cells import Estimate, Measure, Results


def rank_values(results: Results, measure: Measure, mode: str, line: Any) -> list[Any]:
    """Values of the sweep's axis on one line: the best, then those that are not clearly worse over several seeds."""
    found = {value: results.swept(measure, mode, value, line) for value in results.sweep_axes()[0]}
    found = {value: estimate.value for value, estimate in found.items() if estimate}
    if not found:
        return []
    best = (min if measure.lower_is_better else max)(found, key=found.get)
    sides = {value: (results.place(value, line)[0], results.place(best, line)[0]) for value in found if value != best}
    gaps = {value: results.average(measure, [pair], mode) for value, pair in sides.items()}
    return [best, *(value for value, gap in gaps.items() if gap and gap.seeds > 1 and not gap.is_clear)]


@dataclass(frozen=True)
class Law:
    """What repetition costs: the excess of a loss over the fewest repetitions, at the same model and tokens seen.

    P (R - 1) N / U for R repetitions, N parameters and U unique tokens, after arXiv 2605.01640, whose two exponents are
    1 here; P by least squares for each seed. Intervals are Student's t on the seeds.
    """

    coefficient: Estimate
    exponent: float | None  # the one of both that fits best in logarithms; None where the fewest are not one
    excess: dict[int, Estimate]  # of each greater number of repetitions, what was measured
    miss: float  # the largest share of a mean excess that the law misses; the plan calls more than 0.5 a failure

    def predict(self, repetitions: float, parameters: float, unique_tokens: float) -> Estimate:
        """The excess over one repetition of another run, of the same share and mode."""
        law, factor = self.coefficient, burden(repetitions, parameters, unique_tokens)
        return Estimate(law.value * factor, law.low * factor, law.high * factor, law.seeds)


def burden(repetitions: float, parameters: float, unique_tokens: float) -> float:
    return (repetitions - 1) * parameters / unique_tokens


def fit_law(results: Results, measure: Measure, mode: str, value: Any) -> Law | None:
    """The law for one value of a sweep whose lines are repetitions; None with fewer than three of them."""
    places = {line: results.place(value, line)[:1] for line in sorted(results.sweep_axes()[1])}
    places = {line: here[0] for line, here in places.items() if here and results.is_measured(measure, here, mode)}
    if len(places) < 3 or not (seeds := results.seeds(*places.values())):
        return None
    weights, (least, *others) = results.weights(measure), places
    losses = np.array([[results.values(measure, here, seed, mode) for here in places.values()] for seed in seeds]) @ (
        weights / weights.sum()
    )
    parameters = next(content["parameters"] for cell, content in results.cells.items() if cell.point == places[least])
    unique = {line: results.study.value(here, "unique_tokens") for line, here in places.items()}
    burdens = np.array([burden(line, parameters, unique[line]) for line in places])
    x, y = burdens[1:] - burdens[0], losses[:, 1:] - losses[:, :1]
    fitted, mean = y @ x / (x @ x), y.mean(0)
    rising = mean > 0
    is_free = least == 1 and rising.sum() > 1
    exponent = float(np.polyfit(np.log(x[rising]), np.log(mean[rising]), 1)[0]) if is_free else None
    with np.errstate(divide="ignore", invalid="ignore"):
        miss = float(np.nanmax(np.abs(fitted.mean() * x - mean) / np.abs(mean), initial=0.0))
    return Law(average_seeds(fitted), exponent, dict(zip(others, map(average_seeds, y.T), strict=True)), miss)


def average_seeds(figures: np.ndarray) -> Estimate:
    """The mean of the seeds' figures with Student's t interval; of one seed alone, the figure."""
    value, count = float(figures.mean()), len(figures)
    width = stats.t.ppf(0.975, count - 1) * float(stats.sem(figures)) if count > 1 else 0.0
    return Estimate(value, value - width, value + width, count)
