"""Bytes that a training step moves on a GPU, counted without one: before layers were fused, now, and compiled.

    git worktree add ../before <the last commit before>
    python benchmarks/step_traffic.py --before ../before [--output result.json]

A step is one batch of random packed rows as `configs/small.yaml` and `configs/base.yaml` have them in their last phase:
bf16 autocast, variable-length attention, clipping, Muon and AdamW. It runs on tensors without memory, and what each
operation reads and writes is added up. What an older checkout would look up in its batch is given to it.
"""

import argparse
import os
import pickle
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

ROOT = Path(__file__).parents[1]
VOCABULARIES = {"small": 8192, "base": 16_384}


def count_before(shape: dict, batch: dict) -> float:
    """Bytes of the same step by the code that PYTHONPATH names, whose model looks for documents and labels itself."""
    import modeling_flexqwen as code
    from configuration_flexqwen import FlexQwenConfig
    from flexqwen.training.optimizer import MuonWithAdamW

    spec = spec_from_file_location("counting", ROOT / "flexqwen" / "training" / "flops.py")
    spec.loader.exec_module(counting := module_from_spec(spec))
    labels = int((batch["labels"] != -100).sum())
    documents = code.packed_documents(batch["position_ids"], None).expand(len(batch["labels"]), -1)
    segments = code.packed_segments(documents, batch["is_causal"])

    def find(tensor, as_tuple=False):
        found = torch.empty(labels, dtype=torch.int64)
        return (found, found) if as_tuple else found[:, None]

    told = {"check_ids": lambda *_: None, "VARLEN_DEVICES": ("cpu",), "packed_documents": lambda ids, _: ids}
    with FakeTensorMode() as fake, counting.Count() as count, mock.patch.multiple(code, **told):
        batch, segments = tree_map(
            lambda x: fake.from_tensor(x) if isinstance(x, torch.Tensor) else x, (batch, segments)
        )
        code.packed_segments = lambda *_: segments
        torch.Tensor.nonzero, torch.bincount = find, lambda rows, minlength: torch.empty(minlength)
        config = FlexQwenConfig.from_dict(shape)
        config._attn_implementation = "varlen"
        model = code.FlexQwenForCausalLM(config).train()
        optimizer = MuonWithAdamW(model, 1e-3, 0.1, (0.9, 0.95), 1e-8)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        optimizer.zero_grad()
        count.bytes = 0
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return count.bytes


def count_now(name: str, before: str | None) -> dict:
    """Bytes of a step of a config, by this checkout and by that in the folder `before`."""
    from flexqwen.training import doctor
    from flexqwen.training.arguments import parse
    from flexqwen.training.objectives import TrainingRows, collate
    from flexqwen.training.schedule import Phase

    args = parse([str(ROOT / "configs" / f"{name}.yaml"), "--use_cpu", "true"])
    args.training.gradient_accumulation_steps = 1
    rows, length = args.training.per_device_train_batch_size, args.data.sequence_length
    phase = Phase(doctor.RandomRows(length, VOCABULARIES[name]), range(1), rows)
    config = doctor.find_config(args, VOCABULARIES[name])
    step = doctor.count_step(config, args, phase)
    saved = config.num_hidden_layers * step.tokens * doctor.count_saved(config, args.training.bf16)
    found = {"tokens": step.tokens, "eager": step.bytes, "compiled": step.bytes - saved}
    if before:
        drawn = TrainingRows([phase], args.objective, 0)
        batch = collate([drawn[item] for item in range(rows)], args.objective.masked_prediction)
        names = ("input_ids", "position_ids", "labels", "is_causal")
        given = pickle.dumps((config.to_dict(), {key: batch[key] for key in names}))
        environment = {**os.environ, "PYTHONPATH": before}
        command = [sys.executable, str(Path(__file__).resolve()), "--one"]
        done = subprocess.run(command, input=given, capture_output=True, check=True, env=environment, cwd=before)
        found["before"] = float(done.stdout.split()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", help="a checkout to compare with")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(count_before(*pickle.load(sys.stdin.buffer)))
        return
    from flexqwen.files import versions, write_json

    sides, found = ("before", "eager", "compiled"), {}
    print(
        "| config | tokens | "
        + " | ".join(f"{side}, bytes a token" for side in sides)
        + " |\n|---|---:|---:|---:|---:|"
    )
    for name in VOCABULARIES:
        row = found[name] = count_now(name, args.before)
        shown = (f"{row[side] / row['tokens']:,.0f}" if side in row else "" for side in sides)
        print(f"| {name} | {row['tokens']:,} | {' | '.join(shown)} |", flush=True)
    if args.output:
        write_json(args.output, {"steps": found, "versions": versions("torch", "transformers")})


if __name__ == "__main__":
    main()
