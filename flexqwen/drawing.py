"""What all figures share: colours of the modes, names in words, and files that appear whole."""

import io
from pathlib import Path
from typing import Any

from flexqwen.files import atomic_write

COLORS = {"causal": "#1f77b4", "masked": "#d95f02", "fused": "#7570b3", "finetuned": "#1b9e77"}
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


def to_words(names: Any) -> str:
    """Names of configs, tasks or metrics, with commas between them, in words."""
    words = []
    for name in str(names).replace("`", "").split(", "):
        first, _, rest = name.partition(" ")
        words.append(PLAIN.get(name) or (f"{PLAIN[first]} {rest}" if first in PLAIN else name.replace("_", " ")))
    return ", ".join(words)


def save_figure(figure, path: Path, source: str | None = None, dpi: int = 150) -> None:
    """Writes a matplotlib figure as PNG, which says its `source`, and as PDF for papers, each whole or not at all."""
    pdf = dict.fromkeys(["CreationDate", "Creator", "Producer"])  # none of them: the same figure has the same bytes
    png = {"Software": None} | ({"Source": source} if source else {})
    for kind, metadata in (("pdf", pdf), ("png", png)):
        drawn = io.BytesIO()  # matplotlib's own error on a full disk says nothing of it
        figure.savefig(drawn, format=kind, dpi=dpi, bbox_inches="tight", metadata=metadata)
        with atomic_write(path.with_suffix(f".{kind}")) as partial:
            partial.write_bytes(drawn.getvalue())
