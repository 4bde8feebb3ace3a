"""The report of a study, made from its cells' files and from nothing else.

A figure of several seeds is the mean of the seeds' figures. Its 95 % interval joins two independent sources of chance:
the items (percentile bootstrap of the mean over seeds, clusters of items drawn whole) and the seeds (Student's t on
their figures); the half-widths are added as the root of the sum of their squares. Differences are taken seed by seed
and item by item.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import stats

from flexqwen.cli import InputError
from flexqwen.outputs import digest, read_json, written_aside
from flexqwen.plots import save
from flexqwen.study import ITEMS, OVERLAP, Cell, Study, made_for

SAMPLES = 2000
ENOUGH = 20  # effective items that a bootstrap needs to be trusted
PAIRS = (("gold", "matched", "overall"), ("gold_typology", "matched_typology", "within typology"))
MODES = ("causal", "masked", "fused")
COLORS = ["#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d"]
FRONT = "README.md"
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
        raise InputError(f"no finished cells in {study.results / 'cells'}; make them with study.py run {study.path}")
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


def shown(estimate: Estimate | None, measure: Measure, sign: bool = False) -> str:
    """`value [low, high]`, bold where it is a difference whose interval leaves out 0."""
    if estimate is None:
        return "–"
    value, low, high = (measure.scale * x for x in (estimate.value, estimate.low, estimate.high))
    form = f"{'+' if sign else ''}.{measure.digits}f"
    value = f"{value:{form}}"
    alone = " (one seed)" if estimate.seeds == 1 else ""
    return f"{f'**{value}**' if sign and estimate.is_clear else value} [{low:{form}}, {high:{form}}]{alone}"


def verdict(estimate: Estimate, measure: Measure) -> str:
    if not estimate.is_clear:
        return "no difference shown"
    return "better" if (estimate.value < 0) == measure.lower_is_better else "worse"


def baseline_of(mode: str) -> str:
    return {"causal": "baseline-causal", "masked": "baseline-masked"}[mode]


def hybrids(results: Results) -> list[str]:
    return [strategy for strategy in results.strategies if not strategy.startswith("baseline")]


def common_splits(results: Results, *strategies: str) -> list[str]:
    """The splits on which all of these have finished cells of the same seed."""
    splits = dict.fromkeys(cell.split for cell in results.cells)
    return [split for split in splits if results.seeds(*((strategy, split) for strategy in strategies))]


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; columns after the first `text_columns` stand on the right."""
    rule = "|" + "---|" * text_columns + "---:|" * (len(head) - text_columns)
    first, *others = (f"| {' | '.join(line)} |" for line in (head, *rows))
    return "\n".join([first, rule, *others])


def figures_table(results: Results) -> str:
    chosen = measures(results)
    columns = [
        (measure, mode)
        for measure in chosen
        for mode in MODES
        if any(results.mean(measure, [group], mode) for group in groups(results))
    ]
    head = ["strategy", "split", "seeds", *(f"{measure.title}, {mode}, {measure.unit}" for measure, mode in columns)]
    rows = [
        [f"`{group[0]}`", f"`{group[1]}`", str(len(results.seeds(group)))]
        + [shown(results.mean(measure, [group], mode), measure) for measure, mode in columns]
        for group in groups(results)
    ]
    return table(head, rows, 2)


def groups(results: Results) -> list[tuple[str, str]]:
    """(strategy, split) of the finished cells, in the config's order."""
    return list(dict.fromkeys((cell.strategy, cell.split) for cell in results.cells))


def hybrid_rows(results: Results) -> list[list[str]]:
    rows = []
    for hybrid in hybrids(results):
        for measure in measures(results):
            for mode in ("causal", "masked"):
                found = hybrid_differences(results, measure, hybrid, mode)
                if found:
                    comparison = f"`{hybrid}` − `{baseline_of(mode)}`"
                    rows.append([comparison, mode, measure.title, measure.unit, shown(found, measure, True)])
    return rows


def originality_rows(results: Results) -> list[list[str]]:
    rows = []
    for pair in PAIRS:
        for measure in measures(results):
            for mode in MODES:
                cells = [
                    shown(split_differences(results, measure, pair, [strategy], mode), measure, True)
                    for strategy in results.strategies
                ]
                together = split_differences(results, measure, pair, results.strategies, mode)
                if together:
                    name = f"`{pair[0]}` − `{pair[1]}`"
                    rows.append([name, measure.title, mode, measure.unit, *cells, shown(together, measure, True)])
    return rows


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


def sweep_table(results: Results) -> str:
    split, ratios = sweep(results)
    chosen = main_measures(results)
    columns = [(measure, mode) for measure in chosen for mode in MODES]
    columns = [
        (measure, mode)
        for measure, mode in columns
        if any(results.mean(measure, [(strategy, split)], mode) for _, strategy in ratios)
    ]
    head = ["causal:masked", *(f"{measure.title}, {mode}, {measure.unit}" for measure, mode in columns)]
    head += ["GPT-BERT: BLiMP, causal, %", "GPT-BERT: BLiMP, bidirectional, %"]
    rows = []
    for ratio, strategy in ratios:
        cells = [shown(results.mean(measure, [(strategy, split)], mode), measure) for measure, mode in columns]
        theirs = GPT_BERT.get(ratio)
        rows.append([ratio, *cells, *((f"{theirs[1]:.1f}", f"{theirs[0]:.1f}") if theirs else ("–", "–"))])
    return table(head, rows)


def phrase(estimate: Estimate, measure: Measure, what: str) -> str:
    """A difference in words."""
    unit = "bits per byte" if measure.lower_is_better else "points of accuracy"
    figure = shown(estimate, measure, True).replace("**", "")
    return f"{figure} {unit} on {what} ({verdict(estimate, measure)})"


def effective(results: Results, measure: Measure) -> float:
    """How many items of equal weight would make a mean as certain (Kish's effective sample size)."""
    item = results.items[measure.key]
    weights = np.ones(len(item["ids"])) if item["weights"] is None else np.array(item["weights"], dtype=np.float64)
    return float(weights.sum() ** 2 / (weights**2).sum())


def main_measures(results: Results) -> list[Measure]:
    """What the answers speak of: those whose bytes do not lie in a few long documents."""
    found = measures(results)
    return [measure for measure in found if effective(results, measure) >= ENOUGH] or found


def hybrid_answer(results: Results) -> str:
    """Two sentences, one for each mode, that the intervals allow."""
    hybrid = main_hybrid(results)
    sentences = []
    for mode in ("causal", "masked"):
        found = [(measure, hybrid_differences(results, measure, hybrid, mode)) for measure in main_measures(results)]
        parts = [phrase(estimate, measure, measure.title) for measure, estimate in found if estimate]
        if not parts:
            continue
        word = together([(measure, mode, estimate) for measure, estimate in found if estimate])
        start = f"In {mode} mode, with the same tokens and updates, `{hybrid}` is {word} `{baseline_of(mode)}`: "
        sentences.append(start + ", ".join(parts) + ".")
    return " ".join(sentences)


def together(found: Sequence[tuple[Measure, str, Estimate]]) -> str:
    """In what, and in which modes, the first of two is better and in what worse, as far as the intervals show it."""
    said, several = [], len({mode for _, mode, _ in found}) > 1
    for word in ("better", "worse"):
        modes: dict[str, list[str]] = {}
        for measure, mode, estimate in found:
            if verdict(estimate, measure) == word:
                modes.setdefault(measure.title, []).append(mode)
        if modes:
            where = (title + (f" ({', '.join(names)})" if several else "") for title, names in modes.items())
            said.append(f"{word} on {' and '.join(where)}")
    return f"{', '.join(said)} than" if said else "not shown to differ from"


def best_line(results: Results) -> str:
    """Which strategy and mode is best on the first task, whatever the mode."""
    found = [
        (estimate.value, f"`{name}`, {mode}", shown(estimate, pairs_measure(results)))
        for name in results.strategies
        for mode in Cell(name, "", 0).modes
        if (estimate := by_subset(results, name, None, mode))
    ]
    ranked = [f"{name}: {value}" for _, name, value in sorted(found, key=lambda entry: -entry[0])]
    return f"On {pairs_measure(results).title} over all modes, the best first (accuracy in %): {'; '.join(ranked)}."


def measured_line(results: Results) -> str:
    """What the figures were measured on."""
    counts = [f"{measure.title} {len(results.items[measure.key]['ids']):,}" for measure in measures(results)]
    dataset = next(iter(results.cells.values()))["made_by"]["digests"]["dataset"]
    return (
        f"Trained on splits of Carolina Originality, made from Corpus Carolina (manifest SHA-256 `{dataset[:16]}`). "
        f"Items measured, documents or pairs: {', '.join(counts)}. Masked bits per byte predict each token once, from "
        "all others but a seventh of the document masked with it; they do not compress, and are not to be compared "
        "with causal ones."
    )


def main_hybrid(results: Results) -> str | None:
    """The hybrid with the most cells."""
    names = hybrids(results)
    return max(names, key=lambda name: sum(cell.strategy == name for cell in results.cells)) if names else None


def originality_answer(results: Results) -> str:
    """A sentence for each pair of splits, and mode by mode."""
    sentences = []
    for pair in PAIRS:
        parts, pairs = [], []
        for mode in ("causal", "masked"):
            for measure in main_measures(results):
                found = split_differences(results, measure, pair, results.strategies, mode)
                if found:
                    parts.append(phrase(found, measure, f"{measure.title}, {mode}"))
                    pairs.append((measure, mode, found))
        if parts:
            start = f"A model trained on `{pair[0]}` ({pair[2]}) is {together(pairs)} one trained on `{pair[1]}`: "
            sentences.append(start + ", ".join(parts) + ".")
    return " ".join(sentences)


def cost_table(results: Results) -> str:
    head = ["strategy", "split", "seeds", "tokens", "updates", "passes over the split"]
    head += ["labels per token, causal", "labels per token, masked", "FLOPs", "minutes of training"]
    rows = []
    for group in groups(results):
        costs = [results.cells[Cell(*group, seed)]["cost"] for seed in results.seeds(group)]
        mean = {name: float(np.mean([cost[name] for cost in costs])) for name in costs[0]}
        labels = [f"{mean[f'labels_{mode}'] / mean['tokens']:.3f}" for mode in ("causal", "masked")]
        counts = [f"{mean['tokens']:,.0f}", f"{mean['updates']:,.0f}", f"{mean['passes']:.2f}"]
        end = [f"{mean['flops']:.3g}", f"{mean['train_seconds'] / 60:.1f}"]
        rows.append([f"`{group[0]}`", f"`{group[1]}`", str(len(costs)), *counts, *labels, *end])
    return table(head, rows, 2)


def files_table(results: Results) -> str:
    rows = []
    for cell, content in results.cells.items():
        made_by = content["made_by"]
        machine = made_by["machine"]
        name = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
        link, dataset = f"[`{cell.name}`](cells/{cell.name}.json)", made_by["digests"]["dataset"][:12]
        packages = f"{made_by['versions']['torch']}, {made_by['versions']['transformers']}"
        rows.append([link, str(cell.seed), f"`{dataset}`", f"`{made_by['code']}`", packages, name])
    return table(["cell", "seed", "dataset", "code", "torch, transformers", "machine"], rows, 6)


def scale(results: Results) -> str:
    """At what scale the study was made, in one sentence."""
    content = next(iter(results.cells.values()))
    seeds = len(dict.fromkeys(cell.seed for cell in results.cells))
    return (
        f"{content['parameters'] / 1e6:.1f} million parameters, {content['cost']['tokens'] / 1e6:.1f} million tokens a "
        f"run, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    )


def text(results: Results) -> str:
    """The whole report."""
    study = results.study
    missing = len(study.cells) - len(results.cells)
    lines = [
        f"<!-- Made by study.py report {study.path.as_posix()} from the files in cells/. Do not edit. -->",
        f"# {study.name}: does the hybrid objective pay, does originality pay?",
        "",
        f"{scale(results)[0].upper()}{scale(results)[1:]}; {len(results.cells)} runs"
        + (f", {missing} of the grid not made yet" if missing else "")
        + ". All have the same tokens seen, updates, tokenizer and held-out texts. Bold: the interval leaves out 0. "
        f"{count_differences(results)} differences are shown; were none real, one in twenty would still leave out 0.",
        "",
        measured_line(results),
        "",
        "## Does the hybrid objective pay?",
        "",
        hybrid_answer(results) or "No hybrid strategy and baseline are both finished yet.",
        "",
        "Each objective is measured in the modes that it trains. Differences, the mean over the splits that both were "
        "trained on; fewer bits per byte and more accuracy are better:",
        "",
        table(["comparison", "mode", "measured on", "unit", "difference [95 %]"], hybrid_rows(results), 4),
        "",
        "![Held-out loss against tokens and compute](loss.png)",
        "",
        "The curves are of the validation split, the mean over seeds with the least and the greatest; the figures here "
        "are of the test splits, which nothing was chosen by.",
        "",
    ]
    if any(measure.task != "bits_per_byte" for measure in measures(results)):
        lines += [
            best_line(results),
            "",
            "![Accuracy by phenomenon](phenomena.png)",
            "",
            "The same as a table (accuracy in %, the mean over "
            + ", ".join(f"`{split}`" for split in shared_splits(results))
            + "):",
            "",
            phenomena_table(results),
            "",
        ]
    if sweep(results):
        lines += [
            f"### Causal to masked, trained on `{sweep(results)[0]}`",
            "",
            "Beside it GPT-BERT's own sweep (arXiv 2410.24159; English, BLiMP instead of Portuguese minimal pairs, a "
            "larger model and 100 million words):",
            "",
            sweep_table(results),
            "",
            "![Ratio sweep](ratios.png)",
            "",
        ]
    lines += [
        "**What would change this answer:** a run long enough that the same text is seen many times; a larger model; "
        "equal labels instead of equal tokens, since a masked row teaches from a fifth of its tokens and a causal one "
        "from all; a learning rate chosen for each objective.",
        "",
        "## Does originality pay?",
        "",
        originality_answer(results) or "No pair of splits is finished yet.",
        "",
        "Gold minus matched, by strategy and their mean:",
        "",
        table(
            ["splits", "measured on", "mode", "unit", *(f"`{name}`" for name in results.strategies), "mean"],
            originality_rows(results),
            4,
        ),
        "",
        "![Gold minus matched](originality.png)",
        "",
        "`test` is drawn from all of the corpus; `test_original` and `test_unoriginal` are pairs of the same lengths. "
        f"{thin_lines(results)}`gold` and `matched` differ in where their texts come from as well as in originality; "
        "`gold_typology` and `matched_typology` are paired within a source typology, so that only their difference "
        "speaks of originality.",
        "",
        "**What would change this answer:** many passes over the same text, where a copy costs room that an original "
        "text would use; splits of other documents (all seeds share the same ones, so their choice is not in the "
        "intervals); tasks beyond held-out text and agreement.",
        "",
        *overlap_lines(results),
        "## All figures",
        "",
        figures_table(results),
        "",
        "## What was equal, and what could not be",
        "",
        cost_table(results),
        "",
        "FLOPs are those of the forward and backward passes (`flexqwen/flops.py`): the head runs only where there is a "
        "label. Minutes are as measured; what else the machine did makes them longer.",
        "",
        "## How the intervals are made",
        "",
        "A figure is the mean over seeds. Its interval joins the chance of the items (bootstrap, "
        f"{SAMPLES:,} samples; pairs made from one sentence are drawn together) and that of the seeds (Student's t), "
        "as the root of the sum of the squared half-widths. Differences are taken seed by seed and item by item: two "
        "runs of one seed begin with the same weights.",
        "",
        "## Files",
        "",
        f"Every number here comes from these {len(results.cells)} files (digest `{source_digest(results)}`); each "
        "names its command, seed, data, code and machine.",
        "",
        files_table(results),
    ]
    return "\n".join(lines) + "\n"


def overlap_lines(results: Results) -> list[str]:
    """How many of the tasks' items share a passage with what was trained on."""
    lines = [
        f"Of the {row['items']:,} items of `{task}`, {row['seen']:,} have 13 words in a row in common with a training "
        f"split of the dataset; {row['short']:,} are too short to tell."
        for task, row in (read_json(results.study.results / OVERLAP) or {}).items()
    ]
    return [" ".join(lines), ""] if lines else []


def thin_lines(results: Results) -> str:
    """Names the held-out splits that the answers leave out, and why."""
    thin = [measure for measure in measures(results) if measure not in main_measures(results)]
    return "".join(
        f"In {measure.title}, a few long documents hold most of the bytes (they weigh as "
        f"much as {effective(results, measure):.1f} documents of one length would): its "
        "figures are shown, but the answers leave it out. "
        for measure in thin
    )


def count_differences(results: Results) -> int:
    """How many intervals of differences the report shows."""
    rows = [[cell for cell in row[4:] if cell != "–"] for row in originality_rows(results)]
    return len(hybrid_rows(results)) + sum(len(set(row)) for row in rows)  # the mean of one strategy is itself


def source_of(figure: Path) -> str | None:
    """The `source_digest` of the results that a PNG was drawn from."""
    try:
        with Image.open(figure) as image:
            return image.text.get("Source")
    except (OSError, AttributeError):
        return None


def source_digest(results: Results) -> str:
    return digest([results.items, [content for content in results.cells.values()]])[:12]


def front(results: Results) -> str:
    """The table of the front page."""
    chosen, rows = main_measures(results), []
    for mode in ("causal", "masked"):
        found = [hybrid_differences(results, measure, main_hybrid(results), mode) for measure in chosen]
        rows.append([f"`{main_hybrid(results)}` − `{baseline_of(mode)}`", mode, found])
    for pair in PAIRS[::-1]:
        for mode in ("causal", "masked"):
            found = [split_differences(results, measure, pair, results.strategies, mode) for measure in chosen]
            rows.append([f"`{pair[0]}` − `{pair[1]}`", mode, found])
    lines = [
        [name, mode, *(shown(estimate, measure, True) for measure, estimate in zip(chosen, found, strict=True))]
        for name, mode, found in rows
        if any(found)
    ]
    head = ["difference [95 %]", "mode", *(f"{measure.title}, {measure.unit}" for measure in chosen)]
    missing = len(results.study.cells) - len(results.cells)
    unfinished = f", {missing} runs not made yet" if missing else ""
    return (
        f"At {scale(results)}{unfinished} ([report](results/{results.study.name}/README.md)); fewer bits per byte and "
        f"more accuracy are better, bold where the interval leaves out 0:\n\n{table(head, lines, 2)}"
    )


def front_page(results: Results, page: str) -> str | None:
    """The front page with its table made anew; None if it has no place for this study."""
    place = re.compile(rf"(<!-- {re.escape(results.study.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(page):
        return None
    return place.sub(lambda found: f"{found[1]}{front(results)}\n{found[2]}", page)


def write(study: Study) -> list[Path]:
    """Writes the report, its figures and the front page's table; the files."""
    results = load(study)
    folder = study.results
    written = draw(results, folder)
    report = folder / "README.md"
    with written_aside(report) as aside:
        aside.write_text(text(results), encoding="utf-8")
    written.append(report)
    page = front_page(results, Path(FRONT).read_text(encoding="utf-8")) if Path(FRONT).is_file() else None
    if page is not None:
        with written_aside(FRONT) as aside:
            aside.write_text(page, encoding="utf-8")
        written.append(Path(FRONT))
    return written


def check(study: Study) -> None:
    """
    Raises:
        InputError: the report or the front page is not what the result files give, or a figure is missing.
    """
    results = load(study)
    report, remedy = study.results / "README.md", f"run study.py report {study.path}"
    if not report.is_file() or report.read_text(encoding="utf-8") != text(results):
        raise InputError(f"{report} is not what its result files give; {remedy}")
    for name in re.findall(r"\]\((\w+\.png)\)", text(results)):
        if source_of(study.results / name) != source_digest(results):
            raise InputError(f"{study.results / name} is missing, or was not drawn from these result files; {remedy}")
    if Path(FRONT).is_file():
        page = Path(FRONT).read_text(encoding="utf-8")
        if front_page(results, page) not in (None, page):
            raise InputError(f"{FRONT}: the table of {study.name} is not what its result files give; {remedy}")


def draw(results: Results, folder: Path) -> list[Path]:
    """Every figure that the report shows."""
    drawn = [draw_loss(results, folder / "loss.png")]
    if any(measure.task != "bits_per_byte" for measure in measures(results)):
        drawn.append(draw_phenomena(results, folder / "phenomena.png"))
    drawn.append(draw_originality(results, folder / "originality.png"))
    if sweep(results):
        drawn.append(draw_sweep(results, folder / "ratios.png"))
    return drawn


def draw_loss(results: Results, path: Path) -> Path:
    """Held-out loss by mode, against tokens and against FLOPs; a line a (strategy, split)."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharey="row")
    splits = list(dict.fromkeys(cell.split for cell in results.cells))
    for row, mode in enumerate(("causal", "masked")):
        for group in groups(results):
            if mode not in Cell(*group, 0).modes:
                continue
            curves = [results.cells[Cell(*group, seed)]["curve"] for seed in results.seeds(group)]
            losses = np.array([[point[mode] for point in curve] for curve in curves])
            style = {
                "color": COLORS[results.strategies.index(group[0]) % len(COLORS)],
                "linestyle": ["-", "--", ":", "-."][splits.index(group[1]) % 4],
            }
            for column, (axis, unit) in enumerate((("tokens", 1e6), ("flops", 1e12))):
                x = np.mean([[point[axis] for point in curve] for curve in curves], axis=0) / unit
                axes[row, column].plot(x, losses.mean(0), **style, label=f"{group[0]}, {group[1]}")
                axes[row, column].fill_between(x, losses.min(0), losses.max(0), color=style["color"], alpha=0.12)
        axes[row, 0].set_ylabel(f"{mode} loss (nats per token)")
        for column in (0, 1):
            axes[row, column].grid(alpha=0.3)
    axes[1, 0].set_xlabel("tokens seen (millions)")
    axes[1, 1].set_xlabel("training compute (TFLOP)")
    handles = {}
    for axis in axes.flat:
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1, 0.95), fontsize=8)
    figure.suptitle("Held-out validation loss: mean over seeds, least to greatest shaded")
    figure.tight_layout()
    save(figure, path, source_digest(results))
    return path


def pairs_measure(results: Results) -> Measure:
    """The first task that is not held-out text."""
    return next(measure for measure in measures(results) if measure.task != "bits_per_byte")


def shared_splits(results: Results) -> list[str]:
    """The splits that every strategy was trained on, or else those of the first."""
    return common_splits(results, *results.strategies) or common_splits(results, results.strategies[0])[:1]


def by_subset(results: Results, strategy: str, subset: str | None, mode: str) -> Estimate | None:
    """Of the first task's subset, the mean over the shared splits."""
    measure = replace(pairs_measure(results), subset=subset)
    return results.mean(measure, [(strategy, split) for split in shared_splits(results)], mode)


def phenomena_table(results: Results) -> str:
    """A line a subset of the first task."""
    measure = pairs_measure(results)
    items = results.items[measure.key]
    columns = [(name, mode) for name in results.strategies for mode in Cell(name, "", 0).modes]
    rows = []
    for subset in [None, *items["subsets"]]:
        count = len(items["subsets"][subset]) if subset else len(items["ids"])
        cells = [shown(by_subset(results, name, subset, mode), measure) for name, mode in columns]
        rows.append([subset or "all", f"{count:,}", *cells])
    return table(["pairs", "n", *(f"`{name}`, {mode}" for name, mode in columns)], rows)


def draw_phenomena(results: Results, path: Path) -> Path:
    """Accuracy by subset of the first task, in every mode; a colour a strategy, the mean over its common splits."""
    measure, splits = pairs_measure(results), shared_splits(results)
    rows = (row for content in results.cells.values() for row in content["figures"] if row["task"] == measure.task)
    chance = 100 * next(rows)["baseline"]
    subsets = [None, *results.items[measure.key]["subsets"]]
    modes = [mode for mode in MODES if any(mode in cell.modes for cell in results.cells)]
    figure, axes = plt.subplots(1, len(modes), figsize=(3.2 + 3.2 * len(modes), 1.5 + 0.42 * len(subsets)), sharey=True)
    for axis, mode in zip(np.atleast_1d(axes), modes, strict=True):
        present = [name for name in results.strategies if mode in Cell(name, "", 0).modes]
        for place, strategy in enumerate(present):
            color = COLORS[results.strategies.index(strategy) % len(COLORS)]
            for line, subset in enumerate(reversed(subsets)):
                found = by_subset(results, strategy, subset, mode)
                if found is None:
                    continue
                height = line + 0.22 * ((len(present) - 1) / 2 - place)
                value = found.value * measure.scale
                error = [[value - found.low * measure.scale], [found.high * measure.scale - value]]
                label = strategy if line == 0 else None
                axis.errorbar(value, height, xerr=error, fmt="o", color=color, markersize=4, capsize=2, label=label)
        axis.axvline(chance, color="black", linewidth=1)
        axis.set_title(mode)
        axis.set_xlabel(f"accuracy (%), chance {chance:.0f}")
        axis.grid(axis="x", alpha=0.3)
    items = results.items[measure.key]
    names = [
        f"{name or 'all'} (n = {len(items['subsets'][name]) if name else len(items['ids']):,})" for name in subsets
    ]
    np.atleast_1d(axes)[0].set_yticks(range(len(names)), names[::-1])
    handles = {}
    for axis in np.atleast_1d(axes):
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1, 0.95))
    figure.suptitle(f"{measure.task}: mean over {', '.join(splits)}, 95 % intervals")
    figure.tight_layout()
    save(figure, path, source_digest(results))
    return path


def draw_originality(results: Results, path: Path) -> Path:
    """Gold minus matched with 95 % intervals: a panel a measure, a line a strategy and mode."""
    chosen = measures(results)
    lines = [
        (pair, strategy, mode)
        for pair in PAIRS
        for strategy in results.strategies
        for mode in MODES
        if any(split_differences(results, measure, pair, [strategy], mode) for measure in chosen)
    ]
    figure, axes = plt.subplots(1, len(chosen), figsize=(4 + 2.6 * len(chosen), 1.6 + 0.3 * len(lines)), sharey=True)
    for axis, measure in zip(np.atleast_1d(axes), chosen, strict=True):
        for height, (pair, strategy, mode) in enumerate(reversed(lines)):
            found = split_differences(results, measure, pair, [strategy], mode)
            if found is None:
                continue
            value, low, high = (measure.scale * x for x in (found.value, found.low, found.high))
            color = COLORS[results.strategies.index(strategy) % len(COLORS)]
            fill = None if found.is_clear else "none"
            axis.errorbar(
                value,
                height,
                xerr=[[value - low], [high - value]],
                fmt="o",
                color=color,
                markerfacecolor=fill,
                capsize=3,
            )
        axis.axvline(0, color="black", linestyle="--", linewidth=1)
        better = "gold better: left" if measure.lower_is_better else "gold better: right"
        axis.set_title(measure.title.replace("`", ""), fontsize=10)
        axis.set_xlabel(f"{measure.unit}\n({better})", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    names = [f"{pair[2]}: {strategy}, {mode}" for pair, strategy, mode in lines]
    np.atleast_1d(axes)[0].set_yticks(range(len(names)), names[::-1], fontsize=9)
    figure.suptitle("Gold minus matched, 95 % intervals; filled: the interval leaves out 0")
    figure.tight_layout()
    save(figure, path, source_digest(results))
    return path


def draw_sweep(results: Results, path: Path) -> Path:
    """Each main measure against the share of causal rows, by mode; GPT-BERT's BLiMP figures beside the accuracy."""
    split, ratios = sweep(results)
    chosen = main_measures(results)
    figure, axes = plt.subplots(1, len(chosen), figsize=(5.5 * len(chosen), 4))
    places = {ratio: place for place, (ratio, _) in enumerate(ratios)}
    colors = {"causal": "#1f77b4", "masked": "#d95f02", "fused": "#7570b3"}
    for axis, measure in zip(np.atleast_1d(axes), chosen, strict=True):
        for mode in MODES:
            found = [(places[ratio], results.mean(measure, [(strategy, split)], mode)) for ratio, strategy in ratios]
            found = [(place, estimate) for place, estimate in found if estimate]
            if not found:
                continue
            value = np.array([estimate.value for _, estimate in found]) * measure.scale
            low = np.array([estimate.low for _, estimate in found]) * measure.scale
            high = np.array([estimate.high for _, estimate in found]) * measure.scale
            x = [place + 0.06 * (MODES.index(mode) - 1) for place, _ in found]
            axis.errorbar(
                x, value, yerr=[value - low, high - value], marker="o", color=colors[mode], capsize=3, label=mode
            )
        if not measure.lower_is_better:
            known = [ratio for ratio in places if ratio in GPT_BERT]
            for column, mode in ((1, "causal"), (0, "masked")):
                theirs = [GPT_BERT[ratio][column] for ratio in known]
                label = f"GPT-BERT, BLiMP, {'causal' if mode == 'causal' else 'bidirectional'}"
                axis.plot([places[ratio] for ratio in known], theirs, "x:", color=colors[mode], alpha=0.6, label=label)
        axis.set_xticks(range(len(places)), list(places))
        axis.set_xlabel("causal:masked rows")
        axis.set_ylabel(f"{measure.title.replace('`', '')} ({measure.unit})")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    figure.suptitle(f"Ratio sweep, trained on {split}, 95 % intervals")
    figure.tight_layout()
    save(figure, path, source_digest(results))
    return path
