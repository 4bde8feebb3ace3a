"""The figures of a study's report. Each says in its file what results it was drawn from."""

import itertools
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from flexqwen.drawing import COLORS, save_figure, to_words
from flexqwen.study.cells import GPT_BERT, MODES, Estimate, Measure, Results, format_value
from flexqwen.study.grid import Comparison, describe_value

PALETTE = ["#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666", "#000000"]
STYLES = ["-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2))]  # of lines


def draw(results: Results) -> list[Path]:
    plan = results.sweep
    figures = {"loss": draw_curves(results) if plan and plan.lines else draw_loss(results)}
    figures |= {comparison.name: draw_comparison(results, comparison) for comparison in results.study.comparisons}
    if plan:
        figures["sweep"] = draw_sweep(results)
    files = {results.study.results / f"{name}.png": figure for name, figure in figures.items()}
    for path, figure in files.items():
        if not figure.get_layout_engine():
            figure.tight_layout()
        save_figure(figure, path, results.source)
    return list(files)


def choose_color(results: Results, value: Any) -> str:
    """That of a value of the main axis, the same in all figures."""
    values = results.study.values(results.study.main_axis)
    return PALETTE[values.index(value) % len(PALETTE) if value in values else 0]


def draw_band(axis, x, curves: list[list[dict]], mode: str, alpha: float, color: str, **style) -> None:
    """The seeds' losses in one mode: their mean, and the least to the greatest shaded."""
    losses = np.array([[entry[mode] for entry in curve] for curve in curves])
    axis.plot(x, losses.mean(0), color=color, **style)
    axis.fill_between(x, losses.min(0), losses.max(0), color=color, alpha=alpha)


def finish_losses(figure: Figure) -> None:
    """A title, and one legend of all panels, on the right."""
    handles = {}
    for axis in figure.axes:
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    figure.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1, 0.95), fontsize=8)
    figure.suptitle("Held-out validation loss: mean over seeds, least to greatest shaded")


def draw_interval(axis, estimate: Estimate, measure: Measure, place: float, lying: bool, **style) -> None:
    value, low, high = (measure.scale * x for x in (estimate.value, estimate.low, estimate.high))
    x, y = (value, place) if lying else (place, value)
    axis.errorbar(x, y, **{"xerr" if lying else "yerr": [[value - low], [high - value]]}, fmt="o", **style)


def draw_loss(results: Results) -> Figure:
    """Held-out loss by mode, against tokens and against FLOPs; a line a point of the grid."""
    figure, study = Figure(figsize=(11, 7)), results.study
    axes = figure.subplots(2, 2, sharey="row")

    def describe_rest(point) -> str:
        """The values of a point's axes but the main one."""
        return ", ".join(describe_value(axis, value) for axis, value in point if axis != study.main_axis)

    rests = list(dict.fromkeys(map(describe_rest, results.points)))
    for row, mode in enumerate(MODES[:2]):
        for point in [point for point in results.points if mode in study.modes(point)]:
            curves = [content["curve"] for cell, content in results.cells.items() if cell.point == point]
            value, rest = dict(point).get(study.main_axis), describe_rest(point)
            color, style = choose_color(results, value), STYLES[rests.index(rest) % len(STYLES)]
            label = to_words(", ".join(filter(None, [describe_value(study.main_axis, value), rest])))
            for axis, (name, unit) in zip(axes[row], (("tokens", 1e6), ("flops", 1e12)), strict=True):
                x = np.mean([[entry[name] for entry in curve] for curve in curves], axis=0) / unit
                marker = "o" if len(x) == 1 else None
                draw_band(axis, x, curves, mode, 0.12, color=color, linestyle=style, marker=marker, label=label)
                axis.grid(alpha=0.3)
        axes[row, 0].set_ylabel(f"held-out {mode} loss (nats per token)")
    axes[1, 0].set_xlabel("tokens seen (millions)")
    axes[1, 1].set_xlabel("training compute (TFLOP)")
    finish_losses(figure)
    return figure


def draw_curves(results: Results) -> Figure:
    """Validation loss against tokens: a row a mode, a panel a value of the sweep's axis, a colour a line of it."""
    values, lines = results.sweep_axes()
    figure = Figure(figsize=(2.6 * len(values) + 1, 6.5))
    axes = figure.subplots(2, len(values), sharex=True, sharey="row", squeeze=False)
    for (row, mode), (column, value) in itertools.product(enumerate(MODES[:2]), enumerate(values)):
        axis = axes[row, column]
        for number, line in enumerate(lines):
            points = results.place(value, line)
            for point in [point for point in points if mode in results.study.modes(point)]:
                curves = [content["curve"] for cell, content in results.cells.items() if cell.point == point]
                tokens = [entry["tokens"] / 1e6 for entry in curves[0]]
                label = to_words(f"{results.study.sweep.lines} {format_value(line)}")
                draw_band(axis, tokens, curves, mode, 0.15, color=PALETTE[number % len(PALETTE)], label=label)
        axis.set_title(f"{format_value(value)}, {mode}", fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xlabel("tokens seen (millions)" if row else "")
        axis.set_ylabel("" if column else "held-out loss (nats per token)")
    finish_losses(figure)
    return figure


def draw_comparison(results: Results, comparison: Comparison) -> Figure:
    """Differences with their intervals: a panel a measure, a line a pair, value of the second axis, and mode."""
    chosen, study, lines = results.measures, results.study, []
    by_values = study.second_values(comparison) or [None]
    for pair, by, mode in itertools.product(comparison.pairs, by_values, MODES):
        found = [results.compare(measure, comparison, pair, mode, by) for measure in chosen]
        name = " − ".join(to_words(describe_value(comparison.axis, value)) for value in pair)
        name += f": {to_words(describe_value(comparison.by, by))}" if comparison.by else ""
        color = choose_color(results, by if comparison.by == study.main_axis else pair[0])
        lines += [(f"{name}, {mode}", color, found)] * any(found)
    figure = Figure(figsize=(4 + 2.6 * len(chosen), 1.6 + 0.3 * len(lines)))
    axes = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for column, (axis, measure) in enumerate(zip(axes, chosen, strict=True)):
        for height, (_, color, found) in enumerate(reversed(lines)):
            if estimate := found[column]:
                fill = color if estimate.is_clear else "none"
                draw_interval(axis, estimate, measure, height, True, color=color, markerfacecolor=fill, capsize=3)
        axis.axvline(0, color="black", linestyle="--", linewidth=1)
        axis.set_title(textwrap.fill(to_words(measure.title), 26), fontsize=10)
        axis.set_xlabel(f"{measure.unit}\n(better: {'left' if measure.lower_is_better else 'right'})", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(lines)), [name for name, _, _ in reversed(lines)], fontsize=9)
    axes[0].set_ylim(-0.4, len(lines) - 0.6)
    what = "first minus second, 95 % intervals; filled: of several seeds, and the interval leaves out 0"
    figure.suptitle(f"{to_words(comparison.name)}: {what}")
    return figure


def draw_sweep(results: Results) -> Figure:
    """A panel a main measure: each mode against the axis; with lines, a panel a measure and mode.

    Where the axis is the share of causal rows, GPT-BERT's BLiMP figures stand beside accuracy.
    """
    plan, chosen, (values, lines) = results.study.sweep, results.main_measures, results.sweep_axes()
    is_share, rows = plan.over == "causal_fraction", [[mode] for mode in MODES] if plan.lines else [MODES]
    panels = [
        (measure, row)
        for row, measure in itertools.product(rows, chosen)
        if any(results.swept(measure, mode, *here) for mode in row for here in itertools.product(values, lines))
    ]
    columns = min(4, len(panels))
    figure = Figure(figsize=(5.5 * columns, 4 * -(-len(panels) // columns)), layout="constrained")  # for many panels
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
    for axis, (measure, row) in itertools.zip_longest(axes, panels, fillvalue=(None, None)):
        if measure is None:
            axis.set_axis_off()
            continue
        for number, (mode, line) in enumerate(itertools.product(row, lines)):
            color = PALETTE[number % len(PALETTE)] if plan.lines else COLORS[mode]
            label = to_words(f"{plan.lines} {format_value(line)}") if plan.lines else mode
            places, heights = [], []
            for place, value in enumerate(values):
                places.append(place + 0.06 * (number - ((len(lines) - 1) / 2 if plan.lines else 1)))
                estimate = results.swept(measure, mode, value, line)
                heights.append(estimate.value * measure.scale if estimate else math.nan)  # which breaks the line
                if estimate:
                    draw_interval(axis, estimate, measure, places[-1], False, color=color, capsize=3)
            axis.plot(places, heights, marker="o", color=color, label=label if np.isfinite(heights).any() else None)
        known = [place for place, value in enumerate(values) if is_share and format_value(value) in GPT_BERT]
        for column, mode in enumerate(("masked", "causal")):
            if known and mode in row and measure.key.startswith("minimal_pairs"):
                theirs = [GPT_BERT[format_value(values[place])][column] for place in known]
                label = f"GPT-BERT, BLiMP, {'causal' if mode == 'causal' else 'bidirectional'}"
                axis.plot(known, theirs, "x:", color=COLORS[mode], alpha=0.6, label=label)
        axis.set_title(to_words(measure.title) + (f", {row[0]}" if plan.lines else ""))
        axis.set_xticks(range(len(values)), [format_value(value) for value in values])
        axis.set_xlabel("causal:masked rows" if is_share else to_words(plan.over))
        axis.set_ylabel(measure.unit)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2 if is_share else 4)
    where = to_words(", ".join(describe_value(*pair) for pair in plan.where.items()))
    figure.suptitle(f"{where and f'Trained on {where}; '}95 % intervals")
    return figure


def read_source(figure: Path) -> str | None:
    """`Results.source` of the results that a PNG was drawn from."""
    try:
        with Image.open(figure) as image:
            return image.text.get("Source")
    except (OSError, AttributeError):
        return None
