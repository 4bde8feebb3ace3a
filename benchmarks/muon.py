"""A step of Muon: torch's own, and matrices of one shape together. `python benchmarks/muon.py [--hidden_size 192 ...]`

The matrices are those of a FlexQwen of the given shape, on the CPU with one thread, or on the first GPU. Prints seconds
of the fastest of a few steps, their ratio, and how far the two updates differ.
"""

import argparse
import json
import time

import torch

from flexqwen.files import versions
from flexqwen.tables import markdown_table
from flexqwen.training.optimizer import BatchedMuon


def time_steps(cls: type, shapes: list[tuple[int, int]], steps: int, device: str) -> tuple[float, list[torch.Tensor]]:
    """Seconds of the fastest step, and the update that all steps together made of each matrix."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = cls(parameters, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    seconds = []
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, device=device)
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), [parameter.detach() - before for parameter, before in zip(parameters, start, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "steps": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, inner = args.hidden_size, args.intermediate_size
    shapes = ([(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]) * args.num_hidden_layers
    sides = {cls.__name__: time_steps(cls, shapes, args.steps, device) for cls in (torch.optim.Muon, BatchedMuon)}
    (theirs, expected), (ours, found) = sides.values()
    difference = max(float((a - b).norm() / a.norm()) for a, b in zip(expected, found, strict=True))
    rows = [["torch.optim.Muon", f"{theirs:.3f}", "1"], ["BatchedMuon", f"{ours:.3f}", f"{theirs / ours:.2f}"]]
    print(markdown_table(["optimizer", "seconds a step", "times as fast"], rows))
    print(f"largest relative difference of an update: {difference:.4f}")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            result = {"torch": theirs, "ours": ours, "difference": difference, "device": device, **vars(args)}
            json.dump(result | {"versions": versions("torch")}, file, indent=2)


if __name__ == "__main__":
    main()
