"""The head where the labels are, against stock Qwen3ForCausalLM: peak memory and time of one training step.

    python benchmarks/head_memory.py [--precision bf16] [--batch_size 4] [--repeats 5] [--output result.json]

Each measurement is a forward and a backward pass in a process of its own, so that its peak memory is its own: on a GPU
what torch allocated at most, on a CPU the process's largest resident size, less what it was with the model loaded. A
causal step has a label at every position, a masked one at a fifth of them, for both sides. Rows are one document each.
"bf16" is autocast over float32 weights, as the Trainer's `bf16` is.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

SEQUENCE_LENGTH = 1024
VOCABULARIES = (16_384, 151_936)
SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1280,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def measure(side: str, step: str, vocab_size: int, batch_size: int, repeats: int, precision: str) -> dict[str, float]:
    """One side, in this process: peak bytes over the loaded model, and median seconds of a step."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from configuration_flexqwen import FlexQwenConfig
    from modeling_flexqwen import FlexQwenForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config, cls = (FlexQwenConfig, FlexQwenForCausalLM) if side == "flexqwen" else (Qwen3Config, Qwen3ForCausalLM)
    model = cls(config(vocab_size=vocab_size, **SHAPE)).to(device).train()
    ids = torch.randint(vocab_size, (batch_size, SEQUENCE_LENGTH), device=device)
    labels = ids if step == "causal" else ids.masked_fill(torch.rand(ids.shape, device=device) > 0.2, -100)
    is_causal = step == "causal"

    def run() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=ids, labels=labels, is_causal=is_causal, use_cache=False).loss
        loss.backward()
        value = loss.item()
        seconds = time.perf_counter() - start
        model.zero_grad()
        losses.append(value)
        return seconds

    losses: list[float] = []
    loaded = torch.cuda.memory_allocated() if device == "cuda" else _resident()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak()
    return {
        "peak_bytes": peak - loaded,
        "seconds": statistics.median(run() for _ in range(repeats)),
        "loss": losses[0],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # side, step, vocabulary: in this process
    args = parser.parse_args()
    if args.one:
        side, step, vocab_size = args.one
        print(json.dumps(measure(side, step, int(vocab_size), args.batch_size, args.repeats, args.precision)))
        return
    rows = []
    print(f"sequence {SEQUENCE_LENGTH}, batch {args.batch_size}, {args.precision}; FlexQwen / stock")
    print("| vocabulary | step | peak memory (MiB) | ratio | seconds | times as fast |\n|---:|---|---:|---:|---:|---:|")
    for vocab_size in VOCABULARIES:
        for step in ("causal", "masked"):
            sides = {}
            for side in ("flexqwen", "stock"):
                command = [sys.executable, __file__, "--one", side, step, str(vocab_size)]
                options = ["--batch_size", str(args.batch_size), "--repeats", str(args.repeats)]
                options += ["--precision", args.precision]
                done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
                sides[side] = json.loads(done.stdout.splitlines()[-1])
            ours, stock = sides["flexqwen"], sides["stock"]
            if abs(ours["loss"] - stock["loss"]) > (1e-2 if args.precision == "bf16" else 1e-5) * stock["loss"]:
                sys.exit(f"the two sides disagree on the loss: {ours['loss']} and {stock['loss']}")
            memory, speed = ours["peak_bytes"] / stock["peak_bytes"], stock["seconds"] / ours["seconds"]
            print(
                f"| {vocab_size:,} | {step} | {ours['peak_bytes'] / 2**20:,.0f} / {stock['peak_bytes'] / 2**20:,.0f} | "
                f"{memory:.2f} | {ours['seconds']:.2f} / {stock['seconds']:.2f} | {speed:.2f} |",
                flush=True,
            )
            rows.append({"vocab_size": vocab_size, "step": step, "memory_ratio": memory, "speed_ratio": speed, **sides})
    if args.output:
        from flexqwen.files import versions, write_json

        settings = {
            "precision": args.precision,
            "batch_size": args.batch_size,
            "sequence_length": SEQUENCE_LENGTH,
            **SHAPE,
        }
        write_json(args.output, {"settings": settings, "versions": versions("torch", "transformers"), "rows": rows})


if __name__ == "__main__":
    main()
