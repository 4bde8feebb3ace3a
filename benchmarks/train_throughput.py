"""Training speed and memory against the stock way: tokens per second and peak memory of one run each, and their ratios.

    python benchmarks/train_throughput.py [--preset cpu|small|base|0.6b] [--steps 20] [--output result.json]

The stock way is `Qwen3ForCausalLM` and `transformers.Trainer` on packed blocks, as in transformers' own causal language
modelling example: documents joined and cut into blocks, no mask between them. Ours is `FlexQwenTrainer` on rows of
whole documents that do not see each other. Both have the same model shape, the same tokens (random ids in documents of
log-normal length, median 150), batch size, precision (bf16 autocast) and optimiser. Each side runs in a process of its
own; the first steps do not count. Padding counts as no token. Peak memory is what torch allocated at most on a GPU; on
a CPU, the largest resident size less what it was when training began, the model made, in a second process whose
allocator gives back at once what is freed (glibc's MALLOC_MMAP_THRESHOLD_), since a heap's holes are nobody's tensors;
the JSON file has the figure of the first process too. MFU, on a GPU, counts the head where it runs and attention
within documents, or over the whole row on the stock side, which has no documents (flexqwen/training/flops.py).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}
PRESETS = {  # hidden, intermediate, layers, query heads, key-value heads, head_dim, vocabulary, sequence, batch
    "cpu": (512, 1024, 4, 8, 8, 64, 16_384, 256, 8),
    "small": (384, 1280, 12, 6, 6, 64, 8_192, 1024, 64),
    "base": (768, 2560, 12, 12, 12, 64, 16_384, 1024, 64),
    "0.6b": (1024, 3072, 28, 16, 8, 128, 151_936, 1024, 4),  # a stock step's logits of 16 rows would fill 80 GB
}
SIDES = {  # strategy and share of causal rows; None is the stock way
    "stock": None,
    "baseline-causal": ("baseline-causal", 1.0),
    "hybrid-shift 1:1": ("hybrid-shift", 0.5),
    "hybrid-shift 1:7": ("hybrid-shift", 0.125),
}
WARMUP = 4  # steps that do not count


def documents(vocab_size: int, tokens: int) -> list[np.ndarray]:
    """Random documents, `BOS tokens EOS` each, of about so many tokens together."""
    rng, found = np.random.default_rng(0), []
    while tokens > 0:
        length = int(np.clip(rng.lognormal(np.log(150), 1), 8, 4096))
        found.append(np.concatenate([[1], rng.integers(4, vocab_size, size=length), [2]]))
        tokens -= length + 2
    return found


def measure(side: str, preset: str, steps: int, compile: bool) -> dict:
    """One side, in this process."""
    import torch
    import transformers
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback

    from configuration_flexqwen import FlexQwenConfig
    from flexqwen.data.packing import best_fit, cut
    from flexqwen.training.arguments import Arguments, TrainingArguments
    from flexqwen.training.flops import model_flops, peak_flops
    from flexqwen.training.metrics import attended_length
    from flexqwen.training.objectives import ObjectiveArguments
    from flexqwen.training.schedule import Phase
    from flexqwen.training.trainer import FlexQwenTrainer
    from modeling_flexqwen import FlexQwenForCausalLM

    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab_size, length, batch_size = PRESETS[preset]
    is_gpu = torch.cuda.is_available()
    texts = documents(vocab_size, (steps + 1) * batch_size * length)
    transformers.set_seed(0)
    shape = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab_size,
        "max_position_embeddings": length,
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    folder = tempfile.TemporaryDirectory()
    args = TrainingArguments(
        folder.name,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-3,
        bf16=True,
        use_cpu=not is_gpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10**6,
        dataloader_num_workers=2 if is_gpu else 0,
        dataloader_pin_memory=is_gpu,
        remove_unused_columns=False,
        torch_compile=compile,
    )
    args.accelerator_config.even_batches = False

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARMUP, steps):
                if is_gpu:
                    torch.cuda.synchronize()
                self.times = [*getattr(self, "times", []), time.perf_counter()]
                if state.global_step == WARMUP and side != "stock":
                    trainer.metrics._waited = 0.0

    real = 1.0
    if side == "stock":
        model = Qwen3ForCausalLM(Qwen3Config(**shape))
        joined = np.concatenate(texts)
        blocks = torch.from_numpy(joined[: len(joined) // length * length].reshape(-1, length))
        rows = [{"input_ids": block, "labels": block} for block in blocks]
        trainer = Trainer(model=model, args=args, train_dataset=rows)
    else:
        strategy, fraction = SIDES[side]
        objective = ObjectiveArguments(strategy=strategy, causal_fraction=fraction)
        attention = "varlen" if is_gpu else "sdpa"
        model = FlexQwenForCausalLM(FlexQwenConfig(**shape, **SPECIAL, attn_implementation=attention))
        pieces = [np.array(piece) for text in texts for piece in cut(text.tolist(), length)]
        packed = best_fit([len(piece) for piece in pieces], length)
        store = _Rows(np.zeros((len(packed), length), dtype=np.uint32), vocab_size, length)
        for line, row in zip(store.input_ids, packed, strict=True):
            line[: sum(len(pieces[piece]) for piece in row)] = np.concatenate([pieces[piece] for piece in row])
        real = float((store.input_ids != 0).mean())
        settings = Arguments(None, None, objective, args, [])
        phases = [Phase(store, range(steps), batch_size)]
        trainer = FlexQwenTrainer(settings, Path(folder.name), model, _Tokenizer, phases, None)
        trainer.log = lambda *_: None
    clock = Clock()
    trainer.add_callback(clock)
    before = _resident()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = clock.times[1] - clock.times[0]
    tokens = (steps - WARMUP) * batch_size * length
    found = {
        "tokens_per_second": tokens * real / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if is_gpu else _peak() - before,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name() if is_gpu else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    share, attended = 1.0, length
    if side != "stock":
        found["data_wait"] = trainer.metrics._waited / seconds
        share = float(trainer.metrics.sums[:, 1].sum()) / (steps * batch_size * length)
        attended = attended_length(phases[0])
    found["flops_per_token"] = model_flops(model.config, 1, share, attended) / real
    if peak := peak_flops():
        found["mfu"] = found["flops_per_token"] * found["tokens_per_second"] / peak
    return found


class _Tokenizer:
    pad_token_id = SPECIAL["pad_token_id"]


class _Rows:
    """Packed rows in memory."""

    def __init__(self, input_ids: np.ndarray, vocab_size: int, length: int):
        self.input_ids = input_ids
        self.info = {**SPECIAL, "vocab_size": vocab_size, "sequence_length": length}

    def __len__(self) -> int:
        return len(self.input_ids)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(command: list[str], **environment: str) -> dict:
    """What a process of one side prints last."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a side, in this process
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.preset, args.steps, args.torch_compile)))
        return
    print(
        "| | tokens/s | ratio | MFLOP/token | ratio | peak memory (MiB) | ratio | waits for data | MFU |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    sides = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--one", side, "--preset", args.preset, "--steps", str(args.steps)]
        command += ["--torch_compile"] * args.torch_compile
        row = sides[side] = run(command)
        if row["device"].startswith("cpu"):
            row["peak_bytes_with_holes"] = row["peak_bytes"]
            row["peak_bytes"] = run(command, MALLOC_MMAP_THRESHOLD_="65536")["peak_bytes"]
        stock = sides["stock"]
        row["speed_ratio"] = row["tokens_per_second"] / stock["tokens_per_second"]
        row["memory_ratio"] = row["peak_bytes"] / stock["peak_bytes"]
        wait, mfu = (f"{row[name]:.1%}" if name in row else "" for name in ("data_wait", "mfu"))
        memory = f"{row['peak_bytes'] / 2**20:,.0f} | {row['memory_ratio']:.2f}"
        speed = f"{row['tokens_per_second']:,.0f} | {row['speed_ratio']:.2f}"
        work = f"{row['flops_per_token'] / 1e6:,.1f} | {stock['flops_per_token'] / row['flops_per_token']:.2f}"
        print(f"| {side} | {speed} | {work} | {memory} | {wait} | {mfu} |", flush=True)
    if args.output:
        from flexqwen.files import write_json

        write_json(args.output, {"preset": args.preset, "steps": args.steps, "sides": sides})


if __name__ == "__main__":
    main()
