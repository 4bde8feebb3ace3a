"""What the files of a built dataset hold."""

import gzip
import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexqwen.data.build import Parameters, build
from flexqwen.data.parquet import SCHEMA
from flexqwen.data.texts import read_manifest
from tests.helpers.datasets import CONFIGS, DOCUMENTS, ROOT, read_split


def test_columns(built):
    for config in CONFIGS:
        names = [name for name in SCHEMA.names if config != "index" or name != "text"]
        assert read_split(built, config).schema.names == names
        assert read_split(built, config).schema.field("tokens").type == pa.int32()


def test_texts_and_headers_are_the_corpus_s(built, sample_documents):
    by_id = {document.id: document for document in sample_documents}
    for config in CONFIGS[:-1]:
        for row in read_split(built, config).to_pylist():
            document = by_id[row["id"]]
            assert (row["text"], row["originality"]) == (document.text, document.originality)
            assert (row["tokens"], row["typology"]) == (document.tokens, document.genre.typology)


def test_gold_is_original_and_paired_row_by_row(built):
    for one, other in (("gold", "matched"), ("gold_typology", "matched_typology")):
        a, b = read_split(built, one), read_split(built, other)
        assert len(a) == len(b) > 50
        lengths = a["tokens"].to_numpy(), b["tokens"].to_numpy()
        assert (np.abs(lengths[0] - lengths[1]) <= np.maximum(1, 0.02 * lengths[0])).all()
        assert (a["originality"].to_numpy() - b["originality"].to_numpy() >= 10).all()
        assert min(lengths[0].min(), lengths[1].min()) >= 21
    assert read_split(built, "gold_typology")["typology"] == read_split(built, "matched_typology")["typology"]


def test_disjoint(built):
    ids = {config: set(read_split(built, config)["id"].to_pylist()) for config in CONFIGS}
    splits = ("validation", "test", "validation_original", "test_original", "validation_unoriginal", "test_unoriginal")
    heldout = [set(read_split(built, "heldout", split)["id"].to_pylist()) for split in splits]
    assert sum(map(len, heldout)) == len(set().union(*heldout)) > 0
    training = {config: ids[config] for config in CONFIGS[:-1]}
    assert not set().union(*heldout) & set().union(*training.values())
    assert not ids["gold"] & ids["matched"] and not ids["gold_typology"] & ids["matched_typology"]
    assert not ids["tokenizer"] & set().union(*(training[c] for c in CONFIGS[:4]))
    assert set().union(*heldout, *training.values()) <= ids["index"]


def test_no_training_document_shares_half_its_13_grams_with_the_held_out(built):
    def grams(text: str) -> list[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return [tuple(words[i : i + 13]) for i in range(len(words) - 12)]

    heldout = pq.read_table(built / "data" / "heldout")["text"].to_pylist()
    known = {gram for text in heldout for gram in grams(text)}
    largest = 0
    for config in CONFIGS[:-1]:
        for text in read_split(built, config)["text"].to_pylist():
            own = grams(text)
            largest = max(largest, sum(gram in known for gram in own) / max(1, len(own)))
    assert 0 < largest < 0.5
    checks = read_manifest(built)["checks"]
    assert max(c["value"] for n, c in checks.items() if "13-grams" in n) == pytest.approx(largest, abs=1e-6)


def test_manifest(built, sample_corpus):
    found = read_manifest(built)
    assert found["documents"] == {"read": DOCUMENTS, "kept": DOCUMENTS, "dropped": {}}
    assert all(check["passed"] for check in found["checks"].values())
    assert found["parameters"] == {"seed": 0, "documents": None, "measure": "header", "skip_bad_shards": False}
    for name, shard in found["shards"]["used"].items():
        xml = gzip.decompress((sample_corpus / "corpus" / name).read_bytes())
        assert hashlib.sha256(xml).hexdigest() == shard["sha256"]
    assert "of 190" in found["splits"]["gold/train"]["size"]


def test_loads_by_name_and_streams(built, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "carolina_originality").symlink_to(built)
    shutil.copy(ROOT / "carolina_originality.py", tmp_path)  # a script of that name beside the folder does no harm
    monkeypatch.chdir(tmp_path)
    for config in CONFIGS:
        loaded = datasets.load_dataset("carolina_originality", config, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded["id"][:] == read_split(built, config)["id"].to_pylist()
    heldout = datasets.load_dataset("carolina_originality", "heldout", cache_dir=str(tmp_path / "cache"))
    assert {"validation", "test", "validation_original", "test_unoriginal"} < set(heldout)
    stream = datasets.load_dataset("carolina_originality", "matched", split="train", streaming=True)
    assert next(iter(stream))["text"] == read_split(built, "matched")["text"][0].as_py()
    assert not (built / "carolina_originality.py").exists()


@pytest.fixture(scope="session")
def real(real_corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("real") / "carolina_originality"
    build(real_corpus, output, Parameters(), workers=os.cpu_count())
    return output


@pytest.mark.real_data
def test_real_shards(real):
    found = read_manifest(real)
    assert all(check["passed"] for check in found["checks"].values())
    assert found["documents"]["kept"] > 900_000 and found["shards"]["absent"]
    agreement = found["agreement"]
    assert agreement["documents"] > 300_000
    for reading in ("column", "among_long"):
        assert agreement[reading]["pearson"] >= 0.95 and agreement[reading]["spearman"] >= 0.92
    assert found["splits"]["gold/train"]["documents"] > 40_000


@pytest.mark.real_data
def test_real_splits(real):
    gold, matched = read_split(real, "gold"), read_split(real, "matched")
    assert (gold["originality"].to_numpy() - matched["originality"].to_numpy() >= 10).all()
    index = read_split(real, "index").select(["tokens", "originality"])
    short = index["tokens"].to_numpy() <= 20
    assert (index["originality"].to_numpy()[short] == 0).all()
    assert pq.ParquetFile(real / "data/gold/train-00000-of-00001.parquet").metadata.num_row_groups > 1
