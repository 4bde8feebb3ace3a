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

from flexqwen.data import parquet
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


SOME = ("PUBa", "UNIg", "pt-BR/WIKa", "pt/DATev", "pt/WIKf")  # shards of four taxonomies, a twelfth of the real copy


@pytest.fixture(scope="session", params=["some shards", pytest.param("all shards", marks=pytest.mark.slow)])
def real(request, real_corpus, tmp_path_factory) -> Path:
    """The dataset of the real copy of the corpus, or of some of its shards, where the others are absent."""
    place, corpus = tmp_path_factory.mktemp("real"), real_corpus
    if request.param == "some shards":
        corpus = place / "corpus"
        for sums in (real_corpus / "corpus").glob("*/checksum.sha256"):
            names = ["checksum.sha256", *(f"{name}.xml.gz" for name in SOME)]
            for name in names:
                if (path := sums.parent / name).is_file():
                    link = corpus / path.relative_to(real_corpus)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(path.absolute())
    output = place / "carolina_originality"
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "some shards":
            patch.setattr(parquet, "_ROW_GROUP", 1000)
        build(corpus, output, Parameters(), workers=1 if request.param == "some shards" else os.cpu_count())
    return output


@pytest.mark.real_data
def test_real_shards(real, request):
    found, is_whole = read_manifest(real), "all" in request.node.callspec.id
    assert all(check["passed"] for check in found["checks"].values())
    assert found["documents"]["kept"] > (900_000 if is_whole else 20_000) and found["shards"]["absent"]
    agreement = found["agreement"]
    assert agreement["documents"] > (300_000 if is_whole else 15_000)
    for reading in ("column", "among_long"):  # copies in absent shards are not seen
        assert agreement[reading]["pearson"] >= (0.95 if is_whole else 0.85)
        assert agreement[reading]["spearman"] >= (0.92 if is_whole else 0.88)
    assert found["splits"]["gold/train"]["documents"] > (40_000 if is_whole else 2_500)
    assert pq.ParquetFile(real / "data/gold/train-00000-of-00001.parquet").metadata.num_row_groups > 1


@pytest.mark.real_data
def test_real_splits(real):
    gold, matched = read_split(real, "gold"), read_split(real, "matched")
    assert (gold["originality"].to_numpy() - matched["originality"].to_numpy() >= 10).all()
    index = read_split(real, "index").select(["tokens", "originality"])
    short = index["tokens"].to_numpy() <= 20
    assert short.any() and (index["originality"].to_numpy()[short] == 0).all()
