"""The options of eval.py, which are read before anything that takes seconds to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexqwen.cli import InputError, suggest_name
from flexqwen.evaluation import MODES
from flexqwen.evaluation.tasks import NAMES, Context


@dataclass(frozen=True, kw_only=True)
class Options(Context):
    """What is measured, as `eval.py --help` explains it."""

    model: str
    tasks: str = "bits_per_byte"
    modes: str | None = None
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        super().__post_init__()
        if unknown := [mode for mode in (self.modes or MODES[0]).split(",") if mode not in MODES]:
            nearest = suggest_name(unknown[0], MODES)
            raise InputError(f"unknown mode {unknown[0]!r}{nearest}; there are: {', '.join(MODES)}")

    @property
    def names(self) -> Sequence[str]:
        return NAMES if self.tasks == "all" else self.tasks.split(",")

    @property
    def folder(self) -> Path:
        return Path(self.output) if self.output else default_folder(self.model)


def default_folder(model: str) -> Path:
    """Where the results of a checkpoint lie: in its run's folder; those of other models lie under `runs`."""
    path = Path(model)
    return (path.parent if (path.parent / "run.json").is_file() else Path("runs")) / f"eval-{path.name}"
