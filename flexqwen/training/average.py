"""An average of the weights over the steps: what is evaluated and saved in their stead.

It is kept in the optimizer's state. In a checkpoint the two are exchanged: the average loads as its model, and training
resumes from the weights in the optimizer's state.
"""

import contextlib

import torch
from transformers.trainer_callback import TrainerCallback

AVERAGE = "average"  # of a weight, in the optimizer's state


class WeightAverage(TrainerCallback):
    """An exponential moving average, in which each step counts `decay` times what the next one does.

    While there are few steps it forgets faster: after n of them the factor is (1 + n) / (10 + n) at most, so that the
    first weights soon count for nothing.
    """

    def __init__(self, decay: float):
        self.decay = decay

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.update(optimizer, state.global_step)

    @torch.no_grad()
    def update(self, optimizer, steps: int) -> None:
        """Takes in the weights after so many steps."""
        kept = _find_states(optimizer)
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
    """Weights become what their averages were, and the other way round."""
    for weight, values in _find_states(optimizer):
        if AVERAGE in values:
            kept = weight.detach().clone()
            weight.copy_(values[AVERAGE])
            values[AVERAGE].copy_(kept)


def _find_states(optimizer) -> list[tuple[torch.Tensor, dict]]:
    """The weights that have been trained, each with what the optimizer keeps for it."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [(weight, optimizer.state[weight]) for weight in weights if weight in optimizer.state]
