"""A build is never half done, the same inputs give the same bytes, and wrong use is one line."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import carolina_originality
from flexqwen.data import build as build_module
from flexqwen.data import card, corpus, documents, ngrams
from flexqwen.data.build import Parameters, build, lock_work_folder
from flexqwen.data.texts import read_manifest
from flexqwen.files import digest
from tests.helpers.datasets import call, files, read_split, run, visible
from tests.helpers.runs import fork


def test_bytes_do_not_depend_on_workers_or_memory(built, sample_corpus, tmp_path, monkeypatch):
    run("build", "--corpus", sample_corpus, "--output", tmp_path / "two", "--workers", 2, "--memory", 0.25)
    monkeypatch.setattr(ngrams, "_STEP_RECORDS", 1000)
    monkeypatch.setattr(ngrams, "_PIECE_RECORDS", 10)
    monkeypatch.setattr(corpus, "_BATCH_CHARACTERS", 20_000)
    build(sample_corpus, tmp_path / "many", Parameters(), workers=1)
    assert files(tmp_path / "many") == files(built)
    found = files(tmp_path / "two")
    for name, content in files(built).items():
        if name.startswith("figures/"):  # which are not rendered there
            assert len(found.pop(name)) > 5000
        else:
            assert found.pop(name) == content
    assert not found


def test_all_is_every_document_that_is_not_held_out_nor_a_copy_of_such(
    built, sample_corpus, sample_documents, tmp_path, monkeypatch
):
    found = build(sample_corpus, tmp_path / "out", Parameters(with_all=True), workers=1)
    assert found["parameters"]["with_all"] and "with_all" not in read_manifest(built)["parameters"]
    seen = []  # what a build without it is known by has no word of it, so that it stays what it was
    monkeypatch.setattr(build_module, "digest", lambda content: seen.append(str(content)) or digest(content))
    build(sample_corpus, built, Parameters())
    assert len(seen) == 1 and "measure" in seen[0] and "with_all" not in seen[0]
    splits = {name: content for name, content in files(tmp_path / "out").items() if name.startswith("data/")}
    del splits["data/all/train-00000-of-00001.parquet"]
    assert splits == {name: content for name, content in files(built).items() if name.startswith("data/")}

    def passages(text: str) -> list[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return [tuple(words[place : place + 13]) for place in range(len(words) - 12)]

    heldout = {name for part in (built / "data/heldout").iterdir() for name in pq.read_table(part)["id"].to_pylist()}
    grams = {document.id: passages(document.text) for document in sample_documents}
    known = {gram for name in heldout for gram in grams[name]}
    copies = {name for name, own in grams.items() if own and sum(gram in known for gram in own) >= len(own) / 2}
    assert copies - heldout
    made = read_split(tmp_path / "out", "all")["id"].to_pylist()
    assert sorted(made) == sorted(grams.keys() - heldout - copies)


def test_reuse_refuse_overwrite(sample_corpus, tmp_path, capsys):
    output = tmp_path / "out"
    words = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 1)
    assert "out: built" in call(capsys, *words)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    printed = call(capsys, *words)
    assert "made from the same; reused" in printed and "gold/train" in printed
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert "give --overwrite" in call(capsys, *words, "--seed", 1, expected=2)
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    call(capsys, *words, "--seed", 1, "--overwrite")
    assert read_manifest(output)["parameters"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_changed_card_is_written_anew_and_no_shard_is_read(built, sample_corpus, tmp_path, capsys, monkeypatch):
    output = shutil.copytree(built, tmp_path / "out")
    words = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 1)
    monkeypatch.setitem(card.TEXTS["generated"], "caution", "A mended sentence.")
    monkeypatch.setattr(corpus.Shard, "read_batches", None)
    assert "reused" in call(capsys, *words)
    assert files(output) == files(built)
    assert "reused" in call(capsys, *words, "--overwrite")
    assert "A mended sentence." in (output / "README.md").read_text()
    unchanged = {name: content for name, content in files(output).items() if name != "README.md"}
    assert unchanged == {name: content for name, content in files(built).items() if name != "README.md"}


@pytest.mark.parametrize("module", [build_module, documents, ngrams])
def test_another_format_is_another_dataset(module, built, sample_corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 99)
    output = shutil.copytree(built, tmp_path / "out")
    words = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 1)
    assert "was made otherwise" in call(capsys, *words, expected=2)


def test_a_foreign_folder_is_left_alone(sample_corpus, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("!")
    words = ("build", "--corpus", sample_corpus, "--output", tmp_path / "mine", "--workers", 1)
    for overwrite in ((), ("--overwrite",)):
        assert "something that this does not make" in call(capsys, *words, *overwrite, expected=2)
        assert "something that this does not make" in call(capsys, "sample", tmp_path / "mine", *overwrite, expected=2)
    (tmp_path / "mine" / "manifest.json").write_text('["of another tool"]')
    assert "something that this does not make" in call(capsys, *words, "--overwrite", expected=2)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "!"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(sample_corpus, built, tmp_path, capsys):
    call(capsys, "build", "--corpus", sample_corpus, "--output", tmp_path, "--workers", 1)
    assert files(tmp_path) == files(built)


def test_an_output_that_cannot_be(sample_corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("!")
    output = tmp_path / "file" / "out"
    words = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 1)
    for refused in (words, ("sample", output)):
        assert f"{tmp_path / 'file'}" in (error := call(capsys, *refused, expected=2))
        assert "name another path" in error or "cannot be written" in error


def build_and_die(writes: int, *places: Path) -> None:
    """Builds, and is killed before so many files are written, moved or removed."""
    left = writes

    def counted(function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name in ((os, "replace"), (os, "unlink"), (np, "save"), (pq.ParquetWriter, "write_table")):
        setattr(owner, name, counted(getattr(owner, name)))
    build(*places, Parameters(), workers=1)


def test_killed_at_many_points_it_goes_on_to_the_same_bytes(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    finished, deaths = 0, 0
    for writes in range(4, 200, 8):  # killed at the 4th write, then at the 12th after what is left, and so on
        process = fork(build_and_die, writes, sample_corpus, output, output=tmp_path / "log.partial")
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
        assert visible(tmp_path) == [] or files(output) == files(built)
        now = len(list(tmp_path.glob("out.partial/documents/*.json")))
        assert now >= finished or output.exists()  # finished shards stay
        finished = now
    assert process.exitcode == 0 and deaths >= 6
    assert files(output) == files(built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.partial", "out"]


# As soon as there is such a file: workers start, have read a shard, have hashed one.
SIGNS = ("*", "documents/*.json", "*/runs-*/*.npy")


def start_with_workers(corpus: Path, place: Path, sign: str, **options):
    """A build with two workers that has come to the sign, or has ended."""
    words = ["build", "--corpus", corpus, "--output", place / "out", "--workers", 2]
    process = fork(carolina_originality.main, [*map(str, words)], output=place / "log.partial", **options)
    while process.is_alive() and not any((place / "out.partial").glob(sign)):
        time.sleep(0.005)
    return process


def test_killed_at_any_time_with_workers(built, sample_corpus, tmp_path):
    for sign in (*SIGNS, "*/dataset/data/*/*"):
        process = start_with_workers(sample_corpus, tmp_path, sign)
        process.kill()
        process.join()
        if process.exitcode:  # it may have ended by the last sign
            assert process.exitcode == -signal.SIGKILL and visible(tmp_path) == []
        assert _ends(process.pid)  # no worker writes on behind the next run
    build(sample_corpus, tmp_path / "out", Parameters(), workers=1)
    assert files(tmp_path / "out") == files(built)


def _ends(session: int) -> bool:
    """Whether no process of the session is left within seconds."""
    deadline = time.monotonic() + 5
    while _session(session) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _session(session)


def _session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def test_interrupted_it_says_so_and_goes_on_to_the_same_bytes(built, sample_corpus, tmp_path):
    finished, log = 0, tmp_path / "log.partial"
    for sign in SIGNS:
        process = start_with_workers(sample_corpus, tmp_path, sign)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        process.join()
        assert (process.exitcode, log.read_text()) == (130, "interrupted\n")
        log.unlink()
        assert _ends(process.pid) and visible(tmp_path) == []
        now = len(list(tmp_path.glob("out.partial/documents/*.json")))
        assert now >= finished
        finished = now
    assert finished
    build(sample_corpus, tmp_path / "out", Parameters(), workers=1)
    assert files(tmp_path / "out") == files(built)


def test_a_full_disk_is_an_error(built, sample_corpus, tmp_path):
    """Files that cannot grow stand for a full disk: the same failed write, to whoever writes."""
    process = start_with_workers(sample_corpus, tmp_path, "no sign", largest_file=150_000)
    error = (tmp_path / "log.partial").read_text()
    assert process.exitcode == 2
    assert error.count("\n") == 1 and "File too large" in error and "finished shards are kept" in error
    assert visible(tmp_path) == []
    build(sample_corpus, tmp_path / "out", Parameters(), workers=1)
    assert files(tmp_path / "out") == files(built)


def test_a_second_build_at_once_is_refused(sample_corpus, tmp_path, capsys):
    with lock_work_folder(tmp_path / "out"):
        words = ("build", "--corpus", sample_corpus, "--output", tmp_path / "out", "--workers", 1)
        assert "another build is at work" in call(capsys, *words, expected=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build",), "--corpus"),
        (("build", "--corpus", "nowhere"), "nowhere: no such folder"),
        (("build", "--corpus", "."), "give the folder that holds"),
        (("build", "--corpus", ""), "--corpus: is empty, give a path"),
        (("build", "--corpus", ".", "--output", ""), "--output: is empty, give a path"),
        (("inspect", ""), "is empty, give a path"),
        (("build", "--corpus", ".", "--documents", "0"), "give 1 or more"),
        (("build", "--corpus", ".", "--workers", "0"), "give 1 or more"),
        (("build", "--corpus", ".", "--seed", "-1"), "give 0 or more"),
        (("build", "--corpus", ".", "--memory", "0"), "give 0.25"),
        (("build", "--corpus", ".", "--measure", "guess"), "invalid choice"),
        (("build", "--corpus", ".", "--sed", "1"), "--sed"),
        (("sample", "here", "--documents", "0"), "give 1 or more"),
        (("inspect", "nowhere"), "no such folder"),
        (("bild",), "bild"),
    ],
)
def test_wrong_use_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in call(capsys, *arguments, expected=2)
    assert list(tmp_path.iterdir()) == []


def test_held_out_passages_are_looked_for_in_what_is_written(sample_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_module, "find_heldout_shares", lambda file, rows, heldout_file: np.zeros(len(rows)))
    words = ("build", "--corpus", sample_corpus, "--output", tmp_path / "out", "--workers", 1)
    assert "that held-out documents hold'" in call(capsys, *words, expected=2)


def test_too_small_a_corpus(tmp_path, capsys):
    call(capsys, "sample", tmp_path / "tiny", "--documents", 12)
    words = ("build", "--corpus", tmp_path / "tiny", "--output", tmp_path / "out", "--workers", 1)
    assert "give more text" in call(capsys, *words, expected=2)
    assert visible(tmp_path) == ["tiny"]
