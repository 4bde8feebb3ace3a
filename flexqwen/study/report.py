"""The report of a study: findings written by hand, tables and figures made from the cells' files and nothing else.

Findings are in results/<study>/findings.md. Each number in it must stand in a table of the report, so that no finding
outlives its results; a line that cites something else ends in `<!-- cited -->`, and code between backticks is no number.
"""

import re
from pathlib import Path

import numpy as np

from flexqwen.cli import InputError
from flexqwen.evaluation.statistics import JOINT_SAMPLES
from flexqwen.files import atomic_write, read_json
from flexqwen.study.cells import (
    ENOUGH,
    GPT_BERT,
    MODES,
    Estimate,
    Measure,
    Results,
    effective,
    load,
    main_measures,
    measures,
    name_of,
    sweep,
    swept,
    with_subsets,
)
from flexqwen.study.grid import Comparison, Study
from flexqwen.study.plots import draw, plain, source_of
from flexqwen.study.runner import OVERLAP
from flexqwen.tables import markdown_table

FRONT, FINDINGS, CITED = "README.md", "findings.md", "<!-- cited -->"
NUMBER = re.compile(r"(?<![\w.,:])[+−-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w:])")


def format_estimate(estimate: Estimate | None, measure: Measure, sign: bool = False) -> str:
    """`value [low, high]`, bold where it is a difference whose interval leaves out 0."""
    if estimate is None:
        return "–"
    value, low, high = (measure.scale * x for x in (estimate.value, estimate.low, estimate.high))
    form = f"{'+' if sign else ''}.{measure.digits}f"
    value = f"{value:{form}}"
    alone = " (one seed)" if estimate.seeds == 1 else ""
    return f"{f'**{value}**' if sign and estimate.is_clear else value} [{low:{form}}, {high:{form}}]{alone}"


def code(value) -> str:
    return f"`{value}`"


def axes_of(results: Results) -> list[str]:
    return list(dict.fromkeys(axis for point in results.points for axis, _ in point))


def scale_of(results: Results) -> str:
    """At what scale the study was made, in a few words."""
    contents = list(results.cells.values())
    seeds = len({cell.seed for cell in results.cells})
    return (
        f"{contents[0]['parameters'] / 1e6:.1f} million parameters, {contents[0]['cost']['tokens'] / 1e6:.1f} million "
        f"tokens a run, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    )


def run_table(results: Results) -> str:
    """What was run, trained on and measured."""
    study, made_by = results.study, next(iter(results.cells.values()))["made_by"]
    rows = [
        ["runs", f"{len(results.cells)} of {len(study.cells)} finished"],
        ["scale", scale_of(results)],
        *([plain(axis), ", ".join(map(code, study.values(axis)))] for axis in axes_of(results)),
        ["dataset", f"Carolina Originality, manifest SHA-256 `{made_by['digests']['dataset'][:16]}`"],
        ["tokenizer", f"SHA-256 `{made_by['digests']['tokenizer'][:16]}`"],
    ]
    for measure in measures(results):
        count, weight = len(results.items[measure.key]["ids"]), effective(results, measure)
        even = f", which weigh as much as {weight:.1f} of one length" if weight < 0.9 * count else ""
        rows.append([measure.title, f"{count:,} items{even}"])
    for task, row in (read_json(study.results / OVERLAP) or {}).items():
        shared = f"{row['seen']:,} of {row['items']:,} have 13 words in a row in common with a training split"
        rows.append([f"`{task}`, overlap", f"{shared}; {row['short']:,} are too short to tell"])
    return markdown_table(["what", "value"], rows, 2)


def main_table(results: Results) -> str:
    """Every comparison, the mean over all else, on the main measures."""
    chosen, rows = main_measures(results), []
    for comparison in results.study.comparisons:
        for pair in comparison.pairs:
            for mode in ("causal", "masked"):
                found = [results.compare(measure, comparison, pair, mode) for measure in chosen]
                if any(found):
                    cells = [format_estimate(one, measure, True) for measure, one in zip(chosen, found, strict=True)]
                    rows.append([f"`{pair[0]}` − `{pair[1]}`", mode, *cells])
    head = ["difference [95 %]", "mode", *(f"{measure.title}, {measure.unit}" for measure in chosen)]
    return markdown_table(head, rows, 2)


def comparison_table(results: Results, comparison: Comparison) -> str:
    """A comparison on every measure: the mean, and before it each value of the second axis."""
    by = results.study.values(comparison.by) if comparison.by else []
    rows = []
    for pair in comparison.pairs:
        for measure in measures(results):
            for mode in MODES:
                found = [results.compare(measure, comparison, pair, mode, value) for value in (*by, None)]
                if found[-1]:
                    cells = [format_estimate(estimate, measure, True) for estimate in found]
                    rows.append([f"`{pair[0]}` − `{pair[1]}`", measure.title, mode, measure.unit, *cells])
    return markdown_table(["difference [95 %]", "measured on", "mode", "unit", *map(code, by), "mean"], rows, 4)


def sweep_table(results: Results) -> str:
    """The main measures against the sweep's axis; GPT-BERT's figures beside them where it is the causal share."""
    plan, (values, lines) = results.study.sweep, sweep(results)
    columns = [(measure, mode) for measure in main_measures(results) for mode in MODES]
    cells = {
        (value, line): [swept(results, measure, mode, value, line) for measure, mode in columns]
        for line in lines
        for value in values
    }
    kept = [number for number in range(len(columns)) if any(row[number] for row in cells.values())]
    is_share = plan.over == "causal_fraction"
    head = [plan.lines] * bool(plan.lines) + ["causal:masked" if is_share else plan.over]
    text_columns = len(head)
    head += [f"{measure.title}, {mode}, {measure.unit}" for measure, mode in (columns[number] for number in kept)]
    head += ["GPT-BERT: BLiMP, causal, %", "GPT-BERT: BLiMP, bidirectional, %"] * is_share
    rows = []
    for (value, line), found in cells.items():
        row = [name_of(line)] * bool(plan.lines) + [name_of(value)]
        row += [format_estimate(found[number], columns[number][0]) for number in kept]
        if is_share:
            row += [f"{figure:.1f}" for figure in GPT_BERT.get(name_of(value), ())[::-1]] or ["–", "–"]
        rows.append(row)
    return markdown_table(head, rows, text_columns)


def subsets_table(results: Results, measure: Measure) -> str:
    """A line a subset of a task, the mean over the points that all values of the main axis have."""
    items, alike = results.items[measure.key], results.alike()
    columns = [
        (value, mode) for value, points in alike.items() for mode in MODES if results.mean(measure, points, mode)
    ]
    rows = []
    for subset in [None, *items["subsets"]]:
        part = Measure(**{**vars(measure), "subset": subset})
        count = len(items["subsets"][subset]) if subset else len(items["ids"])
        cells = [format_estimate(results.mean(part, alike[value], mode), part) for value, mode in columns]
        rows.append([subset or "all", f"{count:,}", *cells])
    return markdown_table(["items", "n", *(f"`{value}`, {mode}" for value, mode in columns)], rows)


def figures_table(results: Results) -> str:
    """Every measure of every point."""
    columns = [(measure, mode) for measure in measures(results) for mode in MODES]
    found = {point: [results.mean(measure, [point], mode) for measure, mode in columns] for point in results.points}
    kept = [number for number in range(len(columns)) if any(row[number] for row in found.values())]
    axes = axes_of(results)
    head = [*axes, "seeds", *(f"{columns[n][0].title}, {columns[n][1]}, {columns[n][0].unit}" for n in kept)]
    rows = [
        [*(code(dict(point).get(axis, "–")) for axis in axes), str(len(results.seeds(point)))]
        + [format_estimate(estimates[number], columns[number][0]) for number in kept]
        for point, estimates in found.items()
    ]
    return markdown_table(head, rows, len(axes))


def cost_table(results: Results) -> str:
    """What the points cost, the mean over seeds, and all runs together."""
    axes, rows, total = axes_of(results), [], {"flops": 0.0, "train_seconds": 0.0, "core_hours": 0.0}
    for point in results.points:
        contents = [content for cell, content in results.cells.items() if cell.point == point]
        mean = {name: float(np.mean([content["cost"][name] for content in contents])) for name in contents[0]["cost"]}
        hours = [row["cost"]["train_seconds"] * row["made_by"]["machine"]["threads"] / 3600 for row in contents]
        mean["core_hours"] = float(np.mean(hours))
        total = {name: total[name] + mean[name] * len(contents) for name in total}
        labels = [f"{mean[f'labels_{mode}'] / mean['tokens']:.3f}" for mode in ("causal", "masked")]
        row = [*(code(dict(point).get(axis, "–")) for axis in axes), str(len(contents)), f"{mean['tokens']:,.0f}"]
        row += [f"{mean['updates']:,.0f}", f"{mean['passes']:.2f}", *labels]
        rows.append([*row, *_costs(mean)])
    rows.append(["all runs", *[""] * (len(axes) - 1), str(len(results.cells)), *[""] * 5, *_costs(total)])
    head = [*axes, "seeds", "tokens", "updates", "passes over the split", "labels per token, causal"]
    head += ["labels per token, masked", "FLOPs", "minutes of training", "core-hours of training"]
    return markdown_table(head, rows, len(axes))


def _costs(cost: dict[str, float]) -> list[str]:
    return [f"{cost['flops']:.3g}", f"{cost['train_seconds'] / 60:.1f}", f"{cost['core_hours']:.2f}"]


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


def text(results: Results) -> str:
    """The whole report."""
    study, findings = results.study, results.study.results / FINDINGS
    found = (
        findings.read_text(encoding="utf-8").strip() if findings.is_file() else f"None are written in {findings} yet."
    )
    lines = [
        f"<!-- Made by python -m flexqwen study report {study.path.as_posix()}. Do not edit; edit {FINDINGS}. -->",
        f"# {study.name}",
        "",
        "## Findings",
        "",
        found,
        "",
        "## What was run",
        "",
        "All runs have the same tokenizer and held-out texts, and the same tokens and updates where the grid does not "
        "change them. Two runs of one seed begin with the same weights.",
        "",
        run_table(results),
        "",
        "## Main differences",
        "",
        "Fewer bits per byte or nats and more accuracy are better. Bold: the interval leaves out 0. Each is the mean "
        f"over all else in the grid. Measures that weigh less than {ENOUGH} items of one length are left out here. "
        f"The report shows {count_differences(results)} differences in all; were none real, one in twenty of the "
        "intervals would still leave out 0.",
        "",
        main_table(results),
        "",
    ]
    for comparison in study.comparisons:
        title = plain(comparison.name)
        lines += [f"## Differences: {title}", "", comparison_table(results, comparison), ""]
        lines += [f"![Differences: {title}]({comparison.name}.png)", ""]
    if study.sweep:
        lines += ["## Sweep", ""]
        if study.sweep.over == "causal_fraction":
            lines += [
                "GPT-BERT's own sweep stands beside it (arXiv 2410.24159): English, BLiMP instead of Portuguese "
                "minimal pairs, a larger model and 100 million words.",
                "",
            ]
        lines += [sweep_table(results), "", "![Sweep](sweep.png)", ""]
    for measure in with_subsets(results):
        task = measure.key.split("/")[0]
        lines += [f"## {measure.title} by kind of item", "", "Accuracy in %.", "", subsets_table(results, measure), ""]
        lines += [f"![{plain(task)} by kind of item]({task}.png)", ""]
    lines += [
        "## All figures",
        "",
        "Masked bits per byte predict each token once, from all others but a seventh of the document, which is masked "
        "with it. They do not compress, and are not to be compared with causal ones.",
        "",
        figures_table(results),
        "",
        "## Held-out loss during training",
        "",
        "![Held-out loss against tokens and compute](loss.png)",
        "",
        "The curves are of the validation split; all other figures are of test splits, which nothing was chosen by. "
        "Held-out masked loss is lower than the training loss by design: a seventh of the tokens is masked, all by the "
        "mask token, where training masks more and also replaces or keeps some.",
        "",
        "## Cost",
        "",
        cost_table(results),
        "",
        "FLOPs are those of the forward and backward passes (`flexqwen/training/flops.py`): the head runs only where "
        "there is a label. Minutes are as measured; what else the machine did makes them longer.",
        "",
        "## How the intervals are made",
        "",
        "A figure is the mean over seeds. Its interval joins the chance of the items (bootstrap, "
        f"{JOINT_SAMPLES:,} samples; items made from one sentence are drawn together) and that of the seeds (Student's "
        "t), as the root of the sum of the squared half-widths. Differences are taken seed by seed and item by item.",
        "",
        "## How to repeat it",
        "",
        f"`python -m flexqwen study run {study.path.as_posix()}` makes the cells that are not in `cells/`. Every number "
        f"here comes from these {len(results.cells)} files (digest `{results.source}`); each names its command, seed, "
        "data, code and machine.",
        "",
        files_table(results),
    ]
    return "\n".join(lines) + "\n"


def count_differences(results: Results) -> int:
    """How many intervals of differences the comparisons' tables show; the mean of one value alone is itself."""
    tables = "\n".join(comparison_table(results, comparison) for comparison in results.study.comparisons)
    rows = [line.split(" | ")[4:] for line in tables.splitlines()]
    return sum(len({cell.strip(" |") for cell in row if "[" in cell and "%" not in cell}) for row in rows)


def front(results: Results) -> str:
    """The table of the front page."""
    missing = len(results.study.cells) - len(results.cells)
    unfinished = f", {missing} runs not made yet" if missing else ""
    return (
        f"At {scale_of(results)}{unfinished} ([report](results/{results.study.name}/README.md)); fewer bits per byte and "
        f"more accuracy are better, bold where the interval leaves out 0:\n\n{main_table(results)}"
    )


def front_page(results: Results, page: str) -> str | None:
    """The front page with its table made anew; None if it has no place for this study."""
    place = re.compile(rf"(<!-- {re.escape(results.study.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not place.search(page):
        return None
    return place.sub(lambda found: f"{found[1]}{front(results)}\n{found[2]}", page)


def check_findings(study: Study, report: str) -> None:
    """
    Raises:
        InputError: a number in findings.md stands in no table of the report, on a line that cites nothing else.
    """
    path = study.results / FINDINGS
    if not path.is_file():
        return
    tables = " ".join(line for line in report.splitlines() if line.startswith("|"))
    known = {number for found in NUMBER.findall(tables) for number in (found, found.lstrip("+-"))}
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = re.sub(r"`[^`]*`", "", line)
        for number in [] if line.rstrip().endswith(CITED) else NUMBER.findall(words):
            if number.replace("−", "-") not in known:
                raise InputError(
                    f"{path}, line {place}: no table of the report has {number}; mend it, or end the line in {CITED} "
                    "if it comes from elsewhere"
                )


def write(study: Study) -> list[Path]:
    """Writes the report, its figures and the front page's table; the files.

    Raises:
        InputError: a number in findings.md stands in no table; all is written all the same.
    """
    results = load(study)
    report, page = text(results), None
    pages = {study.results / "README.md": report}
    if Path(FRONT).is_file():
        page = front_page(results, Path(FRONT).read_text(encoding="utf-8"))
    if page is not None:
        pages[Path(FRONT)] = page
    written = draw(results)
    for path, content in pages.items():
        with atomic_write(path) as aside:
            aside.write_text(content, encoding="utf-8")
    check_findings(study, report)
    return [*written, *pages]


def check(study: Study) -> None:
    """
    Raises:
        InputError: the report, the front page or a number of the findings is not what the result files give, or a
            figure is missing.
    """
    results = load(study)
    report, expected = study.results / "README.md", text(results)
    remedy = f"run python -m flexqwen study report {study.path}"
    check_findings(study, expected)
    if not report.is_file() or report.read_text(encoding="utf-8") != expected:
        raise InputError(f"{report} is not what its result files give; {remedy}")
    for name in re.findall(r"\]\(([\w-]+\.png)\)", expected):
        if source_of(study.results / name) != results.source:
            raise InputError(f"{study.results / name} is missing, or was not drawn from these result files; {remedy}")
    if Path(FRONT).is_file():
        page = Path(FRONT).read_text(encoding="utf-8")
        if front_page(results, page) not in (None, page):
            raise InputError(f"{FRONT}: the table of {study.name} is not what its result files give; {remedy}")
