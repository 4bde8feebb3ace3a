"""The loss of a run against tokens, drawn from its log."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from flexqwen.drawing import COLORS, save_figure


def draw_loss_curves(run: Path) -> None:
    """`loss.png` of a run's folder: loss in each mode against tokens, from its `metrics.jsonl`."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {}  # a resumed run logs some steps twice; the last counts
    for line in map(json.loads, lines):
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
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=label, **style)
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per predicted token)")
    axes.set_title(run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, run / "loss.png")
