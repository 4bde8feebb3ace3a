"""Scores of a built dataset are the planted truth, and make the splits where they are asked to."""

import gzip
import hashlib
import re

import pytest

from flexqwen.data.sample.generate import true_originality
from flexqwen.data.texts import read_manifest
from tests.helpers.datasets import DOCUMENTS, call, read_split


def test_scores_are_the_planted_truth(built, sample_documents):
    truth = true_originality([document.text for document in sample_documents])
    index = read_split(built, "index")
    found = dict(zip(index["id"].to_pylist(), index["ngram_originality"].to_pylist(), strict=True))
    assert len(found) == DOCUMENTS == len(index)
    for document, percent in zip(sample_documents, truth, strict=True):
        assert found[document.id] == pytest.approx(percent)
    assert read_manifest(built)["agreement"]["column"]["pearson"] > 0.999


def test_measure_ngram(corpus, tmp_path, capsys):
    """The recomputed measure makes splits where headers state none."""
    name = "wikis/pt-BR/WIKa"
    xml = gzip.decompress((corpus / f"corpus/{name}.xml.gz").read_bytes()).decode()
    xml = re.sub(r'<measure type="originality".*?/>', "", xml).encode()
    (corpus / f"corpus/{name}.xml.gz").write_bytes(gzip.compress(xml))
    sums = corpus / "corpus/wikis/checksum.sha256"
    digest = hashlib.sha256(xml).hexdigest()
    sums.write_text(re.sub(r"\w+\tpt-BR/WIKa.xml", f"{digest}\tpt-BR/WIKa.xml", sums.read_text()))
    words = ("build", "--corpus", corpus, "--workers", 1)
    call(capsys, *words, "--output", tmp_path / "ngram", "--measure", "ngram")
    found = read_manifest(tmp_path / "ngram")
    assert found["documents"]["kept"] == DOCUMENTS and all(c["passed"] for c in found["checks"].values())
    gold, matched = (read_split(tmp_path / "ngram", c)["ngram_originality"].to_numpy() for c in ("gold", "matched"))
    assert (gold - matched >= 10).all()
    assert read_split(tmp_path / "ngram", "index")["originality"].null_count > 20
    call(capsys, *words, "--output", tmp_path / "header")
    assert read_manifest(tmp_path / "header")["documents"]["dropped"]["originality: missing"] > 20
