"""transformers' Trainer with a mode for each row, losses by mode, and checkpoints that are complete or absent."""

import contextlib
import itertools
import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import torch
import transformers
from accelerate import DistributedType, PartialState
from torch.utils.data import DataLoader
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from flexqwen.cli import InputError
from flexqwen.data.packing import IGNORE
from flexqwen.evaluation.heldout import MODES, HeldOut, score
from flexqwen.files import atomic_write, read_json, remove_path, sync, write_json
from flexqwen.training.flops import model_flops, peak_flops
from flexqwen.training.objectives import ObjectiveArguments, collate
from flexqwen.training.optimizer import MuonWithAdamW
from flexqwen.training.runs import FILES, SUMS, checkpoints, last_checkpoint, sizes
from flexqwen.training.schedule import StepBatches
from modeling_flexqwen import FlexQwenForCausalLM


class Progress(ProgressCallback):
    """The Trainer's bar with the latest losses and the speed in it, and a line for each evaluation."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None:
            return
        shown = {name.removeprefix("loss_"): f"{logs[name]:.3f}" for name in logs if name.startswith("loss_")}
        if shown:
            self.training_bar.set_postfix({**shown, "tokens/s": f"{logs['tokens_per_second']:,.0f}"})
        held_out = [f"{mode} {logs[f'eval_loss_{mode}']:.3f}" for mode in MODES if f"eval_loss_{mode}" in logs]
        if held_out:
            self.training_bar.write(f"step {state.global_step}: held-out loss (nats/token) {', '.join(held_out)}")


class SaveOnSignal(TrainerCallback):
    """On the first Ctrl-C or SIGTERM, finishes the step, saves and stops; a second one stops at once."""

    def __init__(self):
        self.received = False

    @contextlib.contextmanager
    def listening(self):
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step, with a checkpoint; once more stops at once", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:  # processes must stop at the same step; to ask them at each would cost time
            if state.global_step % 5:
                return
            received = torch.tensor(int(self.received), device=args.device)
            torch.distributed.all_reduce(received)
            self.received = bool(received)
        if self.received and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


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
        self._start_log(0)
        self._unchecked: list[tuple[int, int, torch.Tensor]] = []  # step, batch of the step, its loss

    def _start_log(self, step: int) -> None:
        self._sums: torch.Tensor | int = 0  # (modes, 3): nats, labels, tokens; left on the device
        self._loss: torch.Tensor | float = 0.0
        self._logged_step = self._timed_step = step
        self._since, self._waited = time.perf_counter(), 0.0

    def create_accelerator_and_postprocess(self) -> None:
        # accelerate turns FSDP on only where it sees several GPUs; torch has it on CPUs too, over gloo.
        if self.args.fsdp and PartialState().distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def _save(self, output_dir=None, state_dict=None) -> None:
        # FSDP2 gives the model a class made on the fly, whose name and source files would be saved with it.
        wrapped, self.model.__class__ = self.model.__class__, FlexQwenForCausalLM
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = wrapped

    def create_optimizer(self, model=None):
        if self.muon and self.optimizer is None:
            args = self.args
            self.optimizer = MuonWithAdamW(
                self.model if model is None else model,
                args.learning_rate,
                args.weight_decay,
                (args.adam_beta1, args.adam_beta2),
                args.adam_epsilon,
            )
        return super().create_optimizer(model)

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
                worker_init_fn=leave_signals,
                **workers,
            )
        )

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self._waited += time.perf_counter() - start
        self._batch_of_step = 0
        return batches

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._loss = self._loss + loss
        self._unchecked.append((self.state.global_step, self._batch_of_step, loss))
        self._batch_of_step += 1
        if loss.device.type == "cpu":  # a GPU would have to wait: there, losses are looked at before a log or a save
            self.check_finite()
        return loss

    def check_finite(self) -> None:
        """Stops where the loss of a batch that was not looked at yet is not a number.

        Raises:
            InputError: naming the step, the documents of the batch and the last good checkpoint.
        """
        if not self._unchecked:
            return
        unchecked, self._unchecked = self._unchecked, []
        finite = torch.stack([loss for _, _, loss in unchecked]).isfinite().tolist()
        if all(finite):
            return
        step, batch, _ = unchecked[finite.index(False)]
        rows = self.train_dataset
        batches = self.step_batches()
        number = step * batches.batches_per_step + batch * self.args.world_size + self.args.process_index
        items = next(itertools.islice(batches, number, None))
        documents = [name for item in items for name in rows.place(item)[0].rows.documents(rows.row_number(item))]
        last = last_checkpoint(Path(self.args.output_dir))
        shown = ", ".join(documents[:8]) + (f" and {len(documents) - 8} more" if len(documents) > 8 else "")
        raise InputError(
            f"the loss of step {step + 1} is not a number; its batch has documents {shown}; the last good checkpoint "
            f"is {last or 'none'}; lower the learning rate, or max_grad_norm, and run again"
        )

    def step_batches(self) -> StepBatches:
        """The batches of every process, in order."""
        return StepBatches(self.train_dataset.phases, self.args.gradient_accumulation_steps * self.args.world_size)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        is_causal = inputs["is_causal"]
        if len(self.objective.modes) == 1:  # said as a bool, every attention implementation can do it
            inputs = {**inputs, "is_causal": self.objective.modes == ("causal",)}
        if self.objective.loss_weighting == "row":
            labels = (inputs["labels"] != IGNORE).sum(-1).clamp(min=1)
            inputs = {**inputs, "row_weights": 1 / labels, "num_items_in_batch": len(labels)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        real = (inputs["input_ids"] != self.processing_class.pad_token_id).sum(-1)
        dtype = torch.float32 if real.device.type == "mps" else torch.float64
        rows = torch.stack([outputs.row_losses.to(dtype), outputs.row_labels.to(dtype), real.to(dtype)], dim=-1)
        self._sums = self._sums + torch.stack([is_causal, ~is_causal]).to(dtype) @ rows
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step = self.state.global_step
        if "train_runtime" in logs:  # the Trainer's own summary at the end, which knows nothing of what was resumed
            return
        if "loss" in logs:
            self.check_finite()
            logs.update(self._training_logs(step))
            self._start_log(step)
        logs["tokens_seen"] = self.tokens_seen(step)
        # The Trainer takes the whole run for one epoch; say how often the data was seen instead.
        self.state.epoch = sum(
            len(range(phase.steps.start, min(step, phase.steps.stop))) * phase.rows_per_step / len(phase.rows)
            for phase in self.train_dataset.phases
        )
        super().log(logs, start_time)
        if self.args.should_save:
            with open(Path(self.args.output_dir) / "metrics.jsonl", "a", encoding="utf-8") as file:
                # The norm of the gradients may overflow where the loss does not; JSON has no such number.
                finite = {name: value if math.isfinite(value) else None for name, value in logs.items()}
                file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def _training_logs(self, step: int) -> dict[str, float]:
        """Of the steps since the last log, over all processes."""
        sums = self.accelerator.reduce(self._sums, "sum")
        loss = self.accelerator.reduce(torch.as_tensor(self._loss, device=sums.device), "mean")
        seconds = time.perf_counter() - self._since
        tokens = self.tokens_seen(step) - self.tokens_seen(self._timed_step)
        found = {
            "loss": loss.item() / (step - self._logged_step),
            "tokens_per_second": tokens / seconds,
            "data_wait": self._waited / seconds,
        }
        labels = 0.0
        for mode, (nats, count, real) in zip(MODES, sums.tolist(), strict=True):
            labels += count
            if count:
                found[f"loss_{mode}"], found[f"labels_{mode}"] = nats / count, int(count)
                if mode == "masked":
                    found["mask_rate"] = count / real
        if (peak := peak_flops()) and step > self._timed_step:
            phase = next(phase for phase in self.train_dataset.phases if step <= phase.steps.stop)
            length = phase.rows.info["sequence_length"]
            share = labels / max(1, self.tokens_seen(step) - self.tokens_seen(self._logged_step))
            flops = model_flops(self.accelerator.unwrap_model(self.model).config, tokens, tokens * share, length)
            found["mfu"] = flops / seconds / self.args.world_size / peak
        return found

    def tokens_seen(self, step: int) -> int:
        """Tokens of the first `step` optimiser steps, padding included."""
        return sum(
            len(range(phase.steps.start, min(step, phase.steps.stop))) * phase.tokens_per_step
            for phase in self.train_dataset.phases
        )

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
            raise InputError(
                f"{wrong} after step {self.state.global_step} is {metrics[wrong]}; the last good checkpoint is "
                f"{last_checkpoint(Path(self.args.output_dir)) or 'none'}; lower the learning rate, or max_grad_norm"
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += time.perf_counter() - start  # not training time
        return metrics

    def _determine_best_metric(self, metrics, trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = None  # the Trainer would look for the best among its own checkpoints
        if is_best:
            folder = Path(self.args.output_dir) / "best"
            with self._saving("best"), atomic_write(folder) if self.args.should_save else nowhere(folder) as aside:
                self.save_model(str(aside), _internal_call=True)
                (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing to publish
        return is_best

    def evaluate_and_keep_best(self) -> None:
        """Evaluates, and writes `best/` if this is the lowest loss so far."""
        self._determine_best_metric(self.evaluate(), None)

    def _save_checkpoint(self, model, trial) -> None:
        self.check_finite()
        parameters = (getattr(parameter, "to_local", lambda p=parameter: p)() for parameter in model.parameters())
        if not all(bool(parameter.isfinite().all()) for parameter in parameters):
            raise InputError(
                f"the weights after step {self.state.global_step} are not numbers, though the loss was; the last good "
                f"checkpoint is {last_checkpoint(Path(self.args.output_dir)) or 'none'}; lower the learning rate"
            )
        start, step, folder = time.perf_counter(), self.state.global_step, Path(self.args.output_dir)
        with self._saving(f"step {step}"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            sums = self.accelerator.reduce(torch.as_tensor(self._sums, device=self.args.device), "sum")
            loss = self.accelerator.reduce(torch.as_tensor(self._loss, device=self.args.device), "mean")
            if self.args.should_save:
                unfinished = folder / f"checkpoint-{step}"
                so_far = {"step": self._logged_step, "sums": sums.tolist(), "loss": loss.item()}
                write_json(unfinished / SUMS, so_far)  # what was summed up since the last log
                write_json(unfinished / FILES, sizes(unfinished))
                sync(*unfinished.rglob("*"), unfinished)
                remove_path(folder / f"step_{step:06d}")
                unfinished.rename(folder / f"step_{step:06d}")
                sync(folder)
                for old in checkpoints(folder)[: -self.args.save_total_limit] if self.args.save_total_limit else ():
                    remove_path(old)
        self.accelerator.wait_for_everyone()
        self._since += time.perf_counter() - start

    @contextlib.contextmanager
    def _saving(self, what: str):
        """An output that cannot be written leaves nothing behind, and the checkpoints before it whole."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            folder = Path(self.args.output_dir)
            for left in folder.glob("checkpoint-*"):
                remove_path(left)
            last = last_checkpoint(folder)
            raise InputError(
                f"{what} of {folder} could not be saved ({' '.join(str(error).split())[:200]}); the last complete "
                f"checkpoint is {last or 'none'}; make room and run the same command again"
            ) from error

    def _issue_warnings_after_load(self, load_result) -> None:
        tied = set(getattr(self.model, "all_tied_weights_keys", ()))
        if set(load_result.missing_keys) - tied or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    def resume(self, checkpoint: Path | None) -> None:
        """Trains, from a checkpoint if there is one; stops early, with a checkpoint, on Ctrl-C or SIGTERM."""
        step = 0
        if checkpoint is not None:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
            step = state["global_step"]
        self.add_callback(_StartOfLog(self, checkpoint, step))
        with self.on_signal.listening():
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


class _StartOfLog(TrainerCallback):
    """Takes up the sums of a checkpoint once the Trainer, which sets up its own on the way, begins."""

    def __init__(self, trainer: FlexQwenTrainer, checkpoint: Path | None, step: int):
        self.trainer, self.checkpoint, self.step = trainer, checkpoint, step

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        trainer._start_log(self.step)
        so_far = None if self.checkpoint is None else read_json(self.checkpoint / SUMS)
        if so_far is not None and args.process_index == 0:
            trainer._sums = torch.tensor(so_far["sums"], dtype=torch.float64, device=args.device)
            trainer._loss = so_far["loss"] * args.world_size
        if so_far is not None:
            trainer._logged_step = so_far["step"]


def leave_signals(worker: int) -> None:
    """In a data-loader worker, which inherits the handlers: Ctrl-C is the trainer's to answer, SIGTERM ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def nowhere(folder: Path):
    """For the processes that take part in saving but write nothing."""
    yield folder.with_name(f"{folder.name}.{os.getpid()}.partial")
