"""A checkpoint as training leaves it, with its tokenizer; and its plain Qwen3s."""

import pytest
import torch

from flexqwen.hub.export import export
from flexqwen.training.checkpoints import write_embedding_modules
from tests.helpers.tiny import make_model


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """A tiny FlexQwen of random weights that is sure of something."""
    folder = tmp_path_factory.mktemp("clients") / "checkpoint"
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=128, **ids)
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
