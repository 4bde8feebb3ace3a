"""What runs on this machine and how fast; and what a config's training would cost on a GPU that is not at hand."""

import contextlib
import copy
import dataclasses
import itertools
import math
import platform
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch._inductor import compile_fx, metrics
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map
from transformers import AutoTokenizer

import modeling_flexqwen
from configuration_flexqwen import FlexQwenConfig
from flexqwen import loading
from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.files import versions
from flexqwen.remote import reason
from flexqwen.tables import plain_table
from flexqwen.training.arguments import Arguments, parse
from flexqwen.training.average import WeightAverage
from flexqwen.training.compat import compile_layers, fuse_norms
from flexqwen.training.cpu import has_bfloat16
from flexqwen.training.flops import GPUS, Count, find_gpu, model_flops
from flexqwen.training.metrics import attended_length
from flexqwen.training.model import make_config
from flexqwen.training.objectives import TrainingRows, collate
from flexqwen.training.optimizer import MuonWithAdamW
from flexqwen.training.schedule import Phase, parse_phases, plan_phases
from modeling_flexqwen import FlexQwenForCausalLM

VOCABULARY = 8192
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
MATRIX_SHARE = 0.8  # of a GPU's peak, that large matrix products reach (790 of 989 TFLOP/s on an H100)
MOST_LENGTH = 2**17  # of a row
MOST_TOKENS = 2**23  # of a batch; 100 times what a GPU holds of the smallest model
TRIED = {"hidden_size": 384, "intermediate_size": 1280, "num_hidden_layers": 4, "num_attention_heads": 6}
TRIED |= {"num_key_value_heads": 6, "sequence_length": 256, "per_device_train_batch_size": 8}  # without a config


class RandomRows:
    """Packed rows of random documents of log-normal length, median 150 tokens; stands in for `PackedRows`."""

    def __init__(self, length: int, vocab_size: int, number: int = 512):
        if length > MOST_LENGTH:
            raise InputError(f"a row has {length:,} tokens, more than is estimated; lower sequence_length")
        self.info = {**SPECIAL, "vocab_size": vocab_size, "sequence_length": length}
        rng = np.random.default_rng(length)
        self.input_ids = rng.integers(len(SPECIAL), max(vocab_size, 8), (number, length)).astype(np.uint32)
        for row in self.input_ids:
            starts = np.cumsum(np.clip(rng.lognormal(math.log(150), 1, 1 + length // 8), 8, 4096).astype(int))
            row[[0, *starts[starts < length]]] = SPECIAL["bos_token_id"]

    def __len__(self) -> int:
        return len(self.input_ids)


class _CountedNorm(torch.autograd.Function):
    """Reads and writes what torch's kernel of a GPU does, and no more; what it computes is of no use."""

    @staticmethod
    def forward(ctx, states, shape, weight, eps):
        ctx.save_for_backward(states, weight)
        return states.neg()

    @staticmethod
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        return gradient.mul(states), None, torch.empty_like(weight), None


@dataclasses.dataclass
class Step:
    """One optimizer step of a phase on one device, in eager mode.

    Attributes:
        tokens, flops: of the step.
        bytes: that it reads and writes.
        peak: bytes of memory at most: weights, gradients, states and what is kept for the backward pass.
    """

    tokens: int
    flops: float
    bytes: int
    peak: int


def find_config(args: Arguments, vocab_size: int) -> FlexQwenConfig:
    """The model's config: that of `model_name_or_path`, or of the shape that is given."""
    if checkpoint := args.model.model_name_or_path:
        return loading.load(FlexQwenConfig, checkpoint, attn_implementation=args.model.attn_implementation, **SPECIAL)
    more = SPECIAL | {"use_cache": False, "masked_prediction": args.objective.masked_prediction}
    return make_config(args.model, args.data.sequence_length, vocab_size=vocab_size, **more)[0]


def make_optimizer(model, muon: bool) -> torch.optim.Optimizer:
    return MuonWithAdamW(model, 1e-3, 0.1, (0.9, 0.95), 1e-8) if muon else torch.optim.AdamW(model.parameters(), 1e-3)


def count_step(config: FlexQwenConfig, args: Arguments, phase: Phase, is_gpu: bool = True) -> Step:
    """Runs a training step on tensors without memory and adds up what it does; no GPU is needed, nor its memory.

    Without `is_gpu`, what a CPU does.
    """
    training, batches = args.training, args.training.gradient_accumulation_steps
    if (tokens := phase.tokens_per_step // batches) > MOST_TOKENS:
        raise InputError(f"a batch has {tokens:,} tokens, more than any GPU holds; lower per_device_train_batch_size")
    rows = TrainingRows([dataclasses.replace(phase, steps=range(1))], args.objective, 0)
    batch = collate([rows[item] for item in range(phase.rows_per_step // batches)], args.objective.masked_prediction)
    # On such tensors the model would look at ids, take its head for a quantised one, and know of no kernel for a CPU.
    told = {"check_ids": lambda *_: None, "is_plain_linear": lambda head: True}
    told["VARLEN"] = {"cpu": (torch.bfloat16, torch.float32)}
    config = copy.deepcopy(config)
    if config._attn_implementation != "eager":
        config._attn_implementation = "varlen"  # keeps as much as any other kernel does, and runs without a device
    bf16 = mock.patch("flexqwen.training.optimizer.has_bfloat16", lambda: is_gpu or has_bfloat16())
    with mock.patch.multiple(modeling_flexqwen, **told), bf16, FakeTensorMode() as fake, Count() as count:
        model = FlexQwenForCausalLM(config).train()
        if is_gpu:
            fuse_norms(model, _CountedNorm.apply)
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        inputs = tree_map(lambda x: fake.from_tensor(x) if isinstance(x, torch.Tensor) else x, batch)
        optimizer = make_optimizer(model, training.muon)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        count.bytes = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # makes its state
        if training.ema_decay:
            WeightAverage(training.ema_decay).update(optimizer, 1)
        update = count.bytes
        if batches == 1:
            optimizer.zero_grad()
        count.bytes = count.peak = 0
        with torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
            loss = model(**inputs).loss
        loss.backward()
    tokens = phase.tokens_per_step
    share = len(batch["target_positions"]) / batch["input_ids"].numel()
    flops = model_flops(config, tokens, tokens * share, attended_length(phase))
    return Step(tokens, flops, batches * count.bytes + update, count.peak)


def count_saved(config: FlexQwenConfig, bf16: bool) -> float:
    """How many bytes a token fewer one layer reads and writes, forward and backward, where inductor compiles it.

    Attention is torch's own for CPUs, which reads and writes what a GPU's kernel does. Weights, which a step reads once
    for all of its tokens, do not count: two batches are counted, and the difference is that of their tokens.
    """
    config = copy.deepcopy(config)
    config._attn_implementation, config.num_hidden_layers = "sdpa", 1
    eager, compiled = (FlexQwenForCausalLM(config).train().model for _ in range(2))
    fuse_norms(eager, _CountedNorm.apply)
    compiled.layers[0].compile(fullgraph=True, dynamic=False)
    log = SimpleNamespace(isEnabledFor=lambda level: True, info=lambda *_: None)  # only for a log does inductor count

    def run(model, length: int) -> None:
        model.zero_grad()
        positions = torch.arange(length).expand(2, -1)
        states = torch.randn(2, length, config.hidden_size, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            rotary = model.rotary_emb(states, positions)
            model.layers[0](states, position_embeddings=rotary, is_causal=True).sum().backward()

    saved, lengths = [], (32, 96)
    for length in lengths:
        with Count() as count:
            run(eager, length)
        metrics.reset()
        counting = mock.patch.object(compile_fx, "inductor_metrics_log", log)
        fresh, quiet = inductor.patch(force_disable_caches=True), warnings.catch_warnings(action="ignore")
        with counting, fresh, quiet, contextlib.suppress(Exception):
            run(compiled, length)
        if not metrics.num_bytes_accessed:  # the compiler is switched off, or there is none for C++
            return 0.0
        saved.append(count.bytes - metrics.num_bytes_accessed)
    return (saved[1] - saved[0]) / 2 / (lengths[1] - lengths[0])


def estimate(args: Arguments, vocab_size: int, gpu: str, price: float | None) -> list[list[str]]:
    """Rows of a table: what the training that `args` describe takes on a GPU, from counted FLOPs and bytes."""
    training, config = args.training, find_config(args, vocab_size)
    if training.max_steps <= 0:
        raise InputError("an estimate needs max_steps in the config")
    settings = parse_phases(args.data.phases, args.data.sequence_length)
    rows = {phase.sequence_length: RandomRows(phase.sequence_length, vocab_size) for phase in settings}
    batches = training.gradient_accumulation_steps
    phases = plan_phases(settings, rows, training.max_steps, training.train_batch_size, batches)
    peak, bandwidth, memory = GPUS[gpu]
    steps = [count_step(config, args, phase) for phase in phases]
    with torch.device("meta"):
        parameters = FlexQwenForCausalLM(config).num_parameters()
    saved = config.num_hidden_layers * count_saved(config, training.bf16)  # bytes a token
    fast, slow = (
        sum(
            len(phase.steps) * (step.flops / (MATRIX_SHARE * peak) + (step.bytes - less * step.tokens) / bandwidth)
            for phase, step in zip(phases, steps, strict=True)
        )
        for less in (saved, 0)
    )
    tokens = sum(len(phase.steps) * step.tokens for phase, step in zip(phases, steps, strict=True))
    flops = sum(len(phase.steps) * step.flops for phase, step in zip(phases, steps, strict=True))
    last, most = steps[-1], max(step.peak for step in steps)
    moved = last.bytes / last.tokens
    table = [
        ["parameters", f"{parameters:,}, with a vocabulary of {config.vocab_size:,}"],
        ["tokens of the run", f"{tokens:,}"],
        ["FLOPs of the run", f"{flops:.3g}"],
        ["FLOPs a token, last phase", f"{last.flops / last.tokens:,.0f}"],
        ["bytes moved a token, last phase", f"{moved:,.0f}; {moved - saved:,.0f} compiled"],
        ["peak memory", f"{most / 2**30:.1f} GiB of {memory} GB" + " (TOO MUCH)" * (most > memory * 1e9)],
        ["tokens/s", f"{tokens / slow:,.0f} to {tokens / fast:,.0f}"],
        ["MFU", f"{flops / slow / peak:.0%} to {flops / fast / peak:.0%}"],
        ["hours", f"{fast / 3600:.2f} to {slow / 3600:.2f}" if slow >= 360 else "under 0.1"],
    ]
    if price is not None:
        table.append(["cost", f"{price * fast / 3600:.2f} to {price * slow / 3600:.2f}, at {price:g} an hour"])
    return table


def describe_machine() -> list[list[str]]:
    """Rows of a table: versions, processor and GPU."""
    found = [[name, version] for name, version in versions("torch", "transformers", "accelerate").items()]
    bf16 = "has" if has_bfloat16() else "no"
    found.append(["processor", f"{platform.machine()}, {torch.get_num_threads()} threads, {bf16} bfloat16"])
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
        found.append(["driver", answer[0] if answer else "nvidia-smi does not answer"])
    if not torch.cuda.is_available():
        return [*found, ["GPU", f"none that torch sees (built for CUDA {torch.version.cuda or 'no'})"]]
    for number in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(number)
        found.append([f"GPU {number}", f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"])
    return found


def time_attention(config: FlexQwenConfig, args: Arguments, seconds: float) -> list[list]:
    """Rows of a table: each attention implementation's loss and gradient against sdpa's, and its tokens per second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half, number = device.type == "cuda" and args.training.bf16, args.training.train_batch_size
    phase = Phase(RandomRows(args.data.sequence_length, config.vocab_size), range(1), number)
    rows = TrainingRows([phase], args.objective, 0)
    batch = collate([rows[item] for item in range(number)], args.objective.masked_prediction)
    batch = tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, batch)
    table, expected = [], None
    for name, is_compiled in itertools.product(("sdpa", "eager", "flex_attention", "varlen"), (False, True)):
        needs_gpu = name == "varlen" and not (device.type == "cuda" and half)
        if is_compiled and (name == "flex_attention" or needs_gpu):
            continue  # flex_attention has its own compiled kernels
        row = [name + ", compiled" * is_compiled]
        if needs_gpu:
            table.append([*row, "needs bf16 on a GPU", "", ""])
            continue
        torch.manual_seed(0)
        try:
            mine = copy.deepcopy(config)
            mine._attn_implementation = name
            model = FlexQwenForCausalLM(mine).train().to(device)
            if is_compiled:
                compile_layers(model, SimpleNamespace(torch_compile_backend="inductor", torch_compile_mode=None))
            elif device.type == "cuda":
                fuse_norms(model)
            runs, start, first = 0, 0.0, None
            while runs < 1 or time.monotonic() - start < seconds:
                model.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    loss = model(**batch).loss
                loss.backward()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if first is None:  # which compiles, and does not count
                    first = loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
                    start = time.monotonic()
                else:
                    runs += 1
            speed = runs * batch["input_ids"].numel() / (time.monotonic() - start)
        except Exception as error:
            table.append([*row, f"does not run: {textwrap.shorten(reason(error), 70, placeholder=' …')}", "", ""])
            continue
        expected = first if row == ["sdpa"] else expected
        if expected is None:
            table.append([*row, "runs; sdpa does not", "", speed])
            continue
        off = float((first[1] - expected[1]).norm() / expected[1].norm())
        agrees = "agrees" if off < (0.05 if half else 1e-3) else "DIFFERS"
        table.append([*row, agrees, f"{float(first[0] - expected[0]):+.1e}, {off:.1e}", speed])
    return table


@command
def main(argv: list[str] | None = None) -> None:
    usage = "python -m flexqwen doctor [config.yaml] [options below] [options of train.py]"
    parser = ArgumentParser(prog="python -m flexqwen doctor", usage=usage, description=__doc__)
    parser.add_argument("--gpu", choices=GPUS, default=find_gpu() or "H100", help="the GPU that is estimated")
    parser.add_argument("--price", type=float, help="of an hour, in whatever currency")
    parser.add_argument(
        "--vocab_size",
        type=int,
        help=f"by default that of the config's tokenizer, or {VOCABULARY} where it is not there yet",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each attention implementation is timed")
    words = sys.argv[1:] if argv is None else argv
    config_file, words = (words[0], words[1:]) if words and not words[0].startswith("-") else (None, words)
    options, further = parser.parse_known_args(words)
    print(plain_table([["this machine", ""], *describe_machine()]))
    training = [*further, "--use_cpu", str(not torch.cuda.is_available()), "--torch_compile", "false"]
    shape = [f"--{name}={value}" for name, value in TRIED.items()]
    args = parse([*([config_file] if config_file else shape), *training])
    vocab_size, tokenizer = options.vocab_size, args.data.tokenizer
    if vocab_size is None:
        is_there = tokenizer and (Path(tokenizer) / "tokenizer.json").is_file()
        vocab_size = len(loading.load(AutoTokenizer, tokenizer)) if is_there else VOCABULARY
    if config_file:
        what = f"estimate of {config_file} on one {options.gpu}, counted, not measured"
        print("\n" + plain_table([[what, ""], *estimate(args, vocab_size, options.gpu, options.price)]))
    if not torch.cuda.is_available():
        args.training.per_device_train_batch_size = min(8, args.training.train_batch_size)
    if options.seconds:
        print(f"\ntiming each attention implementation for {options.seconds:g} s, compiled ones more ...", flush=True)
        timed = time_attention(find_config(args, vocab_size), args, options.seconds)
        shown = [[*row[:3], f"{row[3]:,.0f}" if row[3] else ""] for row in timed]
        print("\n" + plain_table([["attention", "sdpa", "loss, gradient off by", "tokens/s"], *shown]))
        if not (agreeing := [row for row in timed if row[1] == "agrees"]):
            raise InputError("no attention implementation runs here as sdpa should; lower per_device_train_batch_size")
        name, _, compiled = max(agreeing, key=lambda row: row[3])[0].partition(", ")
        print(f"\nfastest here: --attn_implementation {name} --torch_compile {str(bool(compiled)).lower()}")


if __name__ == "__main__":
    main()
