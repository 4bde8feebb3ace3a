"""The loss of a run against tokens, drawn from its log."""

from pathlib import Path

from matplotlib.figure import Figure

from flexqwen.drawing import COLORS, save_figure, to_words
from flexqwen.evaluation.heldout import MODES
from flexqwen.training.metrics import read_log

NOTE = (
    "The two masked losses differ by design: training hides spans and replaces some of them by other tokens;\n"
    "held-out text hides single tokens, a seventh of them at a time, until each has been predicted once."
)


def draw_loss(run: Path) -> None:
    """`loss.png` of a run's folder: loss in each mode against tokens, from its `metrics.jsonl`."""
    entries = read_log(run)
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for mode in MODES:
        of_training = (f"loss_{mode}", {"label": f"{mode}, training", "alpha": 0.5, "linewidth": 1})
        of_heldout = (f"eval_loss_{mode}", {"label": f"{mode}, held-out", "marker": "o", "linewidth": 2})
        for name, style in (of_training, of_heldout):
            if points := [(entry["tokens_seen"] / 1e6, entry[name]) for entry in entries if name in entry]:
                if len(points) == 1:  # which is no line
                    style["marker"] = "o"
                axes.plot(*zip(*points, strict=True), color=COLORS[mode], **style)
    axes.set_xlim(left=0)
    if len({entry["tokens_seen"] for entry in entries}) == 1:  # the axis would be of hundredths
        axes.set_ylim(0, 1.5 * axes.get_ylim()[1])
    axes.set_xlabel("tokens seen (millions)")
    if any("loss_masked" in entry for entry in entries):
        figure.text(0.5, -0.04, NOTE, fontsize=8, ha="center", va="top")
    axes.set_ylabel("loss (nats per predicted token)")
    strategy, _, length = run.name.rpartition("-")
    axes.set_title(f"{to_words(strategy)}, rows of {length} tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, run / "loss.png")
