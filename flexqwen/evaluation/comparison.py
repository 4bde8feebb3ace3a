"""Paired differences between two evaluations: over the items that both have, drawn alike for both."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import mean_interval
from flexqwen.files import write_json
from flexqwen.tables import markdown_table


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
        return "no difference" if low <= 0 <= high else "B is higher" if low > 0 else "A is higher"


def compare(first: list[Result], second: list[Result]) -> tuple[list[Difference], list[tuple]]:
    """The differences of the means of the items, which for most metrics are the metrics themselves.

    Items are clustered as in A.

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
        means = (float(np.average(values, weights=weights)) for values in (x, y, y - x))
        differences.append(Difference(a.key, *means, mean_interval(y - x, weights, clusters), len(x)))
    return differences, left


def format_comparison(differences: list[Difference]) -> str:
    """The differences as a Markdown table."""
    rows = []
    for row in differences:
        (task, _, mode, metric, subset), (low, high) = row.key, row.interval
        figures = [f"{row.a:.3f}", f"{row.b:.3f}", f"{row.difference:+.3f} [{low:+.3f}, {high:+.3f}]", row.n]
        rows.append([task, subset, mode, metric, row.verdict, *figures])
    return markdown_table(["task", "items", "mode", "metric", "", "A", "B", "B − A [95 %]", "n"], rows, text_columns=5)


def write_comparison(folder: str | Path, differences: list[Difference]) -> Path:
    """Writes `comparison.json` and gives its path."""
    path = Path(folder) / "comparison.json"
    write_json(path, [vars(row) | {"verdict": row.verdict} for row in differences])
    return path
