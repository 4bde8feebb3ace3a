"""Results of evaluation: one figure with its interval, n and baseline; files, a table, paired differences.

A results folder holds `results.json` (figures) and `items.json` (one number for each item of each figure, which paired
comparison needs). Intervals are 95 % percentile bootstraps (Efron, 1979) with a fixed seed. Items that depend on each
other, such as the words of a sentence, are a cluster, and clusters are drawn whole (Davison and Hinkley, 1997, 3.8).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from flexqwen.cli import InputError
from flexqwen.files import file_digest, read_json, write_json

RESULTS, ITEMS = "results.json", "items.json"
SAMPLES = 1000
_SIDE = ("items", "item_ids", "weights", "clusters")


@dataclass
class Result:
    """One figure.

    Attributes:
        task, version: name and version of the task; figures of different versions are not compared.
        mode: "causal", "masked", "fused" or "finetuned".
        metric: what `value` is, e.g. "accuracy".
        interval: 95 %, bootstrap over items or clusters of them, and over seeds where there are several.
        n: items.
        baseline, baseline_name: the level of knowing nothing, and what it is ("chance", "majority", "unigram").
        subset: which of the task's items, e.g. a phenomenon; "all" of them by default.
        details: what else is to be known, JSON-serialisable (ties, share seen in training, values of each seed).
        items: each item's contribution: `value` is their mean, or their mean weighted by `weights`.
        item_ids: names of the items, by which two models' items are paired.
        weights: of the items in their mean, e.g. bytes; equal by default.
        clusters: number of the cluster that each item is of; by default each is one by itself.
    """

    task: str
    version: int
    mode: str
    metric: str
    value: float
    interval: list[float]
    n: int
    baseline: float
    baseline_name: str
    subset: str = "all"
    details: dict = field(default_factory=dict)
    items: list[float] | None = None
    item_ids: list[str] | None = None
    weights: list[float] | None = None
    clusters: list[int] | None = None

    @property
    def key(self) -> tuple:
        """What the figure is of; two models' figures with one key may be compared."""
        return self.task, self.version, self.mode, self.metric, self.subset


def numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Names of clusters as numbers from 0, in the order in which they come: int64, of the same length."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=np.int64)


def resample(
    count: int, statistic: Callable[[np.ndarray], float], seed: int = 0, samples: int = SAMPLES
) -> list[float]:
    """95 % interval of a statistic of `count` items: `statistic(indices)` gets int64 `(count,)`, drawn with return."""
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, count, count)) for _ in range(samples)]
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def mean_interval(
    items: Sequence[float], weights: Sequence[float] | None = None, clusters: Sequence[Hashable] | None = None
) -> list[float]:
    """95 % interval of the mean, weighted by `weights`, over items, or over clusters of them."""
    items = np.asarray(items, dtype=np.float64)
    weights = np.ones_like(items) if weights is None else np.asarray(weights, dtype=np.float64)
    numbers = np.arange(len(items)) if clusters is None else numbered(clusters)
    products, totals = np.bincount(numbers, items * weights), np.bincount(numbers, weights)
    return resample(len(totals), lambda chosen: products[chosen].sum() / totals[chosen].sum())


def mean_result(
    items: Sequence[float],
    item_ids: Sequence[str],
    weights: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    **fields,
) -> Result:
    """The `Result` of a metric that is the mean of its items, with its interval."""
    return Result(
        value=float(np.average(items, weights=weights)),
        interval=mean_interval(items, weights, clusters),
        n=len(items),
        items=[float(item) for item in items],
        item_ids=list(item_ids),
        weights=None if weights is None else [float(weight) for weight in weights],
        clusters=None if clusters is None else numbered(clusters).tolist(),
        **fields,
    )


def check_finite(results: list[Result], place: str = "") -> None:
    """
    Raises:
        InputError: a value, a bound or an item is NaN or infinite; it names the task, the mode and the first such item.
    """
    for result in results:
        items = zip(result.item_ids or range(result.n), result.items or [], strict=False)
        numbers = [(f"item {name}", item) for name, item in items]
        numbers += [("value", result.value), *(("interval", bound) for bound in result.interval)]
        for what, number in numbers:
            if not math.isfinite(number):
                raise InputError(
                    f"{place}{result.task}, {result.mode}: the {result.metric} of {result.subset!r} has {what} "
                    f"{number}, which is not finite; look for such numbers in the model's weights"
                )


def write_results(folder: str | Path, header: dict, results: list[Result]) -> None:
    """Writes both files: `items.json` first, so that a `results.json` always has its items.

    Raises:
        InputError: a figure is not finite.
    """
    check_finite(results)
    rows = [asdict(result) for result in results]
    sides = [{name: row.pop(name) for name in _SIDE} for row in rows]
    write_json(Path(folder) / ITEMS, sides)
    write_json(Path(folder) / RESULTS, {**header, "results": rows})


def read_results(folder: str | Path) -> tuple[dict, list[Result]]:
    """What `write_results` wrote: the header and the results, items included.

    Raises:
        InputError: the folder holds no results, its two files are not of one evaluation, or a figure is not finite.
    """
    header, sides = read_json(Path(folder) / RESULTS), read_json(Path(folder) / ITEMS)
    if header is None or sides is None:
        missing = RESULTS if header is None else ITEMS
        raise InputError(f"no results in {folder}: {missing} is missing or broken; make it with eval.py --model …")
    rows = header.pop("results")
    if len(rows) != len(sides):
        raise InputError(f"{folder}: {RESULTS} and {ITEMS} are not of one evaluation; run eval.py --overwrite again")
    results = [Result(**row, **side) for row, side in zip(rows, sides, strict=True)]
    check_finite(results, f"{folder}: ")
    return header, results


def model_digests(folder: str | Path) -> dict[str, str]:
    """Digests of the files in a checkpoint's folder that name its weights; none of what is no folder.

    Raises:
        InputError: they are being replaced.
    """
    files = [file for pattern in ("*.safetensors", "*.bin", "tokenizer.json") for file in Path(folder).glob(pattern)]
    try:
        return {file.name: file_digest(file) for file in sorted(files)}
    except FileNotFoundError:
        raise InputError(f"{folder} changed while it was read; run again") from None


def check_unchanged(folder: str | Path, digests: dict[str, str]) -> None:
    """Compares a checkpoint's folder with the `model_digests` of before it was loaded.

    Raises:
        InputError: training, which goes on, has replaced it: figures and digests would be of two models.
    """
    if model_digests(folder) != digests:
        raise InputError(f"{folder} changed while it was evaluated; run again, or evaluate a copy")


def table(results: list[Result]) -> str:
    """The results as a Markdown table; the baseline stands beside each figure."""
    lines = [
        "| task | items | mode | metric | value [95 %] | baseline | n |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for result in results:
        low, high = result.interval
        lines.append(
            f"| {result.task} | {result.subset} | {result.mode} | {result.metric} | {result.value:.3f} "
            f"[{low:.3f}, {high:.3f}] | {result.baseline:.3f} {result.baseline_name} | {result.n:,} |"
        )
    return "\n".join(lines)


@dataclass
class Difference:
    """Figure of model B minus that of model A over the `n` items that both have."""

    key: tuple
    a: float
    b: float
    difference: float
    interval: list[float]
    n: int

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if low <= 0 <= high:
            return "no difference"
        return "B is higher" if low > 0 else "A is higher"


def compare(first: list[Result], second: list[Result]) -> tuple[list[Difference], list[tuple]]:
    """Paired bootstrap: items, or A's clusters of them, are drawn with return, the same for both models.

    After Efron and Tibshirani (1993, chapter 8). It speaks of the mean of the items, which for most metrics is the
    metric itself.

    Returns:
        The differences, and the keys that cannot be compared: only one side has them, or there are no items in common.
    """
    others = {result.key: result for result in second}
    differences, left = [], [key for key in others if key not in {result.key for result in first}]
    for a in first:
        b = others.get(a.key)
        places = {item: place for place, item in enumerate(b.item_ids)} if b and b.item_ids else {}
        pairs = [(i, places[item]) for i, item in enumerate(a.item_ids or []) if item in places]
        if not pairs or a.items is None or b.items is None:
            left.append(a.key)
            continue
        mine, theirs = (list(side) for side in zip(*pairs, strict=True))
        x, y = np.asarray(a.items)[mine], np.asarray(b.items)[theirs]
        weights = np.ones(len(x)) if a.weights is None else np.asarray(a.weights)[mine]
        clusters = None if a.clusters is None else np.asarray(a.clusters)[mine].tolist()
        differences.append(
            Difference(
                key=a.key,
                a=float(np.average(x, weights=weights)),
                b=float(np.average(y, weights=weights)),
                difference=float(np.average(y - x, weights=weights)),
                interval=mean_interval(y - x, weights, clusters),
                n=len(x),
            )
        )
    return differences, left


def comparison_table(differences: list[Difference]) -> str:
    """The differences as a Markdown table."""
    lines = [
        "| task | items | mode | metric | A | B | B − A [95 %] | n | |",
        "|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in differences:
        task, _, mode, metric, subset = row.key
        low, high = row.interval
        lines.append(
            f"| {task} | {subset} | {mode} | {metric} | {row.a:.3f} | {row.b:.3f} | {row.difference:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] | {row.n:,} | {row.verdict} |"
        )
    return "\n".join(lines)
