"""Shared fixtures: the sample corpus and its dataset, made once, and the folders of real data where they are given."""

# ruff: noqa: E402
import os
import re
import tempfile

# Before a library of Hugging Face is imported, which reads them then: the tests, and the processes that they start,
# have a home and a cache of their own, and none of the user's settings.
_home = tempfile.TemporaryDirectory(prefix="flexqwen-tests-")
for _name in list(os.environ):
    if re.match(r"(HF|HUGGING_?FACE|HUGGINGFACE|TRANSFORMERS|DATASETS)_", _name):
        del os.environ[_name]
os.environ["HF_HOME"] = _home.name
os.environ["HF_HUB_DISABLE_XET"] = "1"  # which the Hub on localhost does not speak

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# Nothing that loads torch: pytest-xdist reads this file in one process more, before any test begins.
from flexqwen.data import build
from flexqwen.data.build import Parameters
from flexqwen.data.sample import generate
from tests.helpers.datasets import DOCUMENTS
from tests.helpers.figures import render_no_figures, rendered_figures

# Files whose few tests take longest. They begin first, so that no worker waits for another at the end.
SLOW = ["job", "hub", "attention", "resume", "build", "study", "failing", "finetuned_tasks", "doctor", "training"]
SLOW += ["finetuning", "parquet", "known_answer", "no_traceback", "distributed"]


def pytest_collection_modifyitems(items) -> None:
    places = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path.stem, len(SLOW)))


def pytest_sessionstart() -> None:
    render_no_figures()


@pytest.fixture
def rendered():
    """Figures are rendered, as for a user."""
    with rendered_figures():
        yield


def _folder(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is unset: it names a folder of real data")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    """The folder that holds Corpus Carolina's `corpus/`."""
    return _folder("CAROLINA_CORPUS")


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The folder of evaluation data."""
    return _folder("FLEXQWEN_EVAL_DATA")


@pytest.fixture(scope="session")
def sample_documents() -> list[generate.SampleDocument]:
    return generate.sample_documents(DOCUMENTS)


@pytest.fixture(scope="session")
def sample_corpus(tmp_path_factory) -> Path:
    """A sample corpus, not to be changed."""
    folder = tmp_path_factory.mktemp("sample") / "sample_corpus"
    generate.write_sample(folder, DOCUMENTS)
    return folder


@pytest.fixture
def corpus(sample_corpus, tmp_path) -> Path:
    """A copy of the sample corpus, to be damaged."""
    return shutil.copytree(sample_corpus, tmp_path / "corpus")


@pytest.fixture(scope="session")
def built(sample_corpus, tmp_path_factory) -> Path:
    """The dataset of the sample corpus, not to be changed."""
    output = tmp_path_factory.mktemp("built") / "carolina_originality"
    build.build(sample_corpus, output, Parameters(), workers=1)
    return output


@pytest.fixture(scope="session")
def tokenizer_folder(built, tmp_path_factory) -> Path:
    """A small tokenizer of that dataset, saved."""
    from flexqwen.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(built, 1024, progress=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def write_corpus(tmp_path) -> Callable[..., Path]:
    """Writes {shard name without .xml.gz: XML} as a corpus with right checksums, and returns its folder."""

    def write(shards: dict[str, str | bytes]) -> Path:
        folder = tmp_path / "corpus"
        for name, xml in shards.items():
            xml = xml.encode() if isinstance(xml, str) else xml
            path = folder / f"{name}.xml.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(xml, mtime=0))
            taxonomy, shard = name.split("/", 1)
            with open(folder / taxonomy / "checksum.sha256", "a") as sums:
                sums.write(f"{hashlib.sha256(xml).hexdigest()}\t{shard}.xml\n")
        return folder

    return write


@pytest.fixture
def uncompiled_flex(monkeypatch):
    """FlexAttention as PyTorch's own plain implementation: the same masks, without seconds of compilation each."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def flex(query, key, value, training=False, **kwargs):
        return flex_attention(query, key, value, **kwargs)

    def block_mask(*args, _compile=True, **kwargs):
        return create_block_mask(*args, **kwargs)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", flex)
    monkeypatch.setattr("transformers.masking_utils.create_block_mask", block_mask)
