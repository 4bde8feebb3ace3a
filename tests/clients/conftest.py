"""A checkpoint as training leaves it, with its tokenizer; its plain Qwen3s; and the table of what was tested.

`CLIENTS_TABLE=docs/clients.md python -m pytest tests/clients` writes the versions that passed into the table there.
Rows of clients that this environment does not have stay as they are.
"""

import importlib.metadata
import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from flexqwen.hub.export import export
from flexqwen.training.checkpoints import write_embedding_modules
from tests.helpers.tiny import make_model

OUTCOMES: dict[str, Counter] = {}  # by the name of a test file


def pytest_runtest_logreport(report):
    if report.when == "call" and "tests/clients/" in report.nodeid:
        OUTCOMES.setdefault(report.nodeid.split("::")[0].rsplit("/", 1)[1], Counter())[report.outcome] += 1


def pytest_sessionfinish(session):
    if not (page := os.environ.get("CLIENTS_TABLE")):
        return
    text = Path(page).read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| client .*?\n\n", text, flags=re.DOTALL | re.MULTILINE)
    rows = {row.split()[1]: row for row in table.splitlines(keepends=True)[2:-1]}  # by the name of the first program
    for module in dict.fromkeys(item.module for item in session.items if hasattr(item.module, "CLIENTS")):
        outcomes = OUTCOMES.get(Path(module.__file__).name, Counter())
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in module.CLIENTS)
        told = " ".join(module.__doc__.split()).partition(": ")[2].rstrip(".")
        rows[module.CLIENTS[0]] = f"| {versions} | {told} | {outcomes['passed']} of {outcomes.total()} |\n"
    head = "| client | what is tested | passed |\n|---|---|---:|\n"
    Path(page).write_text(text.replace(table, head + "".join(sorted(rows.values())) + "\n"), encoding="utf-8")


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """A tiny FlexQwen of random weights that is sure of something."""
    folder = tmp_path_factory.mktemp("clients") / "checkpoint"
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    # vLLM has kernels for heads of 32 and larger.
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=128, head_dim=32, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_embedding_modules(folder, model.config.hidden_size)
    return folder


@pytest.fixture(scope="session")
def twins(checkpoint, tmp_path_factory):
    """The plain Qwen3s of the checkpoint, by mode."""
    folder = tmp_path_factory.mktemp("twins")
    for mode in ("causal", "bidirectional"):
        export(checkpoint, folder / mode, mode)
    return {mode: folder / mode for mode in ("causal", "bidirectional")}


@pytest.fixture
def sentences():
    return ["O Brasil é grande.", "A menina leu o livro que estava sobre a mesa da sala.", "Choveu."]


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)
