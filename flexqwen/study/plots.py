"""The figures of a study's report. Each says in its file what results it was drawn from."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from flexqwen.drawing import save_figure
from flexqwen.study.cells import (
    GPT_BERT,
    MODES,
    PAIRS,
    Results,
    by_subset,
    groups,
    main_measures,
    measures,
    pairs_measure,
    shared_splits,
    source_digest,
    split_differences,
    sweep,
)
from flexqwen.study.grid import Cell

COLORS = ["#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d"]


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
    figure = Figure(figsize=(11, 7))
    axes = figure.subplots(2, 2, sharey="row")
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
    save_figure(figure, path, source_digest(results))
    return path


def draw_phenomena(results: Results, path: Path) -> Path:
    """Accuracy by subset of the first task, in every mode; a colour a strategy, the mean over its common splits."""
    measure, splits = pairs_measure(results), shared_splits(results)
    rows = (row for content in results.cells.values() for row in content["figures"] if row["task"] == measure.task)
    chance = 100 * next(rows)["baseline"]
    subsets = [None, *results.items[measure.key]["subsets"]]
    modes = [mode for mode in MODES if any(mode in cell.modes for cell in results.cells)]
    figure = Figure(figsize=(3.2 + 3.2 * len(modes), 1.5 + 0.42 * len(subsets)))
    axes = figure.subplots(1, len(modes), sharey=True)
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
    save_figure(figure, path, source_digest(results))
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
    figure = Figure(figsize=(4 + 2.6 * len(chosen), 1.6 + 0.3 * len(lines)))
    axes = figure.subplots(1, len(chosen), sharey=True)
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
    save_figure(figure, path, source_digest(results))
    return path


def draw_sweep(results: Results, path: Path) -> Path:
    """Each main measure against the share of causal rows, by mode; GPT-BERT's BLiMP figures beside the accuracy."""
    split, ratios = sweep(results)
    chosen = main_measures(results)
    figure = Figure(figsize=(5.5 * len(chosen), 4))
    axes = figure.subplots(1, len(chosen))
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
    save_figure(figure, path, source_digest(results))
    return path


def source_of(figure: Path) -> str | None:
    """The `source_digest` of the results that a PNG was drawn from."""
    try:
        with Image.open(figure) as image:
            return image.text.get("Source")
    except (OSError, AttributeError):
        return None
