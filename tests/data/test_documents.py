"""Shards become stored documents once: bad shards, ids that stand twice, a limit."""

import re
import shutil
import sys

import pytest

import carolina_originality
from flexqwen.data import build
from flexqwen.data import corpus as corpus_module
from flexqwen.data.corpus import read_shard
from flexqwen.data.texts import read_manifest
from tests.helpers.datasets import DOCUMENTS, call, files, read_split, visible


def test_a_bad_shard_stops_the_build_or_is_left_out(corpus, tmp_path, capsys):
    path = corpus / "corpus/university_domains/UNIa.xml.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    words = ("build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1)
    error = call(capsys, *words, expected=2)
    assert str(path) in error and "damaged gzip file after" in error and "--skip_bad_shards" in error
    assert visible(tmp_path) == ["corpus"]
    printed = call(capsys, *words, "--skip_bad_shards")
    assert "1 bad" in printed
    found = read_manifest(tmp_path / "out")
    assert list(found["shards"]["bad"]) == ["university_domains/UNIa.xml.gz"]
    assert found["shards"]["bad"]["university_domains/UNIa.xml.gz"].startswith("is a damaged gzip file after")
    assert "university_domains" not in read_split(tmp_path / "out", "index")["taxonomy"].to_pylist()


def test_a_shard_that_was_left_out_and_is_mended_comes_in(corpus, built, tmp_path, capsys):
    path = corpus / "corpus/university_domains/UNIa.xml.gz"
    good = path.read_bytes()
    path.write_bytes(good[:500] + b"\0" + good[501:])  # as long as it was, so that the inputs are the same
    words = ("build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1, "--skip_bad_shards")
    call(capsys, *words)
    path.write_bytes(good)
    assert "without 1 bad shards; when they are mended, --overwrite reads them again" in call(capsys, *words)
    call(capsys, *words, "--overwrite")
    assert read_manifest(tmp_path / "out")["shards"]["bad"] == {}
    texts = [(folder / "data/gold/train-00000-of-00001.parquet").read_bytes() for folder in (built, tmp_path / "out")]
    assert texts[0] == texts[1]


def test_a_build_that_goes_on_after_a_bad_shard_was_mended_takes_no_old_hashes(corpus, tmp_path, capsys, monkeypatch):
    path = corpus / "corpus/university_domains/UNIa.xml.gz"
    good = path.read_bytes()
    sample = ("build", "--corpus", corpus, "--workers", 1, "--documents", 450, "--skip_bad_shards", "--output")
    call(capsys, *sample, tmp_path / "whole")
    path.write_bytes(good[:500] + b"\0" + good[501:])
    with monkeypatch.context() as patch:
        patch.setattr(build, "choose_splits", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            carolina_originality.main([*map(str, sample), str(tmp_path / "out")])
    path.write_bytes(good)
    call(capsys, *sample, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_a_failed_build_has_read_is_not_read_again(corpus, built, tmp_path, capsys, monkeypatch):
    path = corpus / "corpus/university_domains/UNIa.xml.gz"
    good = path.read_bytes()
    path.write_bytes(good[:500])
    words = ("build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1)
    seen = []

    def recorded(shard, *options):
        seen.append(shard.name)
        return read_shard(shard, *options)

    monkeypatch.setattr(corpus_module, "read_shard", recorded)
    error = call(capsys, *words, expected=2)
    assert f"; finished shards are kept in {tmp_path / 'out.partial'} for the next build" in error
    first = seen[:-1]
    assert first and seen[-1] == "university_domains/UNIa.xml.gz"
    seen.clear()
    path.write_bytes(good)
    call(capsys, *words)
    assert seen and not set(seen) & set(first)
    assert files(tmp_path / "out") == files(built)


def test_the_first_bad_shard_is_named_with_workers_too(corpus, tmp_path, capsys):
    for name in ("wikis/pt/WIKb", "legislative_branch/LEGa"):
        (corpus / f"corpus/{name}.xml.gz").write_bytes(b"?")
    error = call(capsys, "build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 2, expected=2)
    assert re.search(r"(LEGa|WIKb).xml.gz: is a damaged gzip", error)


def test_ids_twice_in_the_corpus_are_counted_once(corpus, tmp_path, capsys):
    folder = corpus / "corpus/wikis"
    shutil.copy(folder / "pt/WIKb.xml.gz", folder / "pt/WIKz.xml.gz")
    sums = (folder / "checksum.sha256").read_text()
    digest = re.search(r"(\w+)\tpt/WIKb.xml", sums)[1]
    (folder / "checksum.sha256").write_text(f"{sums}{digest}\tpt/WIKz.xml\n{'0' * 64}\tpt/WIKy.xml\n")
    (folder / "Thumbs.db").write_text("?")
    printed = call(capsys, "build", "--corpus", corpus, "--output", tmp_path / "out", "--workers", 1)
    assert "1 listed but absent" in printed and "wikis/Thumbs.db" in printed
    found = read_manifest(tmp_path / "out")
    assert found["documents"]["dropped"] == {"duplicate id": found["documents"]["read"] - DOCUMENTS}
    assert found["shards"]["absent"] == ["wikis/pt/WIKy.xml.gz"]
    assert len(read_split(tmp_path / "out", "index")) == DOCUMENTS


def test_limit_of_documents(sample_corpus, tmp_path, capsys):
    words = ("build", "--corpus", sample_corpus, "--output", tmp_path / "out", "--workers", 1, "--documents", 400)
    assert f"dropped {DOCUMENTS - 400}: beyond --documents" in call(capsys, *words)
    index = read_split(tmp_path / "out", "index")
    assert len(index) == 400 and len(set(index["taxonomy"].to_pylist())) == 7
