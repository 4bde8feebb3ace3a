"""Stops a run whose loss or weights are no numbers, and says at which documents."""

import itertools
from pathlib import Path

import torch

from flexqwen.cli import InputError
from flexqwen.training.checkpoints import last_checkpoint


class LossCheck:
    """Losses of batches that were not looked at yet. On a GPU, looking at each would make the host wait for it."""

    def __init__(self, rows, batches, args):
        self.rows, self.batches, self.args = rows, batches, args
        self._unchecked: list[tuple[int, int, torch.Tensor]] = []  # step, batch of the step, its loss

    def add(self, step: int, batch: int, loss: torch.Tensor) -> None:
        self._unchecked.append((step, batch, loss))

    def check(self) -> None:
        """Raises `InputError` where one is not a number: its step, its documents, the last good checkpoint."""
        unchecked, self._unchecked = self._unchecked, []
        finite = torch.stack([loss for *_, loss in unchecked]).isfinite().tolist() if unchecked else []
        if all(finite):
            return
        step, batch, _ = unchecked[finite.index(False)]
        rows, batches, args = self.rows, self.batches, self.args
        number = step * batches.batches_per_step + batch * args.world_size + args.process_index
        items = next(itertools.islice(batches, number, None))
        documents = [name for item in items for name in rows.place(item)[0].rows.documents(rows.row_number(item))]
        shown = ", ".join(documents[:8]) + (f" and {len(documents) - 8} more" if len(documents) > 8 else "")
        what = f"the loss of step {step + 1} is not a number; its batch has documents {shown}"
        raise InputError(f"{what}; {suggest_remedy(args.output_dir)}, and run again")


def check_weights(model, step: int, folder: str) -> None:
    """Raises `InputError` where one is not a number, as after a step whose loss was one and whose gradient was not."""
    parameters = (getattr(parameter, "to_local", lambda p=parameter: p)() for parameter in model.parameters())
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        what = f"the weights after step {step} are not numbers, though the loss was"
        raise InputError(f"{what}; {suggest_remedy(folder)}")


def suggest_remedy(folder: str) -> str:
    """What is left of a run that diverged, and what to do."""
    last = last_checkpoint(Path(folder)) or "none"
    return f"the last good checkpoint is {last}; lower the learning rate, or max_grad_norm"
