"""The report of a study, made from its cells' files and from nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flexqwen.cli import InputError
from flexqwen.files import atomic_write, read_json
from flexqwen.study.cells import (
    GPT_BERT,
    MODES,
    PAIRS,
    SAMPLES,
    Estimate,
    Measure,
    Results,
    baseline_of,
    by_subset,
    effective,
    groups,
    hybrid_differences,
    hybrids,
    load,
    main_hybrid,
    main_measures,
    measures,
    pairs_measure,
    shared_splits,
    source_digest,
    split_differences,
    sweep,
    verdict,
)
from flexqwen.study.grid import OVERLAP, Cell, Study
from flexqwen.study.plots import draw, source_of
from flexqwen.tables import markdown_table

FRONT = "README.md"


def shown(estimate: Estimate | None, measure: Measure, sign: bool = False) -> str:
    """`value [low, high]`, bold where it is a difference whose interval leaves out 0."""
    if estimate is None:
        return "–"
    value, low, high = (measure.scale * x for x in (estimate.value, estimate.low, estimate.high))
    form = f"{'+' if sign else ''}.{measure.digits}f"
    value = f"{value:{form}}"
    alone = " (one seed)" if estimate.seeds == 1 else ""
    return f"{f'**{value}**' if sign and estimate.is_clear else value} [{low:{form}}, {high:{form}}]{alone}"


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
    return markdown_table(head, rows, 2)


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
    return markdown_table(head, rows)


def phrase(estimate: Estimate, measure: Measure, what: str) -> str:
    """A difference in words."""
    unit = "bits per byte" if measure.lower_is_better else "points of accuracy"
    figure = shown(estimate, measure, True).replace("**", "")
    return f"{figure} {unit} on {what} ({verdict(estimate, measure)})"


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
    return markdown_table(head, rows, 2)


def files_table(results: Results) -> str:
    rows = []
    for cell, content in results.cells.items():
        made_by = content["made_by"]
        machine = made_by["machine"]
        name = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
        link, dataset = f"[`{cell.name}`](cells/{cell.name}.json)", made_by["digests"]["dataset"][:12]
        packages = f"{made_by['versions']['torch']}, {made_by['versions']['transformers']}"
        rows.append([link, str(cell.seed), f"`{dataset}`", f"`{made_by['code']}`", packages, name])
    return markdown_table(["cell", "seed", "dataset", "code", "torch, transformers", "machine"], rows, 6)


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
        markdown_table(["comparison", "mode", "measured on", "unit", "difference [95 %]"], hybrid_rows(results), 4),
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
        markdown_table(
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
        f"more accuracy are better, bold where the interval leaves out 0:\n\n{markdown_table(head, lines, 2)}"
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
    with atomic_write(report) as aside:
        aside.write_text(text(results), encoding="utf-8")
    written.append(report)
    page = front_page(results, Path(FRONT).read_text(encoding="utf-8")) if Path(FRONT).is_file() else None
    if page is not None:
        with atomic_write(FRONT) as aside:
            aside.write_text(page, encoding="utf-8")
        written.append(Path(FRONT))
    return written


def check(study: Study) -> None:
    """
    Raises:
        InputError: the report or the front page is not what the result files give, or a figure is missing.
    """
    results = load(study)
    report, remedy = study.results / "README.md", f"run python -m flexqwen study report {study.path}"
    if not report.is_file() or report.read_text(encoding="utf-8") != text(results):
        raise InputError(f"{report} is not what its result files give; {remedy}")
    for name in re.findall(r"\]\((\w+\.png)\)", text(results)):
        if source_of(study.results / name) != source_digest(results):
            raise InputError(f"{study.results / name} is missing, or was not drawn from these result files; {remedy}")
    if Path(FRONT).is_file():
        page = Path(FRONT).read_text(encoding="utf-8")
        if front_page(results, page) not in (None, page):
            raise InputError(f"{FRONT}: the table of {study.name} is not what its result files give; {remedy}")


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
    return markdown_table(["pairs", "n", *(f"`{name}`, {mode}" for name, mode in columns)], rows)
