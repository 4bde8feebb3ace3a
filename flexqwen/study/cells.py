"""What the files of a study's cells say: figures and differences over seeds, with their intervals.

A figure of several seeds is the mean of the seeds' figures. Its interval joins the chance of the items and that of the
seeds (`flexqwen.evaluation.statistics.joint_interval`). Differences are taken seed by seed and item by item.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from flexqwen.cli import InputError
from flexqwen.evaluation.statistics import joint_interval, joint_p_value
from flexqwen.files import digest
from flexqwen.study.grid import Cell, Comparison, Planned, Point, Study, Sweep, replace_values
from flexqwen.study.runner import ITEMS, read_cell, read_result

ENOUGH = 20  # effective items that a bootstrap needs to be trusted
MODES = ("causal", "masked", "fused", "finetuned")
LOG = "log/validation"  # key of the loss in the log, where nothing else is measured
BITS = ("bits per byte", True)  # unit, and that less is better
BUDGET = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "sequence_length", "phases")
# GPT-BERT's ratio sweep (arXiv 2410.24159): BLiMP accuracy in %, scored bidirectionally and causally.
GPT_BERT = {"1:0": (74.6, 76.6), "3:1": (82.4, 77.9), "1:1": (83.9, 79.2), "1:3": (84.0, 78.4)}
GPT_BERT |= {"1:7": (84.8, 78.1), "0:1": (84.3, 66.6)}


@dataclass(frozen=True)
class Measure:
    """What is reported of a cell: a metric of a task's items."""

    key: str  # of items.json
    title: str
    unit: str
    lower_is_better: bool
    scale: float = 1.0  # with which it is shown
    digits: int = 3
    subset: str | None = None  # of the items; all of them by default
    least: float = 0.0  # that it can be


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, over seeds."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether its interval leaves out 0, and there are several seeds."""
        return self.seeds > 1 and not self.low <= 0 <= self.high


@dataclass
class Results:
    study: Study
    cells: dict[Cell, dict]  # those that are finished, with their files' content
    items: dict  # content of items.json

    @property
    def points(self) -> list[Point]:
        """Those of the finished cells, in the grid's order."""
        return list(dict.fromkeys(cell.point for cell in self.cells))

    @property
    def source(self) -> str:
        return digest([self.items, list(self.cells.values())])[:12]

    def seeds(self, *points: Point) -> list[int]:
        """The seeds for which all of these are finished."""
        return [seed for seed in self.study.seeds if all(Cell(point, seed) in self.cells for point in points)]

    def values(self, measure: Measure, point: Point, seed: int, mode: str) -> np.ndarray | None:
        """float64 `(items,)`: what each item contributes; None if the cell is not measured so."""
        content = self.cells[Cell(point, seed)]
        if measure.key == LOG:
            is_there = mode in self.study.modes(point) and mode in content["curve"][-1]
            return np.array([content["curve"][-1][mode]]) if is_there else None
        wanted = (*measure.key.split("/"), mode)
        rows = [row for row in content["figures"] if (row["task"], row["subset"], row["mode"]) == wanted]
        return next((np.array(row["items"]) for row in rows if "items" in row), None)

    def weights(self, measure: Measure) -> np.ndarray:
        """float64 `(items,)`: what each item weighs in the mean, without regard to the measure's subset."""
        item = self.items[measure.key]
        return np.array(item["weights"] or [1] * len(item["ids"]), dtype=np.float64)

    def sample(
        self, measure: Measure, groups: Sequence[Sequence[Point]], mode: str
    ) -> tuple[np.ndarray, np.ndarray, list] | None:
        """The mean over groups for each seed and item: of one point its figure, of more `difference`.

        Returns float64 `(seeds, items)`, weights and clusters of the items; None if no seed has all of it.
        """
        samples, item, weights = [], self.items[measure.key], self.weights(measure)
        for seed in self.seeds(*itertools.chain(*groups)) if groups else []:
            found = [[self.values(measure, point, seed, mode) for point in group] for group in groups]
            if any(value is None for values in found for value in values):
                return None
            samples.append(np.mean([difference(values) for values in found], axis=0))
        if measure.subset is not None:
            weights = weights * np.isin(np.arange(len(weights)), item["subsets"][measure.subset])
        return (np.stack(samples), weights, item["clusters"] or item["ids"]) if samples else None

    def average(self, measure: Measure, groups: Sequence[Sequence[Point]], mode: str) -> Estimate | None:
        """The mean over groups, as `sample`; None if not measured."""
        sample = self.sample(measure, groups, mode)
        return sample and Estimate(*joint_interval(*sample), len(sample[0]))

    def test(self, plan: Planned) -> tuple[Estimate, Estimate, float] | None:
        """A planned comparison by the pooled variance of the seeds, by its own, and its p value; None if not made."""
        measure, sides = self.find_measure(plan.measure), self.study.sides(plan)
        if not measure or not (sample := self.sample(measure, [sides], plan.mode)):
            return None
        own, pooled = self.average(measure, [sides], plan.mode), self.pool_variance(measure, plan.mode)
        if own.seeds < max(2, len(self.study.seeds)):
            return own, own, 1.0
        pooled = pooled[0] * len(sides) / 2, pooled[1]  # that of a difference of two is taken as twice as large
        bounds = [bound / measure.scale for bound in plan.bounds if math.isfinite(bound)]
        estimate = Estimate(*joint_interval(*sample, pooled), own.seeds)
        return estimate, own, joint_p_value(*sample, pooled, bounds)

    def pool_variance(self, measure: Measure, mode: str) -> tuple[float, int] | None:
        """The seeds' variance of a difference, the mean over all planned pairs so measured; its degrees of freedom."""
        sides = [self.study.sides(plan) for plan in self.study.planned]
        pairs = dict.fromkeys(tuple(pair) for four in sides for pair in (four[:2], four[2:]) if pair)
        samples = [self.sample(measure, [pair], mode) for pair in pairs if self.is_measured(measure, pair, mode)]
        freedom = [len(values) - 1 for values, _, _ in samples]
        spread = [(values @ weights / weights.sum()).var() * len(values) for values, weights, _ in samples]
        return (float(sum(spread)) / sum(freedom), sum(freedom)) if sum(freedom) else None

    def find_measure(self, key: str) -> Measure | None:
        """That of items.json's key; None where no finished cell has it."""
        return next((measure for measure in self.measures if measure.key == key), None)

    def mean(self, measure: Measure, points: Sequence[Point], mode: str) -> Estimate | None:
        """The figure of a point, or the mean over several; None where it is not measured."""
        estimate = self.average(measure, [(point,) for point in points], mode)
        most = math.inf if measure.lower_is_better else 1.0  # Student's t on two seeds knows no bounds
        return estimate and replace(estimate, low=max(estimate.low, measure.least), high=min(estimate.high, most))

    def compare(
        self, measure: Measure, comparison: Comparison, pair: tuple[Any, Any], mode: str, by: Any = None
    ) -> Estimate | None:
        """First minus second value of an axis: the mean over the points that have both and are measured so.

        With `by`, of those alone where the comparison's second axis has this value.
        """
        firsts = self.at(**{comparison.axis: pair[0]}, **({} if by is None else {comparison.by: by}))
        pairs = [(first, replace_values(first, **{comparison.axis: pair[1]})) for first in firsts]
        pairs = [sides for sides in pairs if sides[0] != sides[1]]  # a point of another part, which lacks the axis
        return self.average(measure, [sides for sides in pairs if self.is_measured(measure, sides, mode)], mode)

    def is_measured(self, measure: Measure, points: Sequence[Point], mode: str) -> bool:
        """Whether all of these are, with one seed at least."""
        seeds = self.seeds(*points)[:1]
        return bool(seeds) and all(self.values(measure, point, seeds[0], mode) is not None for point in points)

    @property
    def measures(self) -> list[Measure]:
        """All that is measured: held-out splits, then the tasks; or the losses in the log."""
        special = {
            LOG: ("validation loss", "nats per token", True),
            "memorisation/continuations": ("7-grams of training documents in continuations", "%", True, 100, 2),
            "memorisation/documents": ("held-out minus training documents", *BITS, 1.0, 3, None, -math.inf),
        }
        found = []
        for key in self.items:
            task, subset = key.split("/", 1)
            title = f"held-out `{subset}`" if task == "bits_per_byte" else f"`{task}`"
            usual = BITS if task.startswith("bits_per_byte") else ("accuracy, %", False, 100, 1)
            found.append(Measure(key, *special.get(key, (title, *usual))))
        return found

    @property
    def main_measures(self) -> list[Measure]:
        """Those whose bytes do not lie in a few long documents."""
        return [measure for measure in self.measures if self.effective(measure) >= ENOUGH] or self.measures

    @property
    def with_subsets(self) -> list[Measure]:
        """Those whose items are of several kinds."""
        return [measure for measure in self.measures if len(self.items[measure.key]["subsets"]) > 1]

    def effective(self, measure: Measure) -> float:
        """How many items of equal weight would make a mean as certain (Kish's effective sample size)."""
        weights = self.weights(measure)
        return float(weights.sum() ** 2 / (weights**2).sum())

    def at(self, **values) -> list[Point]:
        """The finished points that have these axes or options."""
        finished = set(self.points)
        return [point for point in self.study.select(**values) if point in finished]

    def alike(self) -> dict[Any, list[Point]]:
        """For each value of the main axis, the points that differ in it alone and are there for all values."""
        axis = self.study.main_axis
        values = dict.fromkeys(dict(point)[axis] for point in self.points if axis in dict(point))
        first = self.at(**{axis: next(iter(values))})
        rows = [[replace_values(point, **{axis: value}) for value in values] for point in first]
        rows = [row for row in rows if self.seeds(*row)] or rows[:1]
        return dict(zip(values, map(list, zip(*rows, strict=True)), strict=True))

    @property
    def sweep(self) -> Sweep | None:
        """The study's, if some of its cells are finished."""
        return self.study.sweep if self.study.sweep and self.at(**self.study.sweep.where) else None

    def sweep_axes(self) -> tuple[list, list]:
        """Of the sweep, the values on its horizontal axis, falling if shares, and the values of its lines."""
        plan, value = self.study.sweep, self.study.value
        points = self.at(**plan.where)
        over = list(dict.fromkeys(value(point, plan.over) for point in points))
        lines = list(dict.fromkeys(value(point, plan.lines) for point in points)) if plan.lines else [None]
        lines = sorted(lines) if plan.lines == "repetitions" else lines
        return sorted(over, reverse=True) if plan.over == "causal_fraction" else over, lines

    def place(self, value: Any, line: Any) -> list[Point]:
        """The points of the sweep that lie there."""
        plan = self.study.sweep
        return self.at(**{**plan.where, plan.over: value} | ({plan.lines: line} if plan.lines else {}))

    def swept(self, measure: Measure, mode: str, value: Any, line: Any) -> Estimate | None:
        """Of one place on a line of the sweep: the mean over all points that lie there."""
        return self.mean(measure, self.place(value, line), mode)


def difference(values: Sequence[np.ndarray]) -> np.ndarray:
    """Of one its value; of two the first minus the second; of four the first difference minus the second one."""
    half = len(values) // 2
    return difference(values[:half]) - difference(values[half:]) if half else values[0]


def load(study: Study) -> Results:
    """Reads the finished cells; `InputError` where there are none, or they differ in what must be equal."""
    cells = {cell: content for cell in study.cells if (content := read_cell(study, cell)) is not None}
    items, first = read_result(study, ITEMS), {}
    if not cells or items is None:
        what = f"{study.results / ITEMS} is missing" if cells else f"no finished cells in {study.results / 'cells'}"
        raise InputError(f"{what}; run python -m flexqwen study run {study.path}")
    for cell, content in cells.items():
        budget = str([study.options(cell.point).get(name) for name in BUDGET])
        equal = {
            "study": content["made_by"]["study"],
            **{f"version of {row['task']}": row["version"] for row in content["figures"]},
            f"tokens at {budget}": content["cost"]["tokens"],
        }
        found = content["made_by"].get("items", digest(items))  # older cells name the whole file, or nothing
        if found != (digest(items) if isinstance(found, str) else {key: digest(items.get(key))[:12] for key in found}):
            what = f"it was measured on other items than {study.results / ITEMS} names"
            raise InputError(f"{study.cell_file(cell)}: {what}")
        for name, value in equal.items():
            if value != first.setdefault(name, value):
                raise InputError(f"{study.cell_file(cell)}: {name} is {value}, but {first[name]} in the cells before")
    return Results(study, cells, items or {LOG: {"ids": [LOG], "weights": None, "clusters": None, "subsets": {}}})


def format_value(value: Any) -> str:
    """A value of a sweep as it is shown: a share of causal rows as causal:masked."""
    return f"{value.numerator}:{value.denominator - value.numerator}" if isinstance(value, Fraction) else str(value)
