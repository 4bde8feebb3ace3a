"""Figures, drawn from result files."""

from pathlib import Path

from matplotlib.figure import Figure

from flexqwen.drawing import COLORS, save_figure, to_words
from flexqwen.evaluation.results import Result

NEUTRAL = {"gap_bits_per_byte", "copied_7grams"}  # metrics of which more is neither better nor worse


def draw_evaluation(results: list[Result], folder: Path) -> list[Path]:
    """Draws held-out text, every task of several subsets, and all tasks together; returns the files."""
    shown = [row for row in results if row.metric not in ("loss", "mse")]  # errors are of another scale
    figures = {}
    for task in dict.fromkeys(row.task for row in shown):
        rows = [row for row in shown if row.task == task]
        if len({row.subset for row in rows}) > 1 or rows[0].metric == "bits_per_byte":
            figures[task] = rows
    rows = [row for row in shown if row.subset == "all" or row.mode == "finetuned"]
    rows = [row for row in rows if row.metric != "bits_per_byte"]
    if len({(row.task, row.metric) for row in rows}) > 1:
        figures["tasks"] = rows
    files = [folder / f"{name.replace('/', '-')}.png" for name in figures]
    for file, rows in zip(files, figures.values(), strict=True):
        draw_dots(rows, file)
    return files


def draw_dots(rows: list[Result], path: Path, xlabel: str | None = None) -> None:
    """A line a figure, a dot a mode, with 95 % intervals, and the baseline as a stroke."""
    tasks, metrics, baselines, modes = (
        list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("task", "metric", "baseline_name", "mode")
    )

    def label(row: Result) -> str:
        """What tells the line from the others of the figure."""
        subset = [row.subset] * (row.subset != "all" or len(tasks) == 1)
        words = [row.task] * (len(tasks) > 1) + subset + [row.metric] * (len(metrics) > 1)
        words += [row.details["name"]] if "verdict" in row.details else []  # of a comparison
        return f"{to_words(', '.join(words))} (n = {row.n:,})"

    labels = list(dict.fromkeys(map(label, rows)))[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(labels)))
    axes = figure.subplots()
    for row in rows:
        line = labels.index(label(row))
        beside = [mode for mode in modes if any(label(other) == label(row) and other.mode == mode for other in rows)]
        height = line + 0.2 * ((len(beside) - 1) / 2 - beside.index(row.mode))
        error = [[row.value - row.interval[0]], [row.interval[1] - row.value]]
        axes.errorbar(row.value, height, xerr=error, fmt="o", color=COLORS[row.mode], capsize=3, markersize=4)
        axes.plot([row.baseline] * 2, [line - 0.35, line + 0.35], color="black", linewidth=1.5)
    for mode in modes:
        axes.plot([], [], "o", color=COLORS[mode], label=mode)
    axes.plot([], [], color="black", label=baselines[0] if len(baselines) == 1 else "baseline")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title(f"{to_words(tasks[0]) if len(tasks) == 1 else 'tasks'}, 95 % intervals")
    metric = to_words(metrics[0]) if len(metrics) == 1 else "value"
    if not NEUTRAL & {*metrics}:
        metric += f" ({'lower' if metrics == ['bits_per_byte'] else 'higher'} is better)"
    axes.set_xlabel(xlabel or metric)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)
