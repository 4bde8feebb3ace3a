"""What all figures share: colours of the modes, and a file that appears whole."""

from pathlib import Path

from flexqwen.files import atomic_write

COLORS = {"causal": "#1f77b4", "masked": "#d95f02", "fused": "#7570b3", "finetuned": "#1b9e77"}


def save_figure(figure, path: Path, source: str | None = None, dpi: int = 150, metadata: dict | None = None) -> None:
    """Writes a matplotlib figure as PNG, whole or not at all; `source` says in the file what it was drawn from."""
    metadata = ({"Source": source} if source else {}) | (metadata or {})
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi, bbox_inches="tight", metadata=metadata)
