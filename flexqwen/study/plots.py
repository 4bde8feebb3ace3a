"""The figures of a study's report. Each says in its file what results it was drawn from."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from flexqwen.drawing import COLORS, save_figure
from flexqwen.study.cells import (
    GPT_BERT,
    MODES,
    Estimate,
    Measure,
    Results,
    main_measures,
    measures,
    name_of,
    rest_name,
    sweep,
    swept,
    with_subsets,
)
from flexqwen.study.grid import Comparison

PALETTE = ["#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666"]
PLAIN = {
    "baseline-causal": "causal only",
    "baseline-masked": "masked only",
    "hybrid-shift": "hybrid",
    "gold_typology": "gold within typology",
    "matched_typology": "matched within typology",
    "held-out test": "held-out text",
    "held-out test_original": "held-out original text",
    "held-out test_unoriginal": "held-out unoriginal text",
}


def plain(name: str) -> str:
    """A name of the config or of a task in words."""
    name = name.replace("`", "")
    first, _, ratio = name.partition(" ")
    if name not in PLAIN and first in PLAIN:
        return f"{PLAIN[first]} {ratio}"
    return PLAIN.get(name, name.replace("_", " "))


def draw(results: Results) -> list[Path]:
    """Every figure that the report shows."""
    folder = results.study.results
    figures = {"loss": draw_loss(results)}
    for measure in with_subsets(results):
        figures[measure.key.split("/")[0]] = draw_subsets(results, measure)
    for comparison in results.study.comparisons:
        figures[comparison.name] = draw_comparison(results, comparison)
    if results.study.sweep:
        figures["sweep"] = draw_sweep(results)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png", results.source)
    return [folder / f"{name}.png" for name in figures]


def color_of(results: Results, value) -> str:
    """That of a value of the main axis, the same in all figures."""
    values = results.study.values(results.study.main_axis)
    return PALETTE[values.index(value) % len(PALETTE) if value in values else 0]


def write_legend(figure: Figure, axes) -> None:
    """One legend of all panels, on the right."""
    handles = {}
    for axis in np.ravel(axes):
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1, 0.95), fontsize=8)


def draw_error(axis, estimate: Estimate, measure: Measure, height: float, **style) -> None:
    """A point with its interval, lying."""
    value, low, high = (measure.scale * x for x in (estimate.value, estimate.low, estimate.high))
    axis.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", **style)


def draw_loss(results: Results) -> Figure:
    """Held-out loss by mode, against tokens and against FLOPs; a line a point of the grid."""
    figure, study = Figure(figsize=(11, 7)), results.study
    axes = figure.subplots(2, 2, sharey="row")
    rests = list(dict.fromkeys(rest_name(results, point) for point in results.points))
    for row, mode in enumerate(("causal", "masked")):
        for point in results.points:
            if mode not in study.modes(point):
                continue
            value, rest = dict(point).get(study.main_axis), rest_name(results, point)
            curves = [content["curve"] for cell, content in results.cells.items() if cell.point == point]
            losses = np.array([[entry[mode] for entry in curve] for curve in curves])
            style = {"color": color_of(results, value), "linestyle": ["-", "--", ":", "-."][rests.index(rest) % 4]}
            label = ", ".join(plain(name) for name in (str(value), rest) if name)
            for column, (name, unit) in enumerate((("tokens", 1e6), ("flops", 1e12))):
                x = np.mean([[entry[name] for entry in curve] for curve in curves], axis=0) / unit
                marker = "o" if len(x) == 1 else None
                axes[row, column].plot(x, losses.mean(0), **style, marker=marker, label=label)
                axes[row, column].fill_between(x, losses.min(0), losses.max(0), color=style["color"], alpha=0.12)
        axes[row, 0].set_ylabel(f"held-out {mode} loss (nats per token)")
        for column in (0, 1):
            axes[row, column].grid(alpha=0.3)
    axes[1, 0].set_xlabel("tokens seen (millions)")
    axes[1, 1].set_xlabel("training compute (TFLOP)")
    write_legend(figure, axes)
    figure.suptitle("Held-out validation loss: mean over seeds, least to greatest shaded")
    figure.tight_layout()
    return figure


def draw_subsets(results: Results, measure: Measure) -> Figure:
    """A task's accuracy by subset, in every mode; a colour a value of the main axis, the mean over the others."""
    task, items = measure.key.split("/")[0], results.items[measure.key]
    rows = (row for content in results.cells.values() for row in content["figures"] if row["task"] == task)
    chance = measure.scale * next(rows)["baseline"]
    subsets = [None, *items["subsets"]]
    alike = results.alike()
    modes = [mode for mode in MODES if any(mode in results.study.modes(point) for point in results.points)]
    figure = Figure(figsize=(3.2 + 3.2 * len(modes), 1.5 + 0.42 * len(subsets)))
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axis, mode in zip(axes, modes, strict=True):
        present = {value: points for value, points in alike.items() if results.mean(measure, points, mode)}
        for place, (value, points) in enumerate(present.items()):
            for line, subset in enumerate(reversed(subsets)):
                part = Measure(**{**vars(measure), "subset": subset})
                height = line + 0.66 / max(3, len(present)) * ((len(present) - 1) / 2 - place)
                label = plain(str(value)) if line == 0 else None
                style = {"color": color_of(results, value), "markersize": 4, "capsize": 2, "label": label}
                draw_error(axis, results.mean(part, points, mode), part, height, **style)
        axis.axvline(chance, color="black", linewidth=1)
        axis.set_title(mode)
        axis.set_xlabel(f"accuracy (%), chance {chance:.0f}")
        axis.grid(axis="x", alpha=0.3)
    counts = [len(items["subsets"][name]) if name else len(items["ids"]) for name in subsets]
    names = [f"{plain(name or 'all')} (n = {count:,})" for name, count in zip(subsets, counts, strict=True)]
    axes[0].set_yticks(range(len(names)), names[::-1])
    write_legend(figure, axes)
    over = ", ".join(plain(rest_name(results, point)) for point in next(iter(alike.values())))
    figure.suptitle(f"{plain(task)}{over and f': mean over {over}'}; 95 % intervals")
    figure.tight_layout()
    return figure


def draw_comparison(results: Results, comparison: Comparison) -> Figure:
    """Differences with their intervals: a panel a measure, a line a pair, value of the second axis, and mode."""
    chosen = measures(results)
    lines = []
    for pair in comparison.pairs:
        for by in results.study.values(comparison.by) if comparison.by else [None]:
            for mode in MODES:
                found = [results.compare(measure, comparison, pair, mode, by) for measure in chosen]
                if any(found):
                    name = f"{plain(str(pair[0]))} − {plain(str(pair[1]))}{'' if by is None else f': {plain(str(by))}'}"
                    color = color_of(results, by if comparison.by == results.study.main_axis else pair[0])
                    lines.append((f"{name}, {mode}", color, found))
    figure = Figure(figsize=(4 + 2.6 * len(chosen), 1.6 + 0.3 * len(lines)))
    axes = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for column, (axis, measure) in enumerate(zip(axes, chosen, strict=True)):
        for height, (_, color, found) in enumerate(reversed(lines)):
            if found[column] is not None:
                fill = color if found[column].is_clear else "none"
                draw_error(axis, found[column], measure, height, color=color, markerfacecolor=fill, capsize=3)
        axis.axvline(0, color="black", linestyle="--", linewidth=1)
        axis.set_title(plain(measure.title), fontsize=10)
        axis.set_xlabel(f"{measure.unit}\n(better: {'left' if measure.lower_is_better else 'right'})", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(lines)), [name for name, _, _ in reversed(lines)], fontsize=9)
    figure.suptitle(f"{plain(comparison.name)}: first minus second, 95 % intervals; filled: the interval leaves out 0")
    figure.tight_layout()
    return figure


def draw_sweep(results: Results) -> Figure:
    """A panel a main measure: each mode against the axis; with lines, a row of panels a mode.

    Where the axis is the share of causal rows, GPT-BERT's BLiMP figures stand beside accuracy.
    """
    plan, chosen = results.study.sweep, main_measures(results)
    values, lines = sweep(results)
    modes = [mode for mode in MODES if any(mode in results.study.modes(p) for p in results.at(**plan.where))]
    rows = [[mode] for mode in modes] if plan.lines else [modes]
    figure = Figure(figsize=(5.5 * len(chosen), 4 * len(rows)))
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for (row, column), axis in np.ndenumerate(axes):
        measure = chosen[column]
        for number, (mode, line) in enumerate((mode, line) for mode in rows[row] for line in lines):
            found = [(place, swept(results, measure, mode, value, line)) for place, value in enumerate(values)]
            found = [(place, estimate) for place, estimate in found if estimate]
            if not found:
                continue
            value, low, high = (
                np.array([getattr(estimate, name) for _, estimate in found]) * measure.scale
                for name in ("value", "low", "high")
            )
            shift = 0.06 * (number - 1)
            style = {
                "color": PALETTE[number % len(PALETTE)] if plan.lines else COLORS[mode],
                "marker": "o",
                "capsize": 3,
            }
            label = f"{plain(plan.lines)} {name_of(line)}" if plan.lines else mode
            x = [place + shift for place, _ in found]
            axis.errorbar(x, value, yerr=[value - low, high - value], label=label, **style)
        if not measure.lower_is_better and plan.over == "causal_fraction":
            known = [place for place, value in enumerate(values) if name_of(value) in GPT_BERT]
            for column_of, mode in enumerate(("masked", "causal")):
                if mode in rows[row]:
                    theirs = [GPT_BERT[name_of(values[place])][column_of] for place in known]
                    label = f"GPT-BERT, BLiMP, {'causal' if mode == 'causal' else 'bidirectional'}"
                    axis.plot(known, theirs, "x:", color=COLORS[mode], alpha=0.6, label=label)
        axis.set_title(plain(measure.title) + (f", {rows[row][0]}" if plan.lines else ""))
        axis.set_xticks(range(len(values)), [name_of(value) for value in values])
        axis.set_xlabel("causal:masked rows" if plan.over == "causal_fraction" else plain(plan.over))
        axis.set_ylabel(measure.unit)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    where = ", ".join(plain(str(value)) for value in plan.where.values())
    figure.suptitle(f"{where and f'trained on {where}; '}95 % intervals")
    figure.tight_layout()
    return figure


def source_of(figure: Path) -> str | None:
    """`Results.source` of the results that a PNG was drawn from."""
    try:
        with Image.open(figure) as image:
            return image.text.get("Source")
    except (OSError, AttributeError):
        return None
