"""Figures, drawn from result files."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flexqwen.outputs import written_aside

COLORS = {"causal": "#1f77b4", "masked": "#d95f02"}


def save(figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all, and closes it."""
    with written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def loss_curves(run: Path) -> None:
    """`loss.png` of a run's folder: loss in each mode against tokens, from its `metrics.jsonl`."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {}  # a resumed run logs some steps twice; the last counts
    for line in map(json.loads, lines):
        by_step.setdefault(line["step"], {}).update(line)
    entries = [by_step[step] for step in sorted(by_step)]
    figure, axes = plt.subplots(figsize=(7, 4))
    for mode, color in COLORS.items():
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
    save(figure, run / "loss.png")


def bits_per_byte(results: dict, path: Path) -> None:
    """Bars of bits per byte with 95 % intervals, beside the unigram baseline."""
    rows = [row for row in results["results"] if row["task"] == "bits_per_byte"]
    figure, axes = plt.subplots(figsize=(5, 4))
    for place, row in enumerate(rows):
        low, high = row["bits_per_byte_interval"]
        value = row["bits_per_byte"]
        axes.bar(place, value, color=COLORS[row["mode"]], yerr=[[value - low], [high - value]], capsize=5)
        axes.text(place, value / 2, f"{value:.2f}", ha="center", color="white")
    baseline = rows[0]["unigram_bits_per_byte"]
    axes.axhline(baseline, color="black", linestyle="--")
    axes.text(len(rows) - 0.5, baseline, f"unigram {baseline:.2f}", ha="right", va="bottom")
    axes.set_xticks(range(len(rows)), [row["mode"] for row in rows])
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(f"held-out text, n = {rows[0]['documents']} documents")
    axes.set_ylim(0, baseline * 1.15)
    save(figure, path)
