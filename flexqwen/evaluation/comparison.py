"""Paired differences between evaluations: over the items that both have, drawn alike for both."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from flexqwen.cli import InputError
from flexqwen.evaluation.results import Result, mean_result, read_results
from flexqwen.files import write_json
from flexqwen.tables import markdown_table

FEWEST = 6  # independent items: of fewer, even if all of them differ one way, a sign test's p is above 0.05


def compare(first: list[Result], second: list[Result], name: str = "B") -> tuple[list[Result], list[tuple]]:
    """The differences of the means of the items, which for most metrics are the metrics themselves.

    Items are clustered as in A, the first. A figure's value is the second's minus A's, its details are both (`a`, `b`),
    the `verdict` and the second's `name`. Also the keys that only one side has, or that have no items in common.
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
        fields = {name: getattr(a, name) for name in ("task", "version", "mode", "metric", "subset")}
        fields |= {"baseline": 0.0, "baseline_name": "equal"}
        row = mean_result(y - x, [a.item_ids[place] for place in mine], weights, clusters, least=-1, **fields)
        means, (low, high) = [float(np.average(side, weights=weights)) for side in (x, y)], row.interval
        verdict = f"{name if low > 0 else 'A'} is higher"
        if low <= 0 <= high or len(set(clusters or row.item_ids)) < FEWEST:
            verdict = f"not distinguishable, n = {row.n:,}"
        row.details = {"a": means[0], "b": means[1], "verdict": verdict, "name": name}
        differences.append(row)
    return differences, left


def compare_folders(folders: Sequence[Path]) -> tuple[list[Result], list[tuple]]:
    """The differences of the results in folders from those in the first, A, in its order; the others are B, C, ..."""
    (header, first), *others = (read_results(folder) for folder in folders)
    differences, left = [], []
    for name, folder, (other, results) in zip(ascii_uppercase[1:], folders[1:], others, strict=False):
        alike = [row for row in results if how_measured(header, row) == how_measured(other, row)]
        found, missing = compare(first, alike, name)
        if not found:
            what = f"{folders[0]} and {folder} have no figure in common"
            raise InputError(f"{what}; evaluate both on the same tasks, in the same modes and way")
        differences, left = differences + found, left + missing
    order = [result.key for result in first]
    return sorted(differences, key=lambda row: order.index(row.key)), left


def how_measured(header: dict, result: Result) -> list:
    """The settings that must be alike where two models are to be compared."""
    how = header["made_by"].get("measured", {}).get(f"{result.task}/{result.mode}", {})
    of_training = ("seeds", "num_train_epochs", "limit") if result.mode == "finetuned" else ()
    return [how.get(name) for name in ("kind", "within_word", "mask_groups", *of_training)]


def name_keys(keys: list[tuple], most: int = 6) -> str:
    """In a line, what results are of: metric, task, items and mode."""
    names = list(dict.fromkeys(f"{metric} of {task} {subset}, {mode}" for task, _, mode, metric, subset in keys))
    return "; ".join(names[:most] + [f"{len(names) - most} more"] * (len(names) > most))


def format_comparison(differences: list[Result]) -> str:
    """The differences as a Markdown table."""
    rows = []
    for row in differences:
        (low, high), (a, b, verdict, name) = row.interval, row.details.values()
        figures = [f"{a:.3f}", f"{name} {b:.3f}", f"{row.value:+.3f} [{low:+.3f}, {high:+.3f}]", row.n]
        rows.append([row.task, row.subset, row.mode, row.metric, verdict, *figures])
    columns = ["task", "items", "mode", "metric", "verdict", "A", "other", "other − A [95 %]", "n"]
    return markdown_table(columns, rows, text_columns=5)


def write_comparison(folder: str | Path, differences: list[Result]) -> Path:
    """Writes `comparison.json` and gives its path."""
    path = Path(folder) / "comparison.json"
    rows = []
    for row in differences:
        figures = {"difference": row.value, "interval": row.interval, "n": row.n}
        rows.append({"key": row.key, **row.details, **figures})
    write_json(path, rows)
    return path
