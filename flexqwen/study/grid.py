"""A study's config: one grid of training runs over any options of train.py, what is measured of each, what is compared.

    training: {max_steps: 800, ...}                 # options of train.py that all cells share
    variants: {muon: {muon: true}, ...}             # named bundles of options
    grid:                                           # each part is the product of its axes; by default every variant
      - causal_fraction: [1, 63/64, 1/2]            # any option of train.py, or `variant`; a value or a list of them
        dataset_config: [gold, matched]
        options: {learning_rate: 0.006}             # what all cells of the part share, not an axis
    seeds: [0, 1, 2]
    measure: {...}                                  # `Measurement`
    compare: {originality: {axis: dataset_config, pairs: [[gold, matched]], by: causal_fraction}}  # `Comparison`
    sweep: {over: causal_fraction, lines: dataset_config}                                          # `Sweep`
    planned: {name: {measure: bits_per_byte/test, mode: causal, axis: variant, pair: [a, b], expected: below 0}}
    plan: results/<study>/plan.md                   # what was written down before the study ran

A cell is one point of the grid with one seed. Its own options win over those that all cells share. A grid may be a list
of such lists: then all seeds of the first one are made before the second begins.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from flexqwen.cli import InputError
from flexqwen.evaluation import MODES
from flexqwen.evaluation.tasks import FINE_TUNED, NAMES, Context
from flexqwen.files import digest
from flexqwen.training.arguments import DEFAULTS, read_yaml
from flexqwen.training.objectives import ObjectiveArguments

KEYS = {"training", "variants", "grid", "seeds", "measure", "compare", "sweep", "planned", "plan"}
NEEDED = ("max_steps", "dataset", "tokenizer", "token_stores")  # of training
SUBSETS = {"memorisation": ["continuations", "documents"]}  # of items, where there are no figures of all
UNFIT = {"assin2", "assin2_embeddings", "faquad", "harem", "ud_probe"}  # tasks that a report could not show
NAMELESS = ("dataset_config", "variant", "strategy")  # axes whose values tell in a file's name which axis they are of
PLACES = ("dataset", "tokenizer", "token_stores", "logging_steps", "save_steps", "save_total_limit", "use_cpu")

Point = tuple[tuple[str, Any], ...]  # (axis, value) of each axis


def replace_values(point: Point, **values) -> Point:
    """The point with other values on some of its axes."""
    return tuple((axis, values.get(axis, value)) for axis, value in point)


def describe_value(axis: str, value: Any) -> str:
    """A value, with its axis where it does not tell it."""
    return str(value) if axis in NAMELESS else f"{axis} {value}"


@dataclass(frozen=True)
class Cell:
    point: Point
    seed: int

    @property
    def name(self) -> str:
        """That of its file: the values of its axes and the seed."""
        words = [describe_value(axis, value) for axis, value in self.point]
        return ".".join([*(re.sub(r"[^\w.+-]+", "-", word) for word in words), str(self.seed)])


@dataclass(frozen=True)
class Measurement:
    """What is measured of a trained cell; with neither tasks nor held-out splits, only the losses in its log."""

    tasks: Sequence[str] | dict[str, dict] = ()  # by name; or each with its `Context`, and with `modes` where not all
    heldout: Sequence[str] = ("test",)  # splits of the dataset's `heldout` config
    documents: int = 500  # of each of these, at most
    limit: int | None = None  # items of a task, at most
    checkpoint: str = "last"  # or "best"
    modes: Sequence[str] | None = None  # by default those that a cell trains, and fused where these are both

    def context(self, task: str, dataset: str, model: str) -> tuple[Context, Sequence[str] | None]:
        """What a task is told of a checkpoint, and the modes that it is kept to."""
        own = dict(self.tasks[task]) if isinstance(self.tasks, dict) else {}
        modes = own.pop("modes", None)
        return Context(**{"dataset": dataset, "limit": self.limit, "model": model, **own}), modes


@dataclass(frozen=True)
class Comparison:
    """Differences between values of an axis, all other axes equal: first minus second of each pair."""

    name: str
    axis: str
    pairs: list[tuple[Any, Any]]
    by: str | None = None  # an axis for each value of which the difference is shown alone, beside the mean over all


@dataclass(frozen=True)
class Sweep:
    """Every measure against the values of an axis or option."""

    over: str  # on the horizontal axis; `causal_fraction` counts the baselines as 1 and 0
    lines: str | None = None  # what has a line for each of its values; by default one line, the mean
    where: dict[str, Any] = field(default_factory=dict)  # axes and options, and the values that they must have
    predict: dict[str, Any] = field(default_factory=dict)  # name, parameters, tokens and unique_tokens of another run


@dataclass(frozen=True)
class Planned:
    """A comparison that was planned: first minus second value of an axis, of one measure in one mode at one place."""

    name: str
    measure: str  # task and subset, as in items.json
    mode: str
    axis: str
    pair: tuple[Any, Any]
    where: dict[str, Any]  # the axes and options that make it one place
    expected: str  # `below 0`, `above 0`, `between -0.02 and 0.02`
    second: dict[str, Any] = field(default_factory=dict)  # what else is other at the second of the pair
    minus: dict[str, Any] | None = None  # what is other at the place whose difference is taken from this one

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which the difference is expected."""
        found = re.fullmatch(r"(below|above|between) (-?[\d.]+)(?: and (-?[\d.]+))?", self.expected)
        if not found or (found[1] == "between") != bool(found[3]):
            known = "`below 0`, `above 0` or `between -0.02 and 0.02`"
            raise InputError(f"planned {self.name}: expected is {self.expected!r}; write such as {known}")
        number, other = float(found[2]), float(found[3] or "nan")
        return {"below": (-math.inf, number), "above": (number, math.inf), "between": (number, other)}[found[1]]


@dataclass
class Study:
    path: Path
    points: dict[Point, dict]  # of the grid, each with the options that it sets
    seeds: list[int]
    training: dict = field(default_factory=dict)  # options of train.py that all cells share
    measurement: Measurement = field(default_factory=Measurement)
    comparisons: list[Comparison] = field(default_factory=list)
    sweep: Sweep | None = None
    planned: list[Planned] = field(default_factory=list)
    stages: list[list[Point]] = field(default_factory=list)  # the points in parts, each made before the next
    plan: Path | None = None  # the page that was written before the study ran

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def cells(self) -> list[Cell]:
        """In the order in which they are run: of each stage all cells of one seed, then those of the next."""
        stages = self.stages or [list(self.points)]
        return [Cell(point, seed) for stage in stages for seed in self.seeds for point in stage]

    @property
    def results(self) -> Path:
        return Path("results") / self.name

    def cell_file(self, cell: Cell) -> Path:
        return self.results / "cells" / f"{cell.name}.json"

    def run_folder(self, cell: Cell) -> Path:
        return Path("runs") / self.name / cell.name

    def options(self, point: Point) -> dict:
        """Options of train.py of the cells of a point, but for seed and output folder."""
        return {**self.training, **self.points[point]}

    def modes(self, point: Point) -> tuple[str, ...]:
        """The modes that its cells are measured in."""
        strategy = self.options(point).get("strategy", ObjectiveArguments.strategy)
        trained = ObjectiveArguments(strategy, float(self.value(point, "causal_fraction"))).modes
        return tuple(self.measurement.modes or ((*trained, "fused") if len(trained) == 2 else trained))

    def value(self, point: Point, name: str) -> Any:
        """An axis or option of a point, or its `repetitions`: tokens seen for each of its `unique_tokens`.

        `causal_fraction` is the `Fraction` of rows that are trained causally.
        """
        options = {**DEFAULTS, **self.options(point)}
        if name == "repetitions" and options["unique_tokens"]:
            rows = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
            return round(options["max_steps"] * rows * options["sequence_length"] / options["unique_tokens"])
        if name == "causal_fraction":
            of_baselines = {"baseline-causal": 1, "baseline-masked": 0}
            return Fraction(of_baselines.get(options["strategy"], options[name])).limit_denominator(1000)
        return {**options, **dict(point)}.get(name)

    def select(self, **values) -> list[Point]:
        """The points that have these axes or options."""
        found = list(self.points)
        for name, value in values.items():
            found = [point for point in found if value in (dict(point).get(name), self.value(point, name))]
        return found

    def sides(self, plan: Planned) -> list[Point]:
        """The points that a planned comparison takes: first and second, and those of the difference it takes off."""
        found = []
        for other in [{}] if plan.minus is None else [{}, plan.minus]:
            for value, own in zip(plan.pair, ({}, plan.second), strict=True):
                points = self.select(**{**plan.where, **other, **own, plan.axis: value})
                if len(points) != 1:
                    raise InputError(f"planned {plan.name}: {len(points)} points have {plan.axis} {value!r} there")
                found += points
        return found

    def values(self, axis: str) -> list:
        """The values of an axis, in the order of the grid."""
        return list(dict.fromkeys(dict(point)[axis] for point in self.points if axis in dict(point)))

    def second_values(self, comparison: Comparison) -> list:
        """The values of a comparison's second axis, numbers falling; none where it has no such axis."""
        found = self.values(comparison.by) if comparison.by else []
        return sorted(found, reverse=True) if all(isinstance(value, int) for value in found) else found

    @property
    def axes(self) -> list[str]:
        return list(dict.fromkeys(axis for point in self.points for axis, _ in point))

    @property
    def main_axis(self) -> str:
        """The axis that figures give colours to: variant or strategy or another with several values, or the split."""
        several = [axis for axis in self.axes if len(self.values(axis)) > 1] or self.axes
        return min(several, key=lambda axis: (axis == "dataset_config", axis not in NAMELESS))

    def identity(self, digests: dict[str, str]) -> str:
        """Digest of all that must be equal in every cell: shared options but where things lie, data, measures."""
        measured = self.measurement
        training = {name: value for name, value in self.training.items() if name not in PLACES}
        parts = [training, measured.tasks, measured.heldout, measured.documents, measured.limit, digests]
        if (added := [measured.checkpoint, measured.modes]) != ["last", None]:
            parts.append(added)
        return digest(parts)


def read(path: str) -> Study:
    """Reads a study's config; `InputError` for any key or value in it that cannot be, before any work."""
    config = read_yaml(path)
    try:
        return _read(Path(path), config)
    except InputError as error:
        raise InputError(f"config {path}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"config {path}: {type(error).__name__}: {error}"
        raise InputError(f"{what}; configs/study-cpu.yaml is one to follow") from None


def _read(path: Path, config: dict) -> Study:
    if wrong := (set(config) - KEYS) or ({"training", "seeds"} - set(config)):
        raise InputError(f"key {wrong.pop()!r} is unknown or missing; needed: training, seeds; known: {sorted(KEYS)}")
    variants, measurement = config.get("variants", {}), Measurement(**config.get("measure", {}))
    grid = config.get("grid", [{"variant": list(variants)}])
    points = _expand([part for stage in grid for part in (stage if isinstance(stage, list) else [stage])], variants)
    if not (points and isinstance(config["seeds"], list) and config["seeds"]):
        raise InputError("it has no cells; give seeds as a list, and variants or a grid")
    study = Study(path, points, [int(seed) for seed in config["seeds"]], config["training"], measurement)
    study.stages = [list(_expand(stage, variants)) for stage in grid if isinstance(stage, list)]
    study.sweep = Sweep(**config["sweep"]) if config.get("sweep") else None
    named = {entry.get(part) for entry in config.get("compare", {}).values() for part in ("axis", "by")}
    if unknown := named - {*study.axes, None}:
        raise InputError(f"{unknown.pop()!r} is no axis of the grid")
    if sweep := study.sweep:
        if unknown := {sweep.over, sweep.lines, *sweep.where} - {*study.axes, *DEFAULTS, "repetitions", None}:
            raise InputError(f"{unknown.pop()!r} is no axis of the grid and no option of train.py")
        if not study.select(**sweep.where):
            raise InputError(f"sweep: no part of the grid has {sweep.where}")
    for name, entry in config.get("compare", {}).items():
        values, base = study.values(entry["axis"]), entry.get("base")
        pairs = entry.get("pairs") or [(value, base) for value in values if value != base]
        if unknown := [value for pair in pairs for value in pair if value not in values]:
            raise InputError(f"compare {name}: the grid has no {entry['axis']} {unknown[0]!r}")
        study.comparisons.append(Comparison(name, entry["axis"], [tuple(pair) for pair in pairs], entry.get("by")))
    for name, entry in config.get("planned", {}).items():
        study.planned.append(Planned(name, **{**entry, "pair": tuple(entry["pair"])}))
        sides, _ = study.sides(study.planned[-1]), study.planned[-1].bounds
        subsets = {"bits_per_byte": measurement.heldout}
        subsets |= {task: SUBSETS.get(task, ["all"]) for task in measurement.tasks} or {"log": ["validation"]}
        task, _, subset = entry["measure"].partition("/")
        modes = [("finetuned",)] if task in FINE_TUNED else [study.modes(point) for point in sides]
        if subset not in subsets.get(task, ()) or any(entry["mode"] not in each for each in modes):
            raise InputError(f"planned {name}: {entry['measure']} in mode {entry['mode']} is not measured")
    study.plan = Path(config["plan"]) if "plan" in config else None
    if unknown := set(measurement.tasks) - set(NAMES):
        raise InputError(f"unknown task {unknown.pop()!r}; there are: {', '.join(NAMES)}")
    if unfit := UNFIT & set(measurement.tasks):
        raise InputError(f"task {unfit.pop()!r} has no accuracy over all its items, which a report needs")
    if unknown := set(measurement.modes or ()) - {*MODES}:
        raise InputError(f"measure: unknown mode {unknown.pop()!r}; there are: {', '.join(MODES)}")
    for task in measurement.tasks:
        measurement.context(task, "", "")
    Context(documents=measurement.documents)
    if measurement.checkpoint not in ("last", "best"):
        raise InputError(f"measure: checkpoint is {measurement.checkpoint!r}; allowed: last, best")
    if missing := [name for name in NEEDED if name not in study.training]:
        raise InputError(f"training needs {missing[0]!r}")
    for point in points:
        options, _ = study.options(point), study.modes(point)
        if taken := {"seed", "output_dir"} & set(options):
            raise InputError(f"{taken.pop()!r} is set, which the study decides")
        if options.get("save_strategy", "steps") != "steps":
            raise InputError("save_strategy must be steps, or a cell has no last checkpoint to measure")
        if int(options["max_steps"]) % int(options.get("logging_steps", 500)):
            raise InputError("max_steps must be a multiple of logging_steps, or the last steps are not counted")
    names = [cell.name for cell in study.cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two cells would have the file {twice[0]}.json")
    return study


def _expand(parts: list[dict], variants: dict[str, dict]) -> dict[Point, dict]:
    """Every point of the grid with its own options."""
    points = {}
    for part in parts:
        axes = [axis for axis in part if axis != "options"]
        values = [part[axis] if isinstance(part[axis], list) else [part[axis]] for axis in axes]
        for chosen in itertools.product(*values):
            point = tuple(sorted(zip(axes, chosen, strict=True), key=lambda pair: (pair[0] not in NAMELESS, pair[0])))
            own = dict(part.get("options", {}))
            for axis, value in point:
                if axis == "variant" and value not in variants:
                    raise InputError(f"unknown variant {value!r}; there are: {', '.join(variants)}")
                bundle = variants[value] if axis == "variant" else {axis: value}
                if twice := set(own) & set(bundle):
                    raise InputError(f"{twice.pop()!r} is set twice in {dict(point)}")
                for name, value in bundle.items():
                    is_fraction = isinstance(value, str) and re.fullmatch(r"\d+/[1-9]\d*", value)  # such as 63/64
                    own[name] = float(Fraction(value)) if is_fraction else value
            if points.setdefault(point, own) != own:
                raise InputError(f"two parts of the grid set different options for {dict(point)}")
    return points
