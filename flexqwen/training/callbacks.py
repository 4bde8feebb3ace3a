"""What happens beside the steps of a training run: progress and signals."""

import contextlib
import signal
import threading
import time

import torch
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from flexqwen.evaluation.heldout import MODES


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
    """On the first Ctrl-C or SIGTERM, finishes the step, saves and stops; a second one stops at once.

    A closed terminal (SIGHUP) counts as the first.
    """

    def __init__(self):
        self.received, self.since = False, 0.0  # seconds of the monotonic clock

    @contextlib.contextmanager
    def listening(self):
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup makes it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number, frame):
        if self.received:
            if time.monotonic() - self.since < 1:  # a terminal or Slurm, and torchrun too, pass on the same signal
                return
            raise KeyboardInterrupt
        self.received, self.since = True, time.monotonic()
        print("\nstopping after this step, with a checkpoint; once more stops at once", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        stops = self.received
        if args.world_size > 1:  # processes must stop at the same step; to ask them at each would cost time
            if state.global_step % 5:
                return
            received = torch.tensor(int(stops), device=args.device)
            torch.distributed.all_reduce(received)
            stops = bool(received)  # as all of them know it, even if a signal came meanwhile
            if stops and not self.received:
                self.received, self.since = True, time.monotonic()
        if stops and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def ignore_signals(worker: int) -> None:
    """In a data-loader worker, which inherits the handlers: the trainer answers Ctrl-C and SIGHUP, SIGTERM ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
