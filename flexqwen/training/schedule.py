"""How long the rows and how large the batches are as training goes on: a run is one phase or several."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from flexqwen.cli import InputError
from flexqwen.data.packing import PackedRows


@dataclass(frozen=True)
class Phase:
    """Consecutive steps on rows of one length in batches of one size."""

    rows: PackedRows
    steps: range  # the optimiser steps of the phase, counted from 0 over the whole run
    rows_per_step: int  # over all processes and accumulated batches

    @property
    def tokens_per_step(self) -> int:
        """Padding included."""
        return self.rows_per_step * self.rows.info["sequence_length"]

    @property
    def passes(self) -> float:
        """How often the phase sees its rows."""
        return len(self.steps) * self.rows_per_step / len(self.rows)

    def steps_before(self, step: int) -> int:
        """How many of the phase's steps are among the first `step` of the run."""
        return len(range(self.steps.start, min(step, self.steps.stop)))


@dataclass(frozen=True)
class PhaseSettings:
    """A phase as the config gives it."""

    until: float  # the share of the run's steps (0 to 1) at which the phase ends
    sequence_length: int
    batch_fraction: float = 1.0  # tokens of a step, as a share of what a step of the last phase has


def parse_phases(given: list[str] | None, sequence_length: int) -> list[PhaseSettings]:
    """Reads `phases`, a JSON object each; one phase of the run's own length where there are none."""
    phases = []
    for text in given or ["{}"]:
        try:
            phase = PhaseSettings(**{"until": 1.0, "sequence_length": sequence_length, **json.loads(text)})
            is_valid = 0 < phase.until <= 1 and phase.sequence_length >= 2 and 0 < phase.batch_fraction <= 1
        except (ValueError, TypeError) as error:
            raise InputError(f"phases: {text} cannot be read: {error}") from None
        if not is_valid:
            raise InputError(f"phases: {text} needs until and batch_fraction in (0, 1] and sequence_length >= 2")
        phases.append(phase)
    ends = [phase.until for phase in phases]
    if ends != sorted(set(ends)) or ends[-1] != 1:
        raise InputError(f"phases: until must rise to 1, got {', '.join(map(str, ends))}")
    if phases[-1].sequence_length != sequence_length or phases[-1].batch_fraction != 1:
        what = f"the run's sequence_length, {sequence_length}, and batch_fraction 1"
        raise InputError(f"phases: the last must have {what}")
    return phases


def plan_phases(
    settings: list[PhaseSettings], rows: dict[int, PackedRows], max_steps: int, train_batch_size: int, batches: int
) -> list[Phase]:
    """The phases of a run, whose packed rows are given by their length.

    In the last phase a device's batch has `train_batch_size` rows; `batches` are processes times accumulated batches.
    """
    tokens, start, phases = train_batch_size * settings[-1].sequence_length, 0, []
    for phase in settings:
        count, end = tokens * phase.batch_fraction / phase.sequence_length, round(phase.until * max_steps)
        if count < 1 or count != int(count):
            what = f"{tokens} tokens of a batch times batch_fraction {phase.batch_fraction}"
            remedy = "it must be a whole number"
            raise InputError(f"phases: {what} make {count:g} rows of {phase.sequence_length}; {remedy}")
        phases.append(Phase(rows[phase.sequence_length], range(start, end), batches * int(count)))
        start = end
    return phases


class StepBatches:
    """A batch sampler: the item numbers of every device's batches in training order.

    A step's rows are dealt in equal parts to `batches_per_step` (processes times accumulated batches), so that they do
    not depend on how many there are.
    """

    def __init__(self, phases: list[Phase], batches_per_step: int):
        self.phases, self.batches_per_step = phases, batches_per_step

    def __len__(self) -> int:
        return sum(len(phase.steps) for phase in self.phases) * self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        first = 0
        for phase in self.phases:
            size = phase.rows_per_step // self.batches_per_step
            for _ in range(len(phase.steps) * self.batches_per_step):
                yield list(range(first, first + size))
                first += size
