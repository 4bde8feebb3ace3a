"""Results of evaluation: figures with their intervals, n and baselines; files and tables of them.

A folder holds `results.json` (figures) and `items.json` (a number for each item of each, for paired comparison).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from flexqwen.cli import InputError
from flexqwen.evaluation.statistics import Clusters, mean_interval, number_clusters
from flexqwen.files import read_json, write_json
from flexqwen.remote import explain_failure
from flexqwen.tables import markdown_table

RESULTS, ITEMS = "results.json", "items.json"
_SIDE = ("items", "item_ids", "weights", "clusters")
_NAME = ("task", "mode", "metric", "subset")  # of a figure, beside its items for who reads them alone


@dataclass
class Result:
    """One figure."""

    task: str
    version: int  # of the task; figures of different versions are not compared
    mode: str  # "causal", "masked", "fused" or "finetuned"
    metric: str  # what `value` is, e.g. "accuracy"
    value: float
    interval: list[float]  # 95 %, bootstrap over items or clusters of them, and over seeds where there are several
    n: int  # items
    baseline: float  # the level of knowing nothing
    baseline_name: str  # what it is: "chance", "majority", "unigram"
    subset: str = "all"  # which of the task's items, e.g. a phenomenon
    details: dict = field(default_factory=dict)  # JSON-serialisable: ties, share seen in training, values of each seed
    items: list[float] | None = None  # each one's contribution: `value` is their mean, weighted by `weights`
    item_ids: list[str] | None = None  # names, by which two models' items are paired
    weights: list[float] | None = None  # e.g. bytes; equal by default
    clusters: list[int] | None = None  # number of the cluster of each item; by default each is one by itself

    @property
    def key(self) -> tuple:
        """What the figure is of; two models' figures with one key may be compared."""
        return self.task, self.version, self.mode, self.metric, self.subset


def mean_result(
    items: Sequence[float], item_ids: Sequence[str], weights=None, clusters: Clusters | None = None, least=0, **fields
) -> Result:
    """The `Result` of a metric that is the mean of its items, with its interval. No share is below `least`."""
    return Result(
        value=float(np.average(items, weights=weights)),
        interval=mean_interval(items, weights, clusters, (least, 1) if is_share(fields["metric"]) else None),
        n=len(items),
        items=list(map(float, items)),
        item_ids=list(item_ids),
        weights=None if weights is None else list(map(float, weights)),
        clusters=None if clusters is None else number_clusters(clusters).tolist(),
        **fields,
    )


def is_share(metric: str) -> bool:
    """Whether the metric is a mean of numbers between 0 and 1."""
    return metric.startswith("accuracy")


def check_finite(results: list[Result], place: str = "") -> None:
    """Raises `InputError`, which names the task, the mode and the item, where a number is NaN or infinite."""
    for result in results:
        items = zip(result.item_ids or range(result.n), result.items or [], strict=False)
        numbers = [*((f"item {name}", item) for name, item in items), ("value", result.value)]
        for what, number in [*numbers, *(("interval", bound) for bound in result.interval)]:
            if not math.isfinite(number):
                where = f"{place}{result.task}, {result.mode}: the {result.metric} of {result.subset!r}"
                remedy = "look for such numbers in the model's weights"
                raise InputError(f"{where} has {what} {number}, which is not finite; {remedy}")


def write_results(folder: str | Path, header: dict, results: list[Result]) -> None:
    """Writes both files: `items.json` first, so that a `results.json` always has its items."""
    check_finite(results)
    rows = [asdict(result) for result in results]
    sides = [{name: row[name] for name in _NAME} | {name: row.pop(name) for name in _SIDE} for row in rows]
    write_json(Path(folder) / ITEMS, sides)
    write_json(Path(folder) / RESULTS, {**header, "results": rows})


def read_results(folder: str | Path) -> tuple[dict, list[Result]]:
    """What `write_results` wrote: the header and the results, items included."""
    header, sides = read_json(Path(folder) / RESULTS), read_json(Path(folder) / ITEMS)
    if header is None or sides is None:
        missing = RESULTS if header is None else ITEMS
        raise InputError(f"no results in {folder}: {missing} is missing or broken; make it with eval.py --model …")
    with explain_failure(f"the results in {folder} are damaged", "make them again with eval.py --overwrite"):
        rows = header.pop("results")
        if len(rows) != len(sides):
            raise ValueError(f"{RESULTS} and {ITEMS} are not of one evaluation")
        results = [Result(**row, **{name: side[name] for name in _SIDE}) for row, side in zip(rows, sides, strict=True)]
        if any(len({len(side[name]) for name in _SIDE if side[name] is not None}) > 1 for side in sides):
            raise ValueError("a figure has other numbers of items than of their names, weights or clusters")
        for result in results:
            "".join([result.task, result.mode, result.metric, result.subset, result.baseline_name])
            hash((result.key, *(result.item_ids or ()), *(result.clusters or ())))  # things are found by these
            if not all(map(math.isfinite, (result.baseline, result.n, *(result.weights or ())))):
                raise ValueError("a number is not finite")
        check_finite(results, f"{folder}: ")
        return header, results


def split_breakdowns(results: list[Result]) -> tuple[list[Result], list[Result]]:
    """The figures, and those that are of a part of the items of another."""
    whole = {(row.task, row.mode) for row in results if row.subset == "all"}
    parts = [row.subset != "all" and (row.task, row.mode) in whole for row in results]
    main = [row for row, is_part in zip(results, parts, strict=True) if not is_part]
    return main, [row for row, is_part in zip(results, parts, strict=True) if is_part]


def format_results(results: list[Result]) -> str:
    """The results as a Markdown table, breakdowns last; the baseline stands beside each figure."""
    rows = []
    for row in itertools.chain(*split_breakdowns(results)):
        is_known = row.n > 1 or row.interval[0] < row.interval[1]  # a single item has nothing to draw from
        low, high = (f"{bound:.3f}" if is_known else "–" for bound in row.interval)
        value = f"{row.value:.3f} [{low}, {high}]"
        baseline = f"{row.baseline:.3f} {row.baseline_name}"
        rows.append([row.task, row.subset, row.mode, row.metric, value, baseline, row.n])
    return markdown_table(["task", "items", "mode", "metric", "value [95 %]", "baseline", "n"], rows, text_columns=4)
