"""What is summed up between two logs of a training run, and the figures that are made of it."""

import contextlib
import functools
import json
import time
from pathlib import Path

import numpy as np
import torch

from flexqwen.data.packing import position_ids
from flexqwen.evaluation.heldout import MODES
from flexqwen.training.flops import model_flops, peak_flops
from flexqwen.training.schedule import Phase


def read_log(run: Path) -> list[dict]:
    """The entries of a run's `metrics.jsonl`, in order; not a line that is being written, or never was to its end."""
    entries = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


@functools.cache
def attended_length(phase: Phase) -> float:
    """How long a token's document is on average, in tokens: to so many it attends. Estimated on up to 512 rows."""
    info = phase.rows.info
    rows = np.asarray(phase.rows.input_ids[:: -(-len(phase.rows) // 512)])
    # The positions of a document of n tokens sum up to n (n - 1) / 2, and n for each of its tokens is n squared.
    return 2 * float(position_ids(rows, info["bos_token_id"], info["pad_token_id"]).mean()) + 1


class TrainingMetrics:
    """Sums over the steps since the last log. They stay on the device until they are asked for."""

    def __init__(self, phases: list[Phase]):
        self.phases = phases
        self.start(0)

    def start(self, step: int) -> None:
        """Begins anew after `step` optimizer steps."""
        self.sums: torch.Tensor | int = 0  # (modes, 3): nats, labels, tokens
        self.loss: torch.Tensor | float = 0.0
        self.step = self._timed_step = step
        self._since, self._waited = time.perf_counter(), 0.0

    def add_rows(self, is_causal, row_losses, row_labels, row_tokens) -> None:
        """Adds a batch: for each row its mode (bool), summed loss (nats), labels and tokens, `(batch,)` each."""
        dtype = self.dtype_on(row_tokens.device)
        rows = torch.stack([row_losses.to(dtype), row_labels.to(dtype), row_tokens.to(dtype)], dim=-1)
        self.sums = self.sums + torch.stack([is_causal, ~is_causal]).to(dtype) @ rows

    @staticmethod
    def dtype_on(device: torch.device) -> torch.dtype:
        """Of the sums: Apple's GPUs have no float64."""
        return torch.float32 if device.type == "mps" else torch.float64

    @contextlib.contextmanager
    def left_out(self, is_waiting: bool = False):
        """Leaves out the time of the block, of evaluation or saving; or counts it as spent waiting for data."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._waited, self._since = self._waited + is_waiting * seconds, self._since + (not is_waiting) * seconds

    def reduce(self, accelerator) -> tuple[list[list[float]], float]:
        """The sums by mode, and the summed loss of all batches, over all processes."""
        device = accelerator.device
        sums = accelerator.reduce(torch.as_tensor(self.sums, device=device), "sum")
        loss = accelerator.reduce(torch.as_tensor(self.loss, device=device), "mean")
        return sums.tolist(), loss.item()

    def resume(self, step: int, saved: dict | None, args) -> None:
        """Takes up the sums of a checkpoint, as `reduce` gave them, at optimizer step `step`."""
        self.start(step)
        if saved is None:
            return
        self.step = saved["step"]
        if args.process_index == 0:
            self.sums = torch.tensor(saved["sums"], dtype=self.dtype_on(args.device), device=args.device)
            self.loss = saved["loss"] * args.world_size

    def compute(self, step: int, accelerator, config) -> dict[str, float]:
        """The figures of the steps since the last log, over all processes."""
        sums, loss = self.reduce(accelerator)
        seconds = time.perf_counter() - self._since
        tokens = self.tokens_seen(step) - self.tokens_seen(self._timed_step)
        found, labels = {"loss": loss / (step - self.step), "tokens_per_second": tokens / seconds}, 0.0
        found["data_wait"] = self._waited / seconds
        for mode, (nats, count, real) in zip(MODES, sums, strict=True):
            labels += count
            if count:
                found[f"loss_{mode}"], found[f"labels_{mode}"] = nats / count, int(count)
                if mode == "masked":
                    found["masked_share"] = count / real
        if (peak := peak_flops()) and step > self._timed_step:
            phase = next(phase for phase in self.phases if step <= phase.steps.stop)
            share = labels / max(1, self.tokens_seen(step) - self.tokens_seen(self.step))
            flops = model_flops(config, tokens, tokens * share, attended_length(phase))
            found["mfu"] = flops / seconds / accelerator.num_processes / peak
        return found

    def tokens_seen(self, step: int) -> int:
        """Tokens of the first `step` optimizer steps, padding included."""
        return sum(phase.steps_before(step) * phase.tokens_per_step for phase in self.phases)

    def passes(self, step: int) -> float:
        """How often the data were seen in the first `step` optimizer steps."""
        return sum(phase.steps_before(step) * phase.rows_per_step / len(phase.rows) for phase in self.phases)
