"""An average of the weights over the steps: what is evaluated and saved in their stead.

It is kept in the optimizer's state. In a checkpoint the two are exchanged: the average loads as its model, and training
resumes from the weights in the optimizer's state.
"""

import contextlib

import torch
from transformers.trainer_callback import TrainerCallback

from flexqwen.cli import InputError

AVERAGE = "average"  # of a weight, in the optimizer's state; while they are exchanged, the weight itself


class WeightAverage(TrainerCallback):
    """An exponential moving average, of which each step keeps the share `decay`, and the weights are the rest.

    In the first steps of a run it keeps less, (1 + n) / (10 + n) at most after n of them, so that the weights with
    which the run began soon count for nothing.
    """

    def __init__(self, decay: float):
        self.decay = decay

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.update(optimizer, state.global_step)

    @torch.no_grad()
    def update(self, optimizer, steps: int) -> None:
        """Takes in the weights after so many steps."""
        kept = _find_states(optimizer)
        if not kept:
            raise InputError("ema_decay is set, and this optim keeps nothing to which averages could be added")
        for weight, values in kept:
            if AVERAGE not in values:
                values[AVERAGE] = weight.detach().clone()
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_([values[AVERAGE] for _, values in kept], [weight for weight, _ in kept], 1 - decay)


@contextlib.contextmanager
def averaged(optimizer):
    """The model has the averages for its weights, where there are any."""
    exchange(optimizer)
    try:
        yield
    finally:
        exchange(optimizer)


@torch.no_grad()
def exchange(optimizer) -> None:
    """Weights become what their averages were, and the other way round; those without one stay."""
    for weight, values in _find_states(optimizer):
        if AVERAGE in values:
            kept = weight.detach().clone()
            weight.copy_(values[AVERAGE])
            values[AVERAGE].copy_(kept)


def resume(optimizer, has_average: bool) -> None:
    """Brings back the weights after a checkpoint is loaded; averages that are not gone on with are dropped."""
    exchange(optimizer)
    if not has_average:
        for _, values in _find_states(optimizer):
            values.pop(AVERAGE, None)


def _find_states(optimizer) -> list[tuple[torch.Tensor, dict]]:
    """The weights that have been trained, each with what the optimizer keeps for it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [(weight, optimizer.state[weight]) for weight in weights if weight in optimizer.state]
