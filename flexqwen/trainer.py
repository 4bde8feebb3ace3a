"""transformers' Trainer with a mode for each row, losses by mode, and checkpoints that are complete or absent."""

import json
import math
from pathlib import Path

import torch
import transformers
from transformers.trainer_callback import ProgressCallback

from flexqwen.held_out import MODES, HeldOut, score
from flexqwen.objectives import IGNORE, ObjectiveArguments
from flexqwen.outputs import written_aside


class Progress(ProgressCallback):
    """The Trainer's bar with the latest losses in it, and a line for each evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        shown = {name.removeprefix("loss_"): f"{logs[name]:.3f}" for name in logs if name.startswith("loss_")}
        if shown:
            self.training_bar.set_postfix(shown)
        held_out = [f"{mode} {logs[f'eval_loss_{mode}']:.3f}" for mode in MODES if f"eval_loss_{mode}" in logs]
        if held_out:
            self.training_bar.write(f"step {state.global_step}: held-out loss (nats/token) {', '.join(held_out)}")


class FlexQwenTrainer(transformers.Trainer):
    """Trains on `TrainingRows`.

    Args:
        objective: which modes are trained, and how their losses are weighed.
        held_out: what `evaluate` measures, in every mode; `eval_loss` is the mean over the modes that are trained.
    """

    def __init__(self, *args, objective: ObjectiveArguments, held_out: HeldOut, **kwargs):
        super().__init__(*args, **kwargs)
        self.pop_callback(ProgressCallback)
        self.add_callback(Progress)
        self.objective, self.held_out = objective, held_out
        if objective.loss_weighting == "row":
            # A batch's loss is then a mean over its rows, and the Trainer takes the mean over accumulated batches.
            self.model_accepts_loss_kwargs = False
        self._sums = dict.fromkeys(MODES, 0)  # nats and labels since the last log, left on the device

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.objective.loss_weighting == "row":
            labels = (inputs["labels"] != IGNORE).sum(-1).clamp(min=1)
            inputs = {**inputs, "row_weights": 1 / labels, "num_items_in_batch": len(labels)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        is_causal = inputs["is_causal"]
        for mode, rows in (("causal", is_causal), ("masked", ~is_causal)):
            nats, labels = outputs.row_losses[rows].double().sum(), outputs.row_labels[rows].double().sum()
            self._sums[mode] = self._sums[mode] + torch.stack([nats, labels])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for mode in self.objective.modes:
                nats, labels = self._sums[mode].tolist()
                logs[f"loss_{mode}"] = nats / max(labels, 1)
                self._sums[mode] = 0
        logs["tokens_seen"] = self.state.global_step * self.tokens_per_step
        # The Trainer takes the whole run for one epoch; say how often the data was seen instead.
        self.state.epoch = self.state.global_step * self.train_dataset.rows_per_step / len(self.train_dataset.rows)
        super().log(logs, start_time)
        if self.args.should_save:
            with open(Path(self.args.output_dir) / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.state.global_step, **logs}) + "\n")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step, padding included."""
        return self.train_dataset.rows_per_step * self.train_dataset.rows.info["sequence_length"]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out loss (nats per predicted token) and bits per byte in each mode."""
        metrics = {}
        for mode in MODES:
            length = self.train_dataset.rows.info["sequence_length"]
            with self.accelerator.autocast():
                scores = score(self.model, self.held_out, mode, self.args.per_device_eval_batch_size * length)
            metrics[f"{metric_key_prefix}_loss_{mode}"] = float(scores.sum() / self.held_out.tokens.sum())
            metrics[f"{metric_key_prefix}_bits_per_byte_{mode}"] = float(
                scores.sum() / math.log(2) / self.held_out.bytes.sum()
            )
        losses = [metrics[f"{metric_key_prefix}_loss_{mode}"] for mode in self.objective.modes]
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _determine_best_metric(self, metrics, trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.should_save:
            with written_aside(Path(self.args.output_dir) / "best") as folder:
                self.save_model(str(folder), _internal_call=True)
                (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing to publish
        return is_best

    def evaluate_and_keep_best(self) -> None:
        """Evaluates, and writes `best/` if this is the lowest loss so far."""
        self._determine_best_metric(self.evaluate(), None)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            step = self.state.global_step
            (folder / f"checkpoint-{step}").rename(folder / f"step_{step:06d}")
