"""The dataset card: what a reader of the dataset has to know, in the form the Hugging Face Hub reads."""

from pathlib import Path
from typing import Any


def write_card(folder: Path, manifest: dict[str, Any], table, ngram, chosen) -> None:
    """Writes `<folder>/README.md`."""
    configs = {}
    for name in manifest["splits"]:
        config, split = name.split("/")
        configs.setdefault(config, []).append(split)
    lines = ["---", "language:", "- pt", "configs:"]
    for config, names in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in names:
            lines += [f"  - split: {split}", f"    path: data/{config}/{split}-*.parquet"]
    lines += ["---", "", "# Carolina Originality", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
