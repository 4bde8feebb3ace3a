"""Tiny training runs in processes of their own, that can be killed."""

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sequence_length": 64,
    "eval_documents": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 0.01,
    "max_steps": 12,
    "warmup_steps": 2,
    "logging_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_steps": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}
TIMED = {"tokens_per_second", "data_wait", "train_runtime"}  # differ from run to run


def options(built, tokenizer_folder, root, **changes) -> list[str]:
    """The command line of a tiny run in `root`; its token stores are shared by the runs of a test module."""
    places = {
        "dataset": built,
        "tokenizer": tokenizer_folder,
        "output_dir": root,
        "token_stores": Path(root).parent / "tokens",
    }
    found = []
    for name, value in {**CONFIG, **places, **changes}.items():
        found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return found


def _train(arguments: list[str], hub: tuple[str, str, str] | None) -> None:
    import train

    if hub:
        connect(*hub)
    train.main(arguments)


def connect(url: str, cache: str, token: str, patch: pytest.MonkeyPatch | None = None) -> None:
    """Makes this process's huggingface_hub client one of another machine: its Hub, its cache, its token."""
    patch = patch or pytest.MonkeyPatch()
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", cache)
    patch.setenv("HF_TOKEN", token)


_FORKED = multiprocessing.get_context("forkserver")


def forked_context():
    """Starts processes in which all that the commands need is imported already (see `preloaded`)."""
    os.environ["PYTHONPATH"] = str(ROOT)  # where the server that forks the processes looks for `tests`
    _FORKED.set_forkserver_preload(["tests.helpers.preloaded"])
    return _FORKED


def fork(function: Callable, *args, output: Path, largest_file: int | None = None, **environment: str):
    """Starts `function(*args)` in a process and a session of its own, forked; what it prints goes to `output`.

    Args:
        largest_file: bytes that a file may have; a write beyond fails, as it does on a full disk.
        environment: its own variables.
    """
    given = function, args, str(output), largest_file, environment
    process = forked_context().Process(target=_call, args=given)
    process.start()
    return process


def _call(function: Callable, args: tuple, output: str, largest_file: int | None, environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    os.environ.update(environment)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(output, "a", buffering=1)  # noqa: SIM115
    function(*args)


def start(
    arguments: list[str], output: Path, largest_file: int | None = None, hub: tuple[str, str, str] | None = None, **more
) -> multiprocessing.Process:
    """Starts `train.py` with these options, as `fork` does; `hub` is what `connect` is told."""
    return fork(_train, arguments, hub, output=output, largest_file=largest_file, **more)


def run(arguments: list[str], output: Path, largest_file: int | None = None, hub=None) -> int:
    """Runs `train.py` to its end and returns its exit status."""
    process = start(arguments, output, largest_file, hub)
    process.join(300)
    return process.exitcode


def wait_for_step(folder, step, process):
    """Until `metrics.jsonl` tells of a step."""
    file = folder / "metrics.jsonl"
    while process.is_alive():
        with contextlib.suppress(FileNotFoundError):  # it is not there yet, or is being replaced
            if any(f'"step": {number},' in file.read_text() for number in range(step, 13)):
                return
        time.sleep(0.01)


def logged(folder: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMED} for line in lines]


def same_weights(one: Path, two: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
