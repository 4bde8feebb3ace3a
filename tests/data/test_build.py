"""A build is never half done, the same inputs give the same bytes, and wrong use is one line."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flexqwen.data import build as build_module
from flexqwen.data import card, corpus, documents, ngrams
from flexqwen.data.build import Parameters, build, lock_work_folder
from flexqwen.data.texts import read_manifest
from tests.helpers.datasets import ROOT, call, files, run, visible


def test_bytes_do_not_depend_on_workers_or_memory(built, sample_corpus, tmp_path, monkeypatch):
    run("build", "--corpus", sample_corpus, "--output", tmp_path / "two", "--workers", 2, "--memory", 0.25)
    assert files(tmp_path / "two") == files(built)
    monkeypatch.setattr(ngrams, "_FEW_RECORDS", 1000)
    monkeypatch.setattr(corpus, "_BATCH_CHARACTERS", 20_000)
    build(sample_corpus, tmp_path / "many", Parameters(), workers=1)
    assert files(tmp_path / "many") == files(built)


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
    monkeypatch.setattr(corpus, "read_shard", None)
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


KILLED = """
import os, signal, sys
left = int(sys.argv[1])
def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
import numpy, pyarrow.parquet
os.replace, os.unlink = counted(os.replace), counted(os.unlink)
numpy.save = counted(numpy.save)
pyarrow.parquet.ParquetWriter.write_table = counted(pyarrow.parquet.ParquetWriter.write_table)
from flexqwen.data.build import Parameters, build
build(sys.argv[2], sys.argv[3], Parameters(), workers=1)
"""


def test_killed_at_many_points_it_goes_on_to_the_same_bytes(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    finished, deaths = 0, 0
    for writes in range(4, 200, 8):  # killed at the 4th write, then at the 12th after what is left, and so on
        command = [sys.executable, "-c", KILLED, str(writes), str(sample_corpus), str(output)]
        code = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        assert visible(tmp_path) == [] or files(output) == files(built)
        now = len(list(tmp_path.glob("out.partial/documents/*.json")))
        assert now >= finished or output.exists()  # finished shards stay
        finished = now
    assert code == 0 and deaths >= 6
    assert files(output) == files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_at_any_time_with_workers(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, str(ROOT / "carolina_originality.py"), "build", "--workers", "2"]
    command += ["--corpus", str(sample_corpus), "--output", str(output)]
    for delay in np.linspace(0.3, 1.9, 5):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
        assert visible(tmp_path) == [] or files(output) == files(built)
        assert _ends(process.pid)  # no worker writes on behind the next run
    run(*command[2:])
    assert files(output) == files(built)


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


def hear_interrupts() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_it_says_so_and_goes_on_to_the_same_bytes(built, sample_corpus, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, str(ROOT / "carolina_originality.py"), "build", "--workers", "2"]
    command += ["--corpus", str(sample_corpus), "--output", str(output)]
    finished = 0
    # As soon as there is such a file: workers start, have read a shard, have hashed one.
    for sign in ("*", "documents/*.json", "*/runs-*/*.npy"):
        process = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts
        )
        while process.poll() is None and not any((tmp_path / "out.partial").glob(sign)):
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        error = process.communicate()[1]
        assert (process.returncode, error) == (130, "interrupted\n")
        assert _ends(process.pid) and visible(tmp_path) == []
        now = len(list(tmp_path.glob("out.partial/documents/*.json")))
        assert now >= finished
        finished = now
    assert finished
    run(*command[2:])
    assert files(output) == files(built)


def test_a_full_disk_is_an_error(built, sample_corpus, tmp_path):
    """Files that cannot grow stand for a full disk: the same failed write, to whoever writes."""
    output, limit = tmp_path / "out", 150_000
    words = ("build", "--corpus", sample_corpus, "--output", output, "--workers", 2)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    error = run(*words, expected=2, preexec_fn=small_files).stderr
    assert error.count("\n") == 1 and "File too large" in error and "finished shards are kept" in error
    assert visible(tmp_path) == []
    run(*words)
    assert files(output) == files(built)


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
    assert "give more shards" in call(capsys, *words, expected=2)
    assert visible(tmp_path) == ["tiny"]
