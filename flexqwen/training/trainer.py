"""transformers' Trainer with a mode for each row, losses by mode, and checkpoints that are complete or absent."""

import contextlib
import functools
import json
import math
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_callback import ProgressCallback

from flexqwen.cli import InputError
from flexqwen.data.packing import IGNORE
from flexqwen.evaluation.heldout import MODES, HeldOut, score
from flexqwen.files import atomic_write, remove_path
from flexqwen.training.arguments import Arguments, fix_training_arguments
from flexqwen.training.callbacks import OnStart, Progress, SaveOnSignal, ignore_signals
from flexqwen.training.checkpoints import (
    finish_checkpoint,
    last_checkpoint,
    link_best,
    list_checkpoints,
    read_sums,
    write_embedding_modules,
)
from flexqwen.training.compat import allow_fsdp_on_cpu, saved_as
from flexqwen.training.finiteness import LossCheck, check_weights, suggest_remedy
from flexqwen.training.metrics import TrainingMetrics
from flexqwen.training.objectives import ObjectiveArguments, TrainingRows, collate
from flexqwen.training.optimizer import MuonWithAdamW
from flexqwen.training.schedule import Phase, StepBatches
from modeling_flexqwen import FlexQwenForCausalLM


def make_trainer(
    args: Arguments, folder: Path, model, tokenizer, phases: list[Phase], held_out: HeldOut
) -> "FlexQwenTrainer":
    """The trainer of a run in `folder`.

    Raises:
        InputError: options that the Trainer or accelerate refuses.
    """
    fix_training_arguments(args.training, folder)
    try:
        return FlexQwenTrainer(
            model=model,
            args=args.training,
            train_dataset=TrainingRows(phases, args.objective, args.training.seed),
            processing_class=tokenizer,
            objective=args.objective,
            held_out=held_out,
            muon=args.training.muon,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the trainer cannot be made: {' '.join(str(error).split())}") from error


class FlexQwenTrainer(transformers.Trainer):
    """Trains on `TrainingRows`.

    Args:
        objective: which modes are trained, and how their losses are weighed.
        held_out: what `evaluate` measures, in every mode; `eval_loss` is the mean over the modes that are trained.
        muon: train the layers' matrices with Muon.
    """

    def __init__(self, *args, objective: ObjectiveArguments, held_out: HeldOut, muon: bool = False, **kwargs):
        super().__init__(*args, eval_dataset="held-out", data_collator=collate, **kwargs)
        self.pop_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress)
        self.on_signal = SaveOnSignal()
        self.add_callback(self.on_signal)
        self.objective, self.held_out, self.muon = objective, held_out, muon
        if objective.loss_weighting == "row":
            # A batch's loss is then a mean over its rows, and the Trainer takes the mean over accumulated batches.
            self.model_accepts_loss_kwargs = False
        self.metrics = TrainingMetrics(self.train_dataset.phases)
        self.losses = LossCheck()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.args.output_dir)

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp:
            allow_fsdp_on_cpu()
        super().create_accelerator_and_postprocess()

    # What the Trainer makes

    def create_optimizer(self, model=None):
        args = self.args
        try:
            if self.muon and self.optimizer is None:
                model = self.model if model is None else model
                betas = (args.adam_beta1, args.adam_beta2)
                self.optimizer = MuonWithAdamW(model, args.learning_rate, args.weight_decay, betas, args.adam_epsilon)
            return super().create_optimizer(model)
        except (ValueError, TypeError, KeyError, ImportError) as error:
            raise InputError(f"the optimizer cannot be made: {' '.join(str(error).split())}") from error

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The Trainer's, but `num_decay_steps` of `lr_scheduler_kwargs` may be a share of the steps."""
        schedule = self.args.lr_scheduler_kwargs or {}
        if 0 < (decay := schedule.get("num_decay_steps", 0)) < 1:
            self.args.lr_scheduler_kwargs = {**schedule, "num_decay_steps": round(decay * num_training_steps)}
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"the learning rate's schedule cannot be made: {' '.join(str(error).split())}") from error

    def get_train_dataloader(self) -> DataLoader:
        """One batch after another of `StepBatches`; accelerate deals them to the processes in turn."""
        args = self.args
        workers = {}
        if args.dataloader_num_workers:
            workers = {"prefetch_factor": args.dataloader_prefetch_factor or 2, "persistent_workers": True}
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=self.step_batches(),
                collate_fn=self.data_collator,
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                worker_init_fn=ignore_signals,
                **workers,
            )
        )

    def step_batches(self) -> StepBatches:
        """The batches of every process, in order."""
        return StepBatches(self.train_dataset.phases, self.args.gradient_accumulation_steps * self.args.world_size)

    # A step

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self.metrics.add_wait(time.perf_counter() - start)
        self._batch_of_step = 0
        return batches

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.metrics.loss = self.metrics.loss + loss
        self.losses.add(self.state.global_step, self._batch_of_step, loss)
        self._batch_of_step += 1
        if loss.device.type == "cpu":  # a GPU would have to wait: there, losses are looked at before a log or a save
            self.check_finite()
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        is_causal = inputs["is_causal"]
        if len(self.objective.modes) == 1:  # said as a bool, every attention implementation can do it
            inputs = {**inputs, "is_causal": self.objective.modes == ("causal",)}
        if self.objective.loss_weighting == "row":
            labels = (inputs["labels"] != IGNORE).sum(-1).clamp(min=1)
            inputs = {**inputs, "row_weights": 1 / labels, "num_items_in_batch": len(labels)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        tokens = (inputs["input_ids"] != self.processing_class.pad_token_id).sum(-1)
        self.metrics.add_rows(is_causal, outputs.row_losses, outputs.row_labels, tokens)
        return (loss, outputs) if return_outputs else loss

    def check_finite(self) -> None:
        """Stops where a loss that was not looked at yet is not a number."""
        self.losses.check(self.train_dataset, self.step_batches(), self.args)

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step = self.state.global_step
        if "train_runtime" in logs:  # the Trainer's own summary at the end, which knows nothing of what was resumed
            return
        if "loss" in logs:
            self.check_finite()
            config = self.accelerator.unwrap_model(self.model).config
            logs.update(self.metrics.compute(step, self.accelerator, config))
            self.metrics.start(step)
        logs["tokens_seen"] = self.metrics.tokens_seen(step)
        self.state.epoch = self.metrics.passes(step)  # the Trainer takes the whole run for one epoch
        super().log(logs, start_time)
        if self.args.should_save:
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                # The norm of the gradients may overflow where the loss does not; JSON has no such number.
                finite = {name: value if math.isfinite(value) else None for name, value in logs.items()}
                file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out loss (nats per predicted token) and bits per byte in each mode; every process does it all."""
        self.check_finite()
        start, metrics = time.perf_counter(), {}
        length = self.train_dataset.phases[-1].rows.info["sequence_length"]
        for mode in MODES:
            with self.accelerator.autocast():
                scores = score(self.model_wrapped, self.held_out, mode, self.args.per_device_eval_batch_size * length)
            metrics[f"{metric_key_prefix}_loss_{mode}"] = float(scores.sum() / self.held_out.tokens.sum())
            metrics[f"{metric_key_prefix}_bits_per_byte_{mode}"] = float(
                scores.sum() / math.log(2) / self.held_out.bytes.sum()
            )
        losses = [metrics[f"{metric_key_prefix}_loss_{mode}"] for mode in self.objective.modes]
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        if wrong := next((name for name, value in metrics.items() if not math.isfinite(value)), None):
            what = f"{wrong} after step {self.state.global_step} is {metrics[wrong]}"
            raise InputError(f"{what}; {suggest_remedy(self.args.output_dir)}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.metrics.leave_out(time.perf_counter() - start)
        return metrics

    def evaluate_and_keep_best(self) -> None:
        """Evaluates, and writes `best/` if this is the lowest loss so far."""
        self._determine_best_metric(self.evaluate(), None)

    # Checkpoints

    def _determine_best_metric(self, metrics, trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = None  # the Trainer would look for the best among its own checkpoints
        if is_best:
            best = self.folder / "best"
            # Processes that write nothing take part in saving all the same.
            aside = atomic_write(best) if self.args.should_save else contextlib.nullcontext(best)
            with self._saving("best"), aside as folder:
                self.save_model(str(folder), _internal_call=True)
                if self.args.should_save:
                    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing to publish
            if self.args.should_save:
                link_best(self.folder)
        return is_best

    def _save(self, output_dir=None, state_dict=None) -> None:
        with saved_as(self.model, FlexQwenForCausalLM):
            super()._save(output_dir, state_dict)
        if "masked" in self.objective.modes:
            write_embedding_modules(Path(output_dir or self.folder), self.model.config.hidden_size)

    def _save_checkpoint(self, model, trial) -> None:
        self.check_finite()
        check_weights(model, self.state.global_step, self.args.output_dir)
        start, step = time.perf_counter(), self.state.global_step
        with self._saving(f"step {step}"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            sums, loss = self.metrics.reduce(self.accelerator)
            if self.args.should_save:
                sums = {"step": self.metrics.step, "sums": sums, "loss": loss}
                finish_checkpoint(self.folder / f"checkpoint-{step}", self.folder / f"step_{step:06d}", sums)
                kept = self.args.save_total_limit
                for old in list_checkpoints(self.folder)[:-kept] if kept else ():
                    remove_path(old)
        self.accelerator.wait_for_everyone()
        self.metrics.leave_out(time.perf_counter() - start)

    @contextlib.contextmanager
    def _saving(self, what: str):
        """An output that cannot be written leaves nothing behind, and the checkpoints before it whole."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            for left in self.folder.glob("checkpoint-*"):
                remove_path(left)
            last = last_checkpoint(self.folder)
            raise InputError(
                f"{what} of {self.folder} could not be saved ({' '.join(str(error).split())[:200]}); the last complete "
                f"checkpoint is {last or 'none'}; make room and run the same command again"
            ) from error

    def _issue_warnings_after_load(self, load_result) -> None:
        tied = set(getattr(self.model, "all_tied_weights_keys", ()))
        if set(load_result.missing_keys) - tied or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    # The whole

    def run(self, checkpoint: Path | None, on_start) -> bool:
        """Trains to the last step, from a checkpoint if there is one; `best/` is there in the end.

        Args:
            on_start: called once all is made that can fail, and before anything is written.

        Returns:
            Whether it came to the last step; Ctrl-C or SIGTERM stop it early, with a checkpoint.

        Raises:
            InputError: out of memory, or a loss that is not a number.
        """
        sums = None if checkpoint is None else read_sums(checkpoint)
        step = 0 if checkpoint is None else int(checkpoint.name.removeprefix("step_"))
        # First of the callbacks: others write into the folder, which a new run empties.
        on_start = OnStart(on_start, functools.partial(self.metrics.resume, step, sums, self.args))
        self.callback_handler.callbacks.insert(0, on_start)
        try:
            with self.on_signal.listening():
                self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if self.state.global_step < self.args.max_steps:
                if self.args.should_save:
                    step, last = self.state.global_step, last_checkpoint(self.folder)
                    print(f"stopped at step {step}: {last}; the same command resumes it", file=sys.stderr)
                return False
            if not (self.folder / "best").is_dir():
                self.state.best_metric = None
                self.evaluate_and_keep_best()
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of memory at step {self.state.global_step + 1} ({' '.join(str(error).split())[:150]}); lower "
                "per_device_train_batch_size and raise gradient_accumulation_steps by as much, or set "
                "gradient_checkpointing, or lower sequence_length or, in evaluation, per_device_eval_batch_size"
            ) from error
        return True
