"""train.py with an average of the weights (EMA) or with z-loss, to see whether either earns a place in the recipe.

    python benchmarks/recipe_trials.py ema|z_loss configs/quickstart.yaml [--name value ...]

Called by recipe.py. Neither is an option of train.py: benchmarks/README.md says what they brought.
"""

import runpy
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from flexqwen.data.packing import IGNORE
from flexqwen.training import trainer
from flexqwen.training.trainer import FlexQwenTrainer

EMA_DECAY = 0.98
Z_LOSS = 1e-4  # PaLM's (arXiv 2204.02311)


class EMATrainer(FlexQwenTrainer):
    """Evaluates, and keeps as `best`, an exponential moving average of the weights."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        parameters = list(self.model.parameters())
        average = [parameter.detach().clone() for parameter in parameters]

        class Average(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                decay = min(EMA_DECAY, state.global_step / (state.global_step + 9))  # the first weights are noise
                torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)

        self.add_callback(Average)
        self.swapped = parameters, average

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, average in zip(*self.swapped, strict=True):
            own = parameter.clone()
            parameter.copy_(average)
            average.copy_(own)

    def _determine_best_metric(self, metrics, trial) -> bool:
        self.swap()
        is_best = super()._determine_best_metric(metrics, trial)
        self.swap()
        return is_best

    def evaluate(self, *args, **kwargs):
        self.swap()
        metrics = super().evaluate(*args, **kwargs)
        self.swap()
        return metrics


class ZLossTrainer(FlexQwenTrainer):
    """Adds 1e-4 times the squared logarithm of the softmax's denominator at every label, rows weighed alike."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        hidden = []
        hook = model.model.register_forward_hook(lambda module, args, output: hidden.append(output.last_hidden_state))
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        hook.remove()
        labels = inputs["labels"][:, 1:]
        row, column = (labels != IGNORE).nonzero(as_tuple=True)
        squares = model.lm_head(hidden[0][row, column]).float().logsumexp(-1) ** 2  # at t-1, where t is predicted
        counts = (labels != IGNORE).sum(-1).clamp(min=1)
        loss = loss + Z_LOSS * (squares / counts[row]).sum() / len(labels)
        return (loss, outputs) if return_outputs else loss


if __name__ == "__main__":
    trainer.FlexQwenTrainer = {"ema": EMATrainer, "z_loss": ZLossTrainer}[sys.argv.pop(1)]  # train.py imports it
    runpy.run_path(str(Path(__file__).parents[1] / "train.py"), run_name="__main__")
