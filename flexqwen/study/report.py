"""The report of a study: findings written by hand, tables and figures made from the cells' files and nothing else.

Each number in results/<study>/findings.md must stand in a table of the report, so that no finding outlives its results.
A line that cites something else ends in `<!-- cited -->`; code in backticks is no number.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jinja2 import StrictUndefined, Template

from flexqwen.cli import InputError
from flexqwen.drawing import to_words
from flexqwen.evaluation.statistics import JOINT_SAMPLES, correct_p_values
from flexqwen.files import write_text
from flexqwen.study.cells import ENOUGH, GPT_BERT, MODES, Estimate, Measure, Results, format_value, load
from flexqwen.study.grid import Comparison, Study, describe_value
from flexqwen.study.report_figures import draw, read_source
from flexqwen.study.runner import AMENDMENTS, OVERLAP, REGISTERED, digest_plan, read_result
from flexqwen.study.surface import fit_law, rank_values
from flexqwen.tables import markdown_table

TEMPLATE = Path(__file__).with_suffix(".md")
OVERVIEW, FINDINGS, CITED = "docs/studies.md", "findings.md", "<!-- cited -->"
LEVEL = 0.05  # of all planned comparisons together
DUAL = {1: "63:1", 64: "1:3, the default of their code"}  # of the rows, by repetitions: Dual-objective Language Models
NUMBER = re.compile(r"(?<![\w.,:])[+−-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w:])")


def format_estimate(estimate: Estimate | None, measure: Measure, sign: bool = False) -> str:
    """`value [low, high]`, bold where it is a difference of several seeds whose interval leaves out 0."""
    if estimate is None:
        return "–"
    form = f"{'+' if sign else ''}.{measure.digits}f"
    value, low, high = (f"{measure.scale * x:{form}}" for x in (estimate.value, estimate.low, estimate.high))
    alone = " (one seed)" if estimate.seeds == 1 else ""
    return f"{f'**{value}**' if sign and estimate.is_clear else value} [{low}, {high}]{alone}"


def fit_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A table without the columns and rows that hold no figure."""
    rows = [row for row in rows if any(cell != "–" for cell in row[text_columns:])]
    kept = [i for i in range(len(head)) if i < text_columns or any(row[i] != "–" for row in rows)]
    return markdown_table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], text_columns)


def format_point(results: Results, point) -> list[str]:
    """The values of a point's axes, and of how many seeds it is."""
    return [*(f"`{dict(point).get(axis, '–')}`" for axis in results.study.axes), str(len(results.seeds(point)))]


def format_scale(results: Results) -> str:
    """At what scale the study was made, in a few words."""
    content, seeds = next(iter(results.cells.values())), len({cell.seed for cell in results.cells})
    size, tokens = (f"{number / 1e6:.1f} million" for number in (content["parameters"], content["cost"]["tokens"]))
    return f"{size} parameters, {tokens} tokens a run, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def describe_maker(made_by: dict) -> str:
    """Code, packages and machine of a cell."""
    machine, packages = made_by["machine"], made_by["versions"]
    name = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return f"commit `{made_by['code']}`, torch {packages['torch']}, transformers {packages['transformers']}, {name}"


def main_table(results: Results) -> str:
    """Every comparison, the mean over all else, on the main measures; or what was planned."""
    if results.study.planned:
        return planned_table(results)
    chosen, rows = results.main_measures, []
    for comparison in results.study.comparisons:
        for pair, mode in itertools.product(comparison.pairs, MODES[:2]):
            found = [format_estimate(results.compare(one, comparison, pair, mode), one, True) for one in chosen]
            rows.append([f"`{pair[0]}` − `{pair[1]}`", mode, *found])
    return fit_table(["difference [95 %]", "mode", *(f"{one.title}, {one.unit}" for one in chosen)], rows, 2)


def comparison_table(results: Results, comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a comparison on every measure: each value of its second axis, and the mean."""
    by, rows = [*results.study.second_values(comparison), None], []
    for pair, measure, mode in itertools.product(comparison.pairs, results.measures, MODES):
        found = [results.compare(measure, comparison, pair, mode, value) for value in by]
        cells = [format_estimate(estimate, measure, True) for estimate in found]
        rows.append([f"`{pair[0]}` − `{pair[1]}`", measure.title, mode, measure.unit, *cells])
    return ["difference [95 %]", "measured on", "mode", "unit", *(f"`{value}`" for value in by[:-1]), "mean"], rows


def sweep_table(results: Results) -> str:
    """The main measures against the sweep's axis; GPT-BERT's figures beside them where it is the causal share."""
    plan, (values, lines) = results.study.sweep, results.sweep_axes()
    columns, is_share = list(itertools.product(results.main_measures, MODES)), plan.over == "causal_fraction"
    head = [plan.lines] * bool(plan.lines) + ["causal:masked" if is_share else plan.over]
    head += ["GPT-BERT: BLiMP, causal, %", "GPT-BERT: BLiMP, bidirectional, %"] * is_share
    rows = []
    for line, value in itertools.product(lines, values):
        row = [format_value(line)] * bool(plan.lines) + [format_value(value)]
        row += [str(figure) for figure in GPT_BERT.get(format_value(value), "––")[::-1]] * is_share
        rows.append(row + [format_estimate(results.swept(*column, value, line), column[0]) for column in columns])
    return fit_table([*head, *(f"{one.title}, {mode}, {one.unit}" for one, mode in columns)], rows, len(head))


def planned_table(results: Results) -> str:
    """The comparisons that were planned, with Holm's correction over all of them."""
    rows, study, tests = [], results.study, [results.test(plan) for plan in results.study.planned]
    corrected = correct_p_values([found[2] if found else 1.0 for found in tests])
    for plan, found, holm in zip(study.planned, tests, corrected, strict=True):
        shown = ["–", "–", "–", plan.expected, "–", "–", "–", "not made"]
        if found:
            (estimate, own, p_value), measure = found, results.find_measure(plan.measure)
            shown[0] = f"{measure.title}, {measure.unit}"
            shown[1:3] = (format_estimate(x, measure, True) for x in (estimate, own))
            shown[4:] = str(own.seeds), "–", "–", "not finished"
            if own.seeds == len(study.seeds) > 1:
                is_expected = plan.bounds[0] < measure.scale * estimate.value < plan.bounds[1]
                verdict = "not shown" if holm > LEVEL else "supported" if is_expected else "contradicted"
                shown[5:] = f"{p_value:.4f}", f"{holm:.4f}", verdict
        second = "".join(f", {describe_value(*other)}" for other in plan.second.items())
        rows.append([plan.name, f"`{plan.pair[0]}` − `{plan.pair[1]}{second}`", plan.mode, *shown])
    head = ["planned comparison", "first − second", "mode", "measured on", "difference [95 %]", "by its own seeds"]
    return markdown_table([*head, "expected", "seeds", "p", "p, corrected", f"at {LEVEL:.0%}"], rows, 4)


def best_table(results: Results) -> str:
    """The best share for each number of repetitions, and those that are not clearly worse; what others found."""
    rows, measure = [], results.main_measures[0]
    for line in sorted(results.sweep_axes()[1]):
        row = [format_value(line)]
        for mode in MODES[:2]:
            ranked = rank_values(results, measure, mode, line)
            even = f" (not clearly worse: {', '.join(map(format_value, ranked[1:]))})" if ranked[1:] else ""
            best = ranked and format_estimate(results.swept(measure, mode, ranked[0], line), measure)
            row.append(f"{format_value(ranked[0])}{even}: {best}" if ranked else "–")
        rows.append([*row, DUAL.get(line, "–")])
    head = [to_words(results.study.sweep.lines), *(f"best causal:masked, {mode} mode" for mode in MODES[:2])]
    return markdown_table([*head, "arXiv 2512.14549"], rows, 4)


def law_table(results: Results) -> str:
    """The law of overfitting for each share and mode, and what it predicts of another run."""
    rows, measure, other = [], results.main_measures[0], results.study.sweep.predict
    others = sorted(results.sweep_axes()[1])[1:]
    for value, mode in itertools.product(results.sweep_axes()[0], MODES[:2]):
        if law := fit_law(results, measure, mode, value):
            row = [format_value(value), mode, *(format_estimate(law.excess.get(n), measure, True) for n in others)]
            scaled = format_estimate(law.coefficient, replace(measure, scale=1000), True)
            row += [scaled, f"{law.miss:.0%}", f"{law.exponent:.2f}" if law.exponent else "–"]
            size, unique = other.get("parameters"), other.get("unique_tokens")
            predicted = other and law.predict(other["tokens"] / unique, size, unique)
            row += [format_estimate(predicted, measure, True)] if other else []
            rows.append(row)
    head = ["causal:masked", "mode", *(f"excess at {n}" for n in others), "1,000 P", "largest miss", "exponent, free"]
    return markdown_table(head + [f"predicted: `{other.get('name')}`"] * bool(other), rows, 2)


def subsets_table(results: Results, measure: Measure) -> str:
    """A line a subset of a task, the mean over the points that all values of the main axis have."""
    items, columns, rows = results.items[measure.key], list(itertools.product(results.alike().items(), MODES)), []
    for subset in [None, *items["subsets"]]:
        part, count = replace(measure, subset=subset), len(items["subsets"][subset] if subset else items["ids"])
        found = [format_estimate(results.mean(part, points, mode), part) for (_, points), mode in columns]
        rows.append([subset or "all", f"{count:,}", *found])
    return fit_table(["items", "n", *(f"`{value}`, {mode}" for (value, _), mode in columns)], rows, 1)


def figures_table(results: Results) -> str:
    columns = list(itertools.product(results.measures, MODES))
    rows = []
    for point in results.points:
        found = [format_estimate(results.mean(measure, [point], mode), measure) for measure, mode in columns]
        rows.append([*format_point(results, point), *found])
    head = [*results.study.axes, "seeds", *(f"{one.title}, {mode}, {one.unit}" for one, mode in columns)]
    return fit_table(head, rows, len(results.study.axes))


def cost_table(results: Results) -> str:
    """What the points cost, the mean over seeds, and all runs together."""
    axes, rows, total = results.study.axes, [], np.zeros(3)
    for point in results.points:
        contents = [content for cell, content in results.cells.items() if cell.point == point]
        mean = {name: float(np.mean([content["cost"][name] for content in contents])) for name in contents[0]["cost"]}
        threads = np.mean([content["made_by"]["machine"]["threads"] for content in contents])
        spent = np.array([mean["flops"], mean["train_seconds"] / 60, mean["train_seconds"] / 3600 * threads])
        total += spent * len(contents)
        row = [*format_point(results, point), f"{mean['tokens']:,.0f}", f"{mean['updates']:,.0f}"]
        row += [f"{mean['passes']:.2f}", *(f"{mean[f'labels_{mode}'] / mean['tokens']:.3f}" for mode in MODES[:2])]
        rows.append([*row, f"{spent[0]:.3g}", f"{spent[1]:.1f}", f"{spent[2]:.2f}"])
    end = [f"{total[0]:.3g}", f"{total[1]:.1f}", f"{total[2]:.2f}"]
    rows.append(["all runs", *[""] * (len(axes) - 1), str(len(results.cells)), *[""] * 5, *end])
    head = [*axes, "seeds", "tokens", "updates", "passes over the split", "labels per token, causal"]
    head += ["labels per token, masked", "FLOPs", "minutes of training", "core-hours of training"]
    return markdown_table(head, rows, len(axes))


def format_report(results: Results) -> str:
    study, path = results.study, results.study.results / FINDINGS
    made_by = [content["made_by"] for content in results.cells.values()]
    compared = {comparison.name: comparison_table(results, comparison) for comparison in study.comparisons}
    tools = (to_words, fit_table, main_table, planned_table, best_table, law_table, sweep_table, subsets_table)
    names = {tool.__name__: tool for tool in (*tools, figures_table, cost_table, format_scale)}
    names |= {"results": results, "study": study, "compared": compared, "enough": ENOUGH, "samples": JOINT_SAMPLES}
    names |= {"made_by": made_by, "makers": dict.fromkeys(map(describe_maker, made_by))}
    names |= {"overlap": read_result(study, OVERLAP) or {}, "registered": read_result(study, REGISTERED)}
    unwritten = f"None are written yet in `{path}`."
    names["findings"] = path.read_text(encoding="utf-8").strip() if path.is_file() else unwritten
    # Not twice what is shown alone.
    names["shown"] = sum(len(set(row[4:]) - {"–"}) for _, rows in compared.values() for row in rows)
    template = TEMPLATE.read_text(encoding="utf-8")
    return Template(template, keep_trailing_newline=True, undefined=StrictUndefined).render(names)


def make_pages(results: Results) -> dict[Path, str]:
    """The report, and the page of all studies with the table of this one if it has a place for it."""
    study = results.study
    pages = {study.results / "README.md": format_report(results)}
    page = Path(OVERVIEW).read_text(encoding="utf-8") if Path(OVERVIEW).is_file() else ""
    missing = len(study.cells) - len(results.cells)
    table = (
        f"At {format_scale(results)}{f', {missing} runs not made yet' if missing else ''} "
        f"([report](../results/{study.name}/README.md)); fewer bits per byte and more accuracy are better, bold where "
        f"there are several seeds and the interval leaves out 0:\n\n{main_table(results)}"
    )
    place = re.compile(rf"(<!-- {re.escape(study.name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if place.search(page):
        pages[Path(OVERVIEW)] = place.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)
    return pages


def check_findings(study: Study, report: str) -> None:
    """`InputError` where a number in findings.md stands in no table of the report, on a line without CITED."""
    path = study.results / FINDINGS
    made = report.partition("\n## What was run\n")[2]  # behind the findings, which may have tables of their own
    tables = " ".join(line for line in made.splitlines() if line.startswith("|"))
    known = {number for found in NUMBER.findall(tables) for number in (found, found.lstrip("+-"))}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    remedy = f"mend it, or end the line in {CITED} if it comes from elsewhere"
    for place, line in enumerate(lines, 1):
        for number in [] if line.rstrip().endswith(CITED) else NUMBER.findall(re.sub(r"`[^`]*`", "", line)):
            if number.replace("−", "-") not in known:
                raise InputError(f"{path}, line {place}: no table of the report has {number}; {remedy}")


def check_plan(study: Study) -> None:
    """`InputError` where config or plan is not as it was before the first cell, and no amendment of the plan says so.

    So too where what was registered is not in the commit that it names, if git has that commit.
    """
    if study.plan is None:
        return
    if (registered := read_result(study, REGISTERED)) is None:
        raise InputError(f"{study.results / REGISTERED} is missing, which study run writes before the first cell")
    if (held := digest_plan(study, registered["commit"])) not in (None, registered["digests"]):
        wrong = next(name for name in held if held[name] != registered["digests"][name])
        what = f"another {wrong} than commit {registered['commit'][:12]}, which it names"
        raise InputError(f"{study.results / REGISTERED} has {what}")
    amendments = study.plan.read_text(encoding="utf-8").partition(AMENDMENTS)[2]
    for name, found in digest_plan(study).items():
        is_said = re.search(rf"^- \d{{4}}-\d\d-\d\d.*{found[:12]}", amendments, re.MULTILINE)
        if found != registered["digests"][name] and not is_said:
            what = f"the {name} of {study.name} is not that of commit {registered['commit'][:12]}"
            remedy = f"change it back, or add a line to the amendments in {study.plan}"
            raise InputError(f"{what}; {remedy}: `- <year>-<month>-<day>, {found[:12]}: <what and why>`")


def write(study: Study) -> list[Path]:
    """Writes the report, its figures and the table in docs/studies.md, also where `check_findings` then complains."""
    results = load(study)
    pages, figures = make_pages(results), draw(results)
    for path, content in pages.items():
        write_text(path, content)
    check_findings(study, pages[study.results / "README.md"])
    return [*figures, *pages]


def check(study: Study) -> None:
    """`InputError` where plan, report, overview, findings or a figure is not what the result files give."""
    check_plan(study)
    results = load(study)
    pages, remedy = make_pages(results), f"run python -m flexqwen study report {study.path}"
    report = pages[study.results / "README.md"]
    check_findings(study, report)
    for path, content in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            raise InputError(f"{path} is not what the result files of {study.name} give; {remedy}")
    for name in re.findall(r"\]\(([\w-]+\.png)\)", report):
        if read_source(study.results / name) != results.source:
            raise InputError(f"{study.results / name} is missing, or was not drawn from these result files; {remedy}")
