"""The loss of a run against tokens, drawn from its log."""

from pathlib import Path

from matplotlib.figure import Figure

from flexqwen.drawing import COLORS, save_figure
from flexqwen.evaluation.heldout import MODES
from flexqwen.training.metrics import read_log


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
                axes.plot(*zip(*points, strict=True), color=COLORS[mode], **style)
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per predicted token)")
    axes.set_title(run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, run / "loss.png")
