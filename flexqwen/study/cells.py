"""What the files of a study's cells say: figures and differences over seeds, with their intervals.

A figure of several seeds is the mean of the seeds' figures. Its 95 % interval joins two independent sources of chance:
the items (percentile bootstrap of the mean over seeds, clusters of items drawn whole) and the seeds (Student's t on
their figures); the half-widths are added as the root of the sum of their squares. Differences are taken seed by seed
and item by item.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from flexqwen.cli import InputError
from flexqwen.files import digest, read_json
from flexqwen.study.grid import ITEMS, Cell, Study, made_for

SAMPLES = 2000
ENOUGH = 20  # effective items that a bootstrap needs to be trusted
PAIRS = (("gold", "matched", "overall"), ("gold_typology", "matched_typology", "within typology"))
MODES = ("causal", "masked", "fused")
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

    @property
    def task(self) -> str:
        return self.key.split("/")[0]


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
    _draws: dict = field(default_factory=dict)

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(cell.strategy for cell in self.cells))

    def seeds(self, *groups: tuple[str, str]) -> list[int]:
        """The seeds for which all of these (strategy, split) are finished."""
        every = dict.fromkeys(cell.seed for cell in self.study.cells)
        return [seed for seed in every if all(Cell(*group, seed) in self.cells for group in groups)]

    def values(self, measure: Measure, group: tuple[str, str], seed: int, mode: str) -> np.ndarray | None:
        """float64 `(items,)`: what each item contributes; None if the cell is not measured so."""
        task, subset = measure.key.split("/")
        for row in self.cells[Cell(*group, seed)]["figures"]:
            if (row["task"], row["subset"], row["mode"]) == (task, subset, mode) and "items" in row:
                return np.array(row["items"])
        return None

    def estimate(self, measure: Measure, samples: Sequence[np.ndarray]) -> Estimate:
        """Of `(items,)` for each seed."""
        item = self.items[measure.key]
        count = len(item["ids"])
        weights = np.ones(count) if item["weights"] is None else np.array(item["weights"])
        if measure.subset is not None:
            inside = np.zeros(count)
            inside[item["subsets"][measure.subset]] = 1
            weights = weights * inside
        values = np.stack(samples)
        by_seed = values @ weights / weights.sum()
        clusters = item["clusters"] or item["ids"]
        numbers = np.unique(clusters, return_inverse=True)[1]
        total = np.bincount(numbers, weights)
        sums = np.bincount(numbers, values.mean(0) * weights)
        drawn = self._drawn(measure.key, len(total))
        with np.errstate(invalid="ignore"):
            low, high = np.nanpercentile((drawn @ sums) / (drawn @ total), [2.5, 97.5])
        spread = 0.0
        if len(by_seed) > 1:
            spread = stats.t.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / math.sqrt(len(by_seed))
        value = float(by_seed.mean())
        low, high = value - math.hypot(value - low, spread), value + math.hypot(high - value, spread)
        return Estimate(value, low, high, len(by_seed))

    def _drawn(self, key: str, count: int) -> np.ndarray:
        """How often each cluster is drawn in each bootstrap sample; the same for all figures of the same items."""
        if (key, count) not in self._draws:
            generator = np.random.default_rng(0)
            self._draws[key, count] = generator.multinomial(count, np.full(count, 1 / count), SAMPLES)
        return self._draws[key, count]

    def mean(self, measure: Measure, groups: Sequence[tuple[str, str]], mode: str) -> Estimate | None:
        """The figure of a (strategy, split), or the mean over several; None where it is not measured."""
        found = [[self.values(measure, group, seed, mode) for group in groups] for seed in self.seeds(*groups)]
        if not found or any(value is None for values in found for value in values):
            return None
        estimate = self.estimate(measure, [np.mean(values, axis=0) for values in found])
        most = math.inf if measure.lower_is_better else 1.0  # Student's t on two seeds knows no bounds
        return replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, most))

    def difference(
        self, measure: Measure, pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]], mode: str
    ) -> Estimate | None:
        """First minus second (strategy, split) of each pair, the mean over the pairs; None where not measured."""
        if not pairs:
            return None
        samples = []
        for seed in self.seeds(*(group for pair in pairs for group in pair)):
            parts = []
            for first, second in pairs:
                one, other = (self.values(measure, group, seed, mode) for group in (first, second))
                if one is None or other is None:
                    return None
                parts.append(one - other)
            samples.append(np.mean(parts, axis=0))
        return self.estimate(measure, samples) if samples else None


def load(study: Study) -> Results:
    """Reads the finished cells.

    Raises:
        InputError: there are none, a file is broken, or cells differ in what must be equal.
    """
    cells = {}
    for cell in study.cells:
        path = study.cell_file(cell)
        if path.is_file():
            cells[cell] = made_for(study, path)
    items = read_json(study.results / ITEMS)
    if not cells or items is None:
        raise InputError(
            f"no finished cells in {study.results / 'cells'}; make them with python -m flexqwen study run {study.path}"
        )
    first = next(iter(cells))
    for cell, content in cells.items():
        for name, value in equal(content).items():
            if value != (wanted := equal(cells[first])[name]):
                raise InputError(f"{study.cell_file(cell)}: {name} is {value}, but {wanted} in {first.name}")
    return Results(study, cells, items)


def equal(content: dict) -> dict:
    """What must be the same in every cell."""
    made_by, cost = content["made_by"], content["cost"]
    tokenizer = made_by["digests"]["tokenizer"]
    versions = sorted({(row["task"], row["version"]) for row in content["figures"]})
    return {
        "study": made_by["study"],
        "tokenizer": tokenizer,
        "updates": cost["updates"],
        "tokens": cost["tokens"],
        "versions of the tasks": versions,
    }


def measures(results: Results) -> list[Measure]:
    """Those that count most: held-out splits, then the tasks."""
    found = []
    for key in results.items:
        task, subset = key.split("/")
        if task.startswith("bits_per_byte"):
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
    """What the answers speak of: those whose bytes do not lie in a few long documents."""
    found = measures(results)
    return [measure for measure in found if effective(results, measure) >= ENOUGH] or found


def verdict(estimate: Estimate, measure: Measure) -> str:
    if not estimate.is_clear:
        return "no difference shown"
    return "better" if (estimate.value < 0) == measure.lower_is_better else "worse"


def baseline_of(mode: str) -> str:
    return {"causal": "baseline-causal", "masked": "baseline-masked"}[mode]


def hybrids(results: Results) -> list[str]:
    return [strategy for strategy in results.strategies if not strategy.startswith("baseline")]


def main_hybrid(results: Results) -> str | None:
    """The hybrid with the most cells."""
    names = hybrids(results)
    return max(names, key=lambda name: sum(cell.strategy == name for cell in results.cells)) if names else None


def common_splits(results: Results, *strategies: str) -> list[str]:
    """The splits on which all of these have finished cells of the same seed."""
    splits = dict.fromkeys(cell.split for cell in results.cells)
    return [split for split in splits if results.seeds(*((strategy, split) for strategy in strategies))]


def shared_splits(results: Results) -> list[str]:
    """The splits that every strategy was trained on, or else those of the first."""
    return common_splits(results, *results.strategies) or common_splits(results, results.strategies[0])[:1]


def groups(results: Results) -> list[tuple[str, str]]:
    """(strategy, split) of the finished cells, in the config's order."""
    return list(dict.fromkeys((cell.strategy, cell.split) for cell in results.cells))


def pairs_measure(results: Results) -> Measure:
    """The first task that is not held-out text."""
    return next(measure for measure in measures(results) if measure.task != "bits_per_byte")


def by_subset(results: Results, strategy: str, subset: str | None, mode: str) -> Estimate | None:
    """Of the first task's subset, the mean over the shared splits."""
    measure = replace(pairs_measure(results), subset=subset)
    return results.mean(measure, [(strategy, split) for split in shared_splits(results)], mode)


def hybrid_differences(results: Results, measure: Measure, hybrid: str, mode: str) -> Estimate | None:
    """Hybrid minus the baseline of the mode, the mean over the splits that both have."""
    splits = common_splits(results, hybrid, baseline_of(mode))
    pairs = [((hybrid, split), (baseline_of(mode), split)) for split in splits]
    return results.difference(measure, pairs, mode)


def split_differences(
    results: Results, measure: Measure, pair: tuple[str, str, str], strategies: Sequence[str], mode: str
) -> Estimate | None:
    """Gold minus matched, the mean over the strategies that are measured in the mode."""
    gold, matched, _ = pair
    groups = [
        ((strategy, gold), (strategy, matched))
        for strategy in strategies
        if mode in Cell(strategy, gold, 0).modes and results.seeds((strategy, gold), (strategy, matched))
    ]
    return results.difference(measure, groups, mode)


def sweep(results: Results) -> tuple[str, list[tuple[str, str]]] | None:
    """The split with the most causal:masked ratios, and (ratio, strategy) in falling causal share; None under three."""
    best = None
    for split in dict.fromkeys(cell.split for cell in results.cells):
        ratios = []
        for strategy in results.strategies:
            name, _, ratio = strategy.partition(" ")
            ratio = {"baseline-causal": "1:0", "baseline-masked": "0:1"}.get(name, ratio)
            if (
                ratio
                and name in ("baseline-causal", "baseline-masked", "hybrid-shift")
                and results.seeds((strategy, split))
            ):
                ratios.append((ratio, strategy))
        if best is None or len(ratios) > len(best[1]):
            best = split, sorted(ratios, key=lambda entry: -share(entry[0]))
    return best if best and len(best[1]) >= 3 else None


def share(ratio: str) -> float:
    """The causal share of `causal:masked`."""
    causal, masked = map(int, ratio.split(":"))
    return causal / (causal + masked)


def source_digest(results: Results) -> str:
    return digest([results.items, [content for content in results.cells.values()]])[:12]
