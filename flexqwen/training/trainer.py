"""transformers' Trainer with a mode for each row, losses by mode, and checkpoints that are complete or absent."""

import contextlib
import functools
import json
import math
import pickle
import sys
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from flexqwen.cli import SHORTAGES, InputError, locate_error
from flexqwen.data.packing import IGNORE
from flexqwen.evaluation.heldout import MODES, HeldOut, score
from flexqwen.files import atomic_write, read_json, remove_path
from flexqwen.remote import explain_failure, reason
from flexqwen.training import average, checkpoints
from flexqwen.training.arguments import Arguments, fix_training_arguments
from flexqwen.training.callbacks import Progress, SaveOnSignal, ignore_signals
from flexqwen.training.checkpoints import finish_checkpoint, last_checkpoint, link_best, list_checkpoints, step_of
from flexqwen.training.compat import (
    allow_fsdp_on_cpu,
    compile_layers,
    fuse_norms,
    keep_losses_whole,
    refusals_named,
    saved_as,
)
from flexqwen.training.cpu import can_fuse, fuse_layers, keep_freed_memory
from flexqwen.training.finiteness import LossCheck, check_weights, suggest_remedy
from flexqwen.training.metrics import TrainingMetrics
from flexqwen.training.objectives import TrainingRows, collate
from flexqwen.training.optimizer import MuonWithAdamW
from flexqwen.training.schedule import Phase, StepBatches
from modeling_flexqwen import FlexQwenForCausalLM

RESUME_BEFORE = "remove it, and the same command resumes from the one before it"


class FlexQwenTrainer(transformers.Trainer):
    """Trains on the rows of a run's phases.

    `held_out` is what `evaluate` measures, in every mode; `eval_loss` is the mean over the modes that are trained.
    """

    def __init__(self, args: Arguments, folder: Path, model, tokenizer, phases: list[Phase], held_out: HeldOut):
        fix_training_arguments(args.training, folder)
        if args.training.torch_compile:
            compile_layers(model, args.training)
        elif args.training.device.type == "cuda":
            fuse_norms(model)
        elif args.training.bf16 and can_fuse(model.config):
            fuse_layers(model)
        if args.training.device.type == "cpu":
            keep_freed_memory()
        rows = TrainingRows(phases, args.objective, args.training.seed)
        collator = functools.partial(collate, masked_prediction=args.objective.masked_prediction)
        with refusals_named("the trainer"):
            super().__init__(model, args.training, collator, rows, "held-out", tokenizer)
        self.pop_callback(ProgressCallback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress)
        self.on_signal = SaveOnSignal()
        self.add_callback(self.on_signal)
        if self.args.ema_decay:
            self.add_callback(average.WeightAverage(self.args.ema_decay))
        self.folder, self.objective, self.held_out = folder, args.objective, held_out
        if self.objective.loss_weighting == "row":
            # A batch's loss is then a mean over its rows, and the Trainer takes the mean over accumulated batches.
            self.model_accepts_loss_kwargs = False
        self.metrics = TrainingMetrics(phases)
        self.batches = StepBatches(phases, self.args.gradient_accumulation_steps * self.args.world_size)
        self.losses = LossCheck(rows, self.batches, self.args)

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp:
            allow_fsdp_on_cpu()
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            keep_losses_whole(self.accelerator)

    # What the Trainer makes

    def create_optimizer(self, model=None):
        args = self.args
        with refusals_named("the optimizer"):
            if args.muon and self.optimizer is None:
                model = self.model if model is None else model
                betas = (args.adam_beta1, args.adam_beta2)
                self.optimizer = MuonWithAdamW(model, args.learning_rate, args.weight_decay, betas, args.adam_epsilon)
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The Trainer's, but `num_decay_steps` of `lr_scheduler_kwargs` may be a share of the steps."""
        schedule = self.args.lr_scheduler_kwargs or {}
        if 0 < (decay := schedule.get("num_decay_steps", 0)) < 1:
            self.args.lr_scheduler_kwargs = {**schedule, "num_decay_steps": round(decay * num_training_steps)}
        with refusals_named("the learning rate's schedule"):
            return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader:
        """One batch after another of `StepBatches`; accelerate deals them to the processes in turn."""
        args, workers = self.args, self.args.dataloader_num_workers
        options = {"num_workers": workers, "persistent_workers": workers > 0, "worker_init_fn": ignore_signals}
        options |= {"prefetch_factor": (args.dataloader_prefetch_factor or 2) if workers else None}
        options |= {"pin_memory": args.dataloader_pin_memory, "collate_fn": self.data_collator}
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=self.batches, **options))

    # A step

    def get_batch_samples(self, *args, **kwargs):
        self._batch_of_step = 0
        with self.metrics.left_out(is_waiting=True):
            return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.metrics.loss = self.metrics.loss + loss
        self.losses.add(self.state.global_step, self._batch_of_step, loss)
        self._batch_of_step += 1
        if loss.device.type == "cpu":  # a GPU would have to wait: there, losses are looked at before a log or a save
            self.losses.check()
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

    # Logs and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step = self.state.global_step
        if "train_runtime" in logs:  # the Trainer's own summary at the end, which knows nothing of what was resumed
            return
        if "loss" in logs:
            self.losses.check()
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
        self.losses.check()
        metrics, length = {}, self.train_dataset.phases[-1].rows.info["sequence_length"]
        for mode in MODES:
            eager = torch.compiler.set_stance("force_eager")  # held-out texts are of any length
            with self.metrics.left_out(), self.accelerator.autocast(), eager, self._averaged():
                scores = score(self.model_wrapped, self.held_out, mode, self.args.per_device_eval_batch_size * length)
            metrics[f"{metric_key_prefix}_loss_{mode}"] = float(scores.sum() / self.held_out.tokens.sum())
            bits = scores.sum() / math.log(2)
            metrics[f"{metric_key_prefix}_bits_per_byte_{mode}"] = float(bits / self.held_out.bytes.sum())
        losses = [metrics[f"{metric_key_prefix}_loss_{mode}"] for mode in self.objective.modes]
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        if wrong := next((name for name, value in metrics.items() if not math.isfinite(value)), None):
            what = f"{wrong} after step {self.state.global_step} is {metrics[wrong]}"
            raise InputError(f"{what}; {suggest_remedy(self.args.output_dir)}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _averaged(self):
        return average.averaged(self.optimizer) if self.args.ema_decay else contextlib.nullcontext()

    # Checkpoints

    def _determine_best_metric(self, metrics, trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = None  # the Trainer would look for the best among its own checkpoints
        if is_best:
            best = self.folder / "best"
            # Processes that write nothing take part in saving all the same.
            place = atomic_write(best) if self.args.should_save else contextlib.nullcontext(best)
            with self._saving("best"), place as folder, self._averaged():
                self.save_model(str(folder), _internal_call=True)
                if self.args.should_save:
                    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing to publish
            if self.args.should_save:
                link_best(self.folder)
        return is_best

    def _save(self, output_dir=None, state_dict=None) -> None:
        with saved_as(self.model, FlexQwenForCausalLM):
            super()._save(output_dir, state_dict)
        # The Trainer has every process come here, and only one may write.
        if self.args.should_save and "masked" in self.objective.modes:
            checkpoints.write_embedding_modules(Path(output_dir or self.folder), self.model.config.hidden_size)

    def _save_checkpoint(self, model, trial) -> None:
        self.losses.check()
        step = self.state.global_step
        check_weights(model, step, self.args.output_dir)
        with self._saving(f"step {step}"), self._averaged():
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

    @contextlib.contextmanager
    def _saving(self, what: str):
        """An output that cannot be written leaves nothing behind, and the checkpoints before it whole."""
        try:
            with self.metrics.left_out():
                yield
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            for left in self.folder.glob("checkpoint-*"):
                remove_path(left)
            last = f"the last complete checkpoint is {last_checkpoint(self.folder) or 'none'}"
            remedy, what = "mend that, and run the same command again", f"{what} of {self.folder} could not be saved"
            raise InputError(f"{what} ({reason(locate_error(error, self.folder))}); {last}; {remedy}") from error

    def _load_rng_state(self, checkpoint) -> None:
        with explain_failure(f"{checkpoint} is damaged", RESUME_BEFORE):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and not self.args.deepspeed:
            average.resume(self.optimizer, bool(self.args.ema_decay))

    def _issue_warnings_after_load(self, load_result) -> None:
        tied = set(getattr(self.model, "all_tied_weights_keys", ()))
        if set(load_result.missing_keys) - tied or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    # The whole

    def train_to_end(self, checkpoint: Path | None, on_start) -> bool:
        """Trains to the last step, from a checkpoint if there is one; `best/` is there in the end.

        Calls `on_start` once all is made that can fail, and before anything is written. False where Ctrl-C or SIGTERM
        stopped it early, with a checkpoint.
        """
        # Sums since the last log; an old checkpoint has none.
        step, sums = (step_of(checkpoint), read_json(checkpoint / checkpoints.SUMS)) if checkpoint else (0, None)
        begun, start = [], TrainerCallback()

        def begin(*args, **kwargs) -> None:
            begun.append(True)
            on_start()
            self.metrics.resume(step, sums, self.args)

        start.on_train_begin = begin
        # First of the callbacks: others write into the folder, which a new run empties.
        self.callback_handler.callbacks.insert(0, start)
        try:
            with self.on_signal.listening():
                self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            if self.state.global_step < self.args.max_steps:
                if self.args.should_save:
                    step, last = self.state.global_step, last_checkpoint(self.folder)
                    print(f"stopped at step {step}: {last}; the same command resumes it", file=sys.stderr)
                return False
            if not (self.folder / "best").is_dir():
                self.state.best_metric = None
                self._determine_best_metric(self.evaluate(), None)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of memory at step {self.state.global_step + 1} ({reason(error)}); lower "
                "per_device_train_batch_size and raise gradient_accumulation_steps by as much, or set "
                "gradient_checkpointing, or lower sequence_length or, in evaluation, per_device_eval_batch_size"
            ) from error
        except Exception as error:
            if "DataLoader worker (pid" in str(error):  # "Caught … in DataLoader worker" is its own error
                what = f"a process that makes batches was killed at step {self.state.global_step + 1}"
                remedy = "if memory or open files were short, lower dataloader_num_workers; the same command resumes"
                raise InputError(f"{what}; {remedy}") from error
            is_short = getattr(error, "errno", None) in SHORTAGES
            if checkpoint is None or begun or is_short or isinstance(error, InputError):
                raise
            # What lists its files is as it was saved; only a pickle of something else is none that was saved.
            if (checkpoint / checkpoints.FILES).is_file() and not isinstance(error, pickle.UnpicklingError):
                what = f"{checkpoint} does not fit these settings ({reason(error)})"
                raise InputError(f"{what}; pass another --output_dir, or remove {self.folder} to begin anew") from error
            raise InputError(f"{checkpoint} is damaged ({reason(error)}); {RESUME_BEFORE}") from error
        return True
