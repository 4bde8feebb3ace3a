"""What the files of a study's cells say: figures and differences over seeds, with their intervals.

A figure of several seeds is the mean of the seeds' figures. Its interval joins the chance of the items and that of the
seeds (`flexqwen.evaluation.statistics.joint_interval`). Differences are taken seed by seed and item by item.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from flexqwen.cli import InputError
from flexqwen.evaluation.statistics import joint_interval
from flexqwen.files import digest, read_json
from flexqwen.study.grid import Cell, Comparison, Point, Study, replace_values, rest_of
from flexqwen.study.runner import ITEMS, read_cell

ENOUGH = 20  # effective items that a bootstrap needs to be trusted
MODES = ("causal", "masked", "fused")
LOG = "log/validation"  # key of the loss in the log, where nothing else is measured
BUDGET = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "sequence_length", "phases")
# GPT-BERT's ratio sweep (arXiv 2410.24159): BLiMP accuracy in %, scored bidirectionally and causally.
GPT_BERT = {
    "1:0": (74.6, 76.6),
    "3:1": (82.4, 77.9),
    "1:1": (83.9, 79.2),
    "1:3": (84.0, 78.4),
    "1:7": (84.8, 78.1),
    "0:1": (84.3, 66.6),
}


@dataclass(frozen=True)
class Measure:
    """What is reported of a cell: a metric of a task's items.

    Attributes:
        key: of items.json.
        subset: of its items; all of them by default.
        scale: factor with which it is shown.
    """

    key: str
    title: str
    unit: str
    lower_is_better: bool
    scale: float = 1.0
    digits: int = 3
    subset: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure, or a difference of two, over seeds."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether its interval leaves out 0, and there are seeds to tell their chance from."""
        return self.seeds > 1 and not self.low <= 0 <= self.high


@dataclass
class Results:
    """What the cells' files hold.

    Attributes:
        cells: of those that are finished, their files' content.
        items: content of items.json.
    """

    study: Study
    cells: dict[Cell, dict]
    items: dict

    @property
    def points(self) -> list[Point]:
        """Those of the finished cells, in the grid's order."""
        return list(dict.fromkeys(cell.point for cell in self.cells))

    @property
    def source(self) -> str:
        """Digest of the files."""
        return digest([self.items, list(self.cells.values())])[:12]

    def seeds(self, *points: Point) -> list[int]:
        """The seeds for which all of these are finished."""
        return [seed for seed in self.study.seeds if all(Cell(point, seed) in self.cells for point in points)]

    def values(self, measure: Measure, point: Point, seed: int, mode: str) -> np.ndarray | None:
        """float64 `(items,)`: what each item contributes; None if the cell is not measured so."""
        content = self.cells[Cell(point, seed)]
        if measure.key == LOG:
            return (
                np.array([content["curve"][-1][mode]]) if mode in self.study.modes(point) and mode != "fused" else None
            )
        task, subset = measure.key.split("/")
        for row in content["figures"]:
            if (row["task"], row["subset"], row["mode"]) == (task, subset, mode) and "items" in row:
                return np.array(row["items"])
        return None

    def estimate(self, measure: Measure, samples: Sequence[np.ndarray]) -> Estimate:
        """Of `(items,)` for each seed."""
        item = self.items[measure.key]
        weights = np.ones(len(item["ids"])) if item["weights"] is None else np.array(item["weights"])
        if measure.subset is not None:
            inside = np.zeros(len(weights))
            inside[item["subsets"][measure.subset]] = 1
            weights = weights * inside
        return Estimate(*joint_interval(np.stack(samples), weights, item["clusters"] or item["ids"]), len(samples))

    def mean(self, measure: Measure, points: Sequence[Point], mode: str) -> Estimate | None:
        """The figure of a point, or the mean over several; None where it is not measured."""
        found = [[self.values(measure, point, seed, mode) for point in points] for seed in self.seeds(*points)]
        if not points or not found or any(value is None for values in found for value in values):
            return None
        estimate = self.estimate(measure, [np.mean(values, axis=0) for values in found])
        most = math.inf if measure.lower_is_better else 1.0  # Student's t on two seeds knows no bounds
        return replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, most))

    def difference(self, measure: Measure, pairs: Sequence[tuple[Point, Point]], mode: str) -> Estimate | None:
        """First minus second point of each pair, the mean over the pairs; None where they are not measured."""
        samples = []
        for seed in self.seeds(*(point for pair in pairs for point in pair)) if pairs else []:
            sides = [[self.values(measure, point, seed, mode) for point in pair] for pair in pairs]
            if any(side is None for pair in sides for side in pair):
                return None
            samples.append(np.mean([first - second for first, second in sides], axis=0))
        return self.estimate(measure, samples) if samples else None

    def compare(
        self, measure: Measure, comparison: Comparison, pair: tuple[Any, Any], mode: str, by: Any = None
    ) -> Estimate | None:
        """A difference between two values of an axis, the mean over the points that have both and are measured so.

        Args:
            by: only where the comparison's second axis has this value.
        """
        axis, pairs = comparison.axis, []
        for point in self.points:
            other = replace_values(point, **{axis: pair[1]})
            if dict(point).get(axis) == pair[0] and (by is None or dict(point).get(comparison.by) == by):
                seeds = self.seeds(point, other)
                if seeds and all(self.values(measure, side, seeds[0], mode) is not None for side in (point, other)):
                    pairs.append((point, other))
        return self.difference(measure, pairs, mode)

    def at(self, **values) -> list[Point]:
        """The finished points that have these axes or options."""
        return [point for point in self.points if all(self.study.value(point, name) == values[name] for name in values)]

    def alike(self) -> dict[Any, list[Point]]:
        """For each value of the main axis, the points whose other axes' values all of them have (or the first has)."""
        axis = self.study.main_axis
        values = list(dict.fromkeys(dict(point)[axis] for point in self.points if axis in dict(point)))
        starts = [point for point in self.points if dict(point).get(axis) == values[0]]
        shared = [
            point for point in starts if self.seeds(*(replace_values(point, **{axis: value}) for value in values))
        ] or starts[:1]
        return {value: [replace_values(point, **{axis: value}) for point in shared] for value in values}


def load(study: Study) -> Results:
    """Reads the finished cells.

    Raises:
        InputError: there are none, a file is broken, or cells differ in what must be equal.
    """
    cells = {cell: content for cell in study.cells if (content := read_cell(study, cell)) is not None}
    items = read_json(study.results / ITEMS)
    if not cells or items is None:
        raise InputError(
            f"no finished cells in {study.results / 'cells'}; make them with python -m flexqwen study run {study.path}"
        )
    first = {}
    for cell, content in cells.items():
        budget = tuple(str(study.options(cell.point).get(name)) for name in BUDGET)
        for name, value in equal(content, digest(items)).items():
            kept = first.setdefault((name, budget if name in ("updates", "tokens") else ()), (value, cell))
            if value != kept[0]:
                raise InputError(f"{study.cell_file(cell)}: {name} is {value}, but {kept[0]} in {kept[1].name}")
    return Results(study, cells, items or {LOG: {"ids": [LOG], "weights": None, "clusters": None, "subsets": {}}})


def equal(content: dict, items: str) -> dict:
    """What must be the same in every cell; `items` is the digest of items.json, which older cells do not name."""
    made_by, cost = content["made_by"], content["cost"]
    return {
        "study": made_by["study"],
        "tokenizer": made_by["digests"]["tokenizer"],
        "items": made_by.get("items", items),
        "updates": cost["updates"],
        "tokens": cost["tokens"],
        "versions of the tasks": sorted({(row["task"], row["version"]) for row in content["figures"]}),
    }


def measures(results: Results) -> list[Measure]:
    """All that is measured: held-out splits, then the tasks; or the losses in the log."""
    found = []
    for key in results.items:
        task, subset = key.split("/")
        if key == LOG:
            found.append(Measure(key, "validation loss", "nats per token", True))
        elif task.startswith("bits_per_byte"):
            title = f"held-out `{subset}`" if task == "bits_per_byte" else f"`{task}`"
            found.append(Measure(key, title, "bits per byte", True))
        else:
            found.append(Measure(key, f"`{task}`", "accuracy, %", False, 100, 1))
    return found


def effective(results: Results, measure: Measure) -> float:
    """How many items of equal weight would make a mean as certain (Kish's effective sample size)."""
    item = results.items[measure.key]
    weights = np.ones(len(item["ids"])) if item["weights"] is None else np.array(item["weights"], dtype=np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def main_measures(results: Results) -> list[Measure]:
    """Those whose bytes do not lie in a few long documents."""
    found = measures(results)
    return [measure for measure in found if effective(results, measure) >= ENOUGH] or found


def with_subsets(results: Results) -> list[Measure]:
    """Those whose items are of several kinds."""
    return [measure for measure in measures(results) if len(results.items[measure.key]["subsets"]) > 1]


def sweep(results: Results) -> tuple[list, list]:
    """Of the study's sweep, the values on its horizontal axis, falling if shares, and the values of its lines."""
    plan, study = results.study.sweep, results.study
    points = results.at(**plan.where)
    found = dict.fromkeys(study.value(point, plan.over) for point in points)
    if plan.over == "causal_fraction":
        found = sorted(found, reverse=True)
    return list(found), list(dict.fromkeys(study.value(point, plan.lines) for point in points)) if plan.lines else [
        None
    ]


def swept(results: Results, measure: Measure, mode: str, value: Any, line: Any) -> Estimate | None:
    """Of one point of a line of the sweep: the mean over all points that lie there."""
    plan = results.study.sweep
    here = {**plan.where, plan.over: value, **({plan.lines: line} if plan.lines else {})}
    return results.mean(measure, results.at(**here), mode)


def name_of(value: Any) -> str:
    """A value of a sweep as it is shown: a share of causal rows as causal:masked."""
    return f"{value.numerator}:{value.denominator - value.numerator}" if isinstance(value, Fraction) else str(value)


def rest_name(results: Results, point: Point) -> str:
    """The values of the axes that are not the main one."""
    return ", ".join(str(value) for _, value in rest_of(point, results.study.main_axis))
