"""Figures, drawn from result files."""

from pathlib import Path

from matplotlib.figure import Figure

from flexqwen.drawing import COLORS, save_figure
from flexqwen.evaluation.comparison import Difference
from flexqwen.evaluation.results import Result


def draw_evaluation(results: list[Result], folder: Path) -> list[Path]:
    """Draws what there is to draw of an evaluation; returns the files."""
    figures = []
    for task in dict.fromkeys(result.task for result in results):
        rows = [result for result in results if result.task == task]
        if task.startswith("bits_per_byte"):
            figures.append(folder / f"{task}.png")
            draw_bits_per_byte([row for row in rows if row.metric == "bits_per_byte"], figures[-1])
        elif len({row.subset for row in rows}) > 1:
            figures.append(folder / f"{task}.png")
            draw_dots(rows, figures[-1])
    rows = [row for row in results if row.subset == "all" or row.mode == "finetuned"]
    rows = [row for row in rows if not row.task.startswith("bits_per_byte")]
    if len({(row.task, row.metric) for row in rows}) > 1:
        figures.append(folder / "tasks.png")
        draw_dots(rows, figures[-1])
    return figures


def draw_bits_per_byte(rows: list[Result], path: Path) -> None:
    """Bars of bits per byte with 95 % intervals, beside the baseline."""
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        error = [[row.value - row.interval[0]], [row.interval[1] - row.value]]
        axes.bar(place, row.value, color=COLORS[row.mode], yerr=error, capsize=5)
        axes.text(place, row.value / 2, f"{row.value:.2f}", ha="center", color="white")
    baseline, name = rows[0].baseline, rows[0].baseline_name
    axes.axhline(baseline, color="black", linestyle="--")
    axes.text(len(rows) - 0.6, baseline, f"{name} {baseline:.2f}", ha="right", va="bottom")
    axes.set_xticks(range(len(rows)), [row.mode for row in rows])
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"{rows[0].task}, n = {rows[0].n:,} texts, 95 % intervals")
    axes.set_ylim(0, max(baseline, *(row.interval[1] for row in rows)) * 1.15)
    save_figure(figure, path)


def draw_dots(rows: list[Result], path: Path) -> None:
    """A line a figure, a dot a mode, with 95 % intervals, and the baseline as a stroke.

    Errors (mean squared error) are left out: they are of another scale, and lower is better.
    """
    rows = [row for row in rows if row.metric != "mse"]
    tasks, metrics, baselines = (
        list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("task", "metric", "baseline_name")
    )

    def label(row: Result) -> str:
        """What tells the line from the others of the figure."""
        subset = [row.subset] * (row.subset != "all" or len(tasks) == 1)
        return ", ".join([row.task] * (len(tasks) > 1) + subset + [row.metric] * (len(metrics) > 1))

    labels = list(dict.fromkeys(label(row) for row in rows))
    modes = list(dict.fromkeys(row.mode for row in rows))
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(labels)))
    axes = figure.subplots()
    counts = {}
    for row in rows:
        line = len(labels) - 1 - labels.index(label(row))
        beside = [mode for mode in modes if any(label(other) == label(row) and other.mode == mode for other in rows)]
        height = line + 0.2 * ((len(beside) - 1) / 2 - beside.index(row.mode))
        error = [[row.value - row.interval[0]], [row.interval[1] - row.value]]
        axes.errorbar(row.value, height, xerr=error, fmt="o", color=COLORS[row.mode], capsize=3, markersize=4)
        axes.plot([row.baseline] * 2, [line - 0.35, line + 0.35], color="black", linewidth=1.5)
        counts[line] = row.n
    for mode in modes:
        axes.plot([], [], "o", color=COLORS[mode], label=mode)
    axes.plot([], [], color="black", label=baselines[0] if len(baselines) == 1 else "baseline")
    axes.set_yticks(
        range(len(labels)), [f"{name} (n = {counts[len(labels) - 1 - i]:,})" for i, name in enumerate(labels)][::-1]
    )
    axes.set_title(f"{tasks[0] if len(tasks) == 1 else 'tasks'}, 95 % intervals")
    axes.set_xlabel(metrics[0] if len(metrics) == 1 else "value (higher is better)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def draw_comparison(differences: list[Difference], path: Path) -> Path:
    """Paired differences with 95 % intervals; those that do not hold 0 are filled. Gives `path`."""
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(differences)))
    axes = figure.subplots()
    for line, row in enumerate(reversed(differences)):
        error = [[row.difference - row.interval[0]], [row.interval[1] - row.difference]]
        fill = "none" if row.verdict == "no difference" else None
        color = COLORS[row.key[2]]
        axes.errorbar(row.difference, line, xerr=error, fmt="o", color=color, markerfacecolor=fill, capsize=3)
    axes.axvline(0, color="black", linestyle="--")
    names = [f"{key[0]}, {key[4]}, {key[2]}, {key[3]} (n = {row.n:,})" for row in differences for key in [row.key]]
    axes.set_yticks(range(len(names)), names[::-1], fontsize=8)
    axes.set_xlabel("B − A, 95 % intervals (paired bootstrap)")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)
    return path
