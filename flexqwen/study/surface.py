"""What a sweep over shares of causal rows and repetitions says: the best share, and a law of overfitting."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flexqwen.study.cells import Measure, Results


def rank_values(results: Results, measure: Measure, mode: str, line: Any) -> list[Any]:
    """Values of the sweep's axis on one line: the best, then those that are not clearly worse, in their order."""
    found = {value: results.swept(measure, mode, value, line) for value in results.sweep_axes()[0]}
    found = {value: estimate.value for value, estimate in found.items() if estimate}
    if not found:
        return []
    best = (min if measure.lower_is_better else max)(found, key=found.get)
    sides = {value: (results.place(value, line)[0], results.place(best, line)[0]) for value in found if value != best}
    gaps = {value: results.average(measure, [pair], mode) for value, pair in sides.items()}
    return [best, *(value for value, gap in gaps.items() if gap and not gap.is_clear)]


@dataclass(frozen=True)
class Law:
    """What repetition costs: the excess of a loss over one repetition, at the same model and tokens seen.

    P (R - 1) N / U for R repetitions, N parameters and U unique tokens, after arXiv 2605.01640, whose two exponents are
    1 here; P by least squares. `exponent` is the one that fits best in logarithms where it is that of both.

    Attributes:
        excess: of each number of repetitions above 1, what was measured.
        miss: the largest share of a measured excess that the law misses; the plan calls more than 0.5 a failure.
    """

    coefficient: float
    exponent: float | None
    excess: dict[int, float]
    miss: float

    def predict(self, repetitions: float, parameters: float, unique_tokens: float) -> float:
        """The excess of another run, of the same share and mode."""
        return self.coefficient * burden(repetitions, parameters, unique_tokens)


def burden(repetitions: float, parameters: float, unique_tokens: float) -> float:
    """(R - 1) N / U."""
    return (repetitions - 1) * parameters / unique_tokens


def fit_law(results: Results, measure: Measure, mode: str, value: Any) -> Law | None:
    """The law for one value of a sweep whose lines are repetitions; None without one repetition and two others."""
    found = {line: results.swept(measure, mode, value, line) for line in sorted(results.sweep_axes()[1])}
    found = {line: estimate.value for line, estimate in found.items() if estimate}
    if 1 not in found or len(found) < 3:
        return None
    excess = {line: loss - found[1] for line, loss in found.items() if line > 1}
    content = next(iter(results.cells.values()))
    parameters, tokens = content["parameters"], content["cost"]["tokens"]
    x = np.array([burden(line, parameters, tokens / line) for line in excess])
    y = np.array(list(excess.values()))
    coefficient, rising = float(x @ y / (x @ x)), y > 0
    exponent = float(np.polyfit(np.log(x[rising]), np.log(y[rising]), 1)[0]) if rising.sum() > 1 else None
    return Law(coefficient, exponent, excess, float(np.max(np.abs(coefficient * x - y) / np.abs(y))))
