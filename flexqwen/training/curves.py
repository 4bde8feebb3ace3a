"""The loss of a run against tokens, drawn from its log."""

from pathlib import Path

from matplotlib.figure import Figure

from flexqwen.drawing import COLORS, save_figure, to_words
from flexqwen.files import read_json_lines

NOTE = (
    "The two masked losses differ by design: training hides spans and replaces some of them by other tokens;\n"
    "held-out text hides single tokens, a seventh of them at a time, until each has been predicted once."
)


def draw_loss_curves(run: Path) -> None:
    """`loss.png` of a run's folder: loss in each mode against tokens, from its `metrics.jsonl`."""
    by_step = {}  # a resumed run logs some steps twice; the last counts
    for line in read_json_lines(run / "metrics.jsonl"):
        by_step.setdefault(line["step"], {}).update(line)
    entries = [by_step[step] for step in sorted(by_step)]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for mode in ("causal", "masked"):
        color = COLORS[mode]
        for name, label, style in (
            (f"loss_{mode}", f"{mode}, training", {"alpha": 0.5, "linewidth": 1}),
            (f"eval_loss_{mode}", f"{mode}, held-out", {"marker": "o", "linewidth": 2}),
        ):
            points = [(entry["tokens_seen"] / 1e6, entry[name]) for entry in entries if name in entry]
            if points:  # one alone is no line
                style = {**style, "marker": "o"} if len(points) == 1 else style
                axes.plot(*zip(*points, strict=True), color=color, label=label, **style)
    axes.set_xlim(left=0)
    if len({entry["tokens_seen"] for entry in entries}) == 1:  # the axis would be of hundredths
        axes.set_ylim(0, 1.5 * axes.get_ylim()[1])
    axes.set_xlabel("tokens seen (millions)")
    figure.text(0.5, -0.04, NOTE, fontsize=8, ha="center", va="top")
    axes.set_ylabel("loss (nats per predicted token)")
    strategy, _, length = run.name.rpartition("-")
    axes.set_title(f"{to_words(strategy)}, rows of {length} tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, run / "loss.png")
