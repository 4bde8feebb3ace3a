"""What all commands say when they are called wrongly."""

import errno
import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

import carolina_originality
import eval as evaluation
import train
from flexqwen import __main__ as verbs
from flexqwen.cli import command, lasting_output, suggest_path
from tests.helpers.runs import ROOT

STUDY = str(ROOT / "configs/study-cpu.yaml")
BARE = """
import runpy, sys
class Refusal:
    def find_spec(name, *rest):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "flexqwen"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refusal)
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (evaluation.main, ["--model", "x", "--task", "wsc_pt"], "did you mean '--tasks'?"),
        (carolina_originality.main, ["build", "--corpus", "x", "--measur", "ngram"], "did you mean '--measure'?"),
        (verbs.main, ["tokenizer", "--vocab-sizes", "9"], "did you mean '--vocab_size'?"),
        (
            verbs.main,
            ["study", "run", str(ROOT / "configs/study-cpu.yaml"), "--worker", "2"],
            "did you mean '--workers'?",
        ),
        (train.main, ["--learningrate", "1"], "did you mean 'learning_rate'?"),
        (train.main, [], "usage: train.py <config.yaml>"),
        (train.main, [""], "an argument is empty, give a path"),
        (carolina_originality.main, ["bild"], "did you mean 'build'?"),
        (evaluation.main, ["--model", ".", "--tasks", "minimal_pair"], "did you mean 'minimal_pairs'?"),
        (evaluation.main, ["--model", "x", "--modes", "casual"], "did you mean 'causal'?"),
        (verbs.main, [], "the following arguments are required: verb"),
    ],
)
def test_a_wrong_call_is_one_line_with_the_remedy(main, words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train.py configs/quickstart.yaml", "No module named 'torch'"),
        ("eval.py --model x", "No module named "),
        ("carolina_originality.py inspect x", "No module named "),
        ("flexqwen publish x", "No module named "),
        # What needs no library is said before one is imported, which takes seconds.
        ("train.py configs/quickstart.yml", "did you mean 'configs/quickstart.yaml'?"),
        ("eval.py --nope", "unrecognized arguments: --nope"),
        ("eval.py --model x --modes casual", "did you mean 'causal'?"),
        ("eval.py --compare confgs docs", "did you mean 'configs'?"),
        ("flexqwen study run configs/study-cpu.yml", "did you mean 'configs/study-cpu.yaml'?"),
    ],
)
def test_without_libraries_there_is_one_line(words, said):
    """As where a user's Python is another than that of the virtual environment."""
    command = [sys.executable, "-c", BARE, *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    error = ended.stderr
    assert ended.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert "No module" not in said or error.endswith("; install what is needed: pip install -r requirements.txt\n")


def test_little_memory_is_one_line(capsys):
    """What the linker, and the thread pools of Arrow and of Rust, say of it."""

    class Panic(BaseException):
        pass

    for error in (
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError("libtorch_cpu.so: cannot allocate memory in static TLS block"),
        Panic('ThreadPoolBuildError { kind: IOError(Os { code: 11, kind: WouldBlock, message: "..." }) }'),
        Exception("Unknown error: Failed to launch worker thread: Resource temporarily unavailable"),
    ):

        @command
        def main(argv, error=error):
            raise error

        with pytest.raises(SystemExit) as stopped:
            main([])
        assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: out of memory; ")


def test_the_nearest_path_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").touch()
    for wrong in ("configs/quickstart.yml", "confgs/quickstart.yaml", "config/quikstart.yaml"):
        assert suggest_path(wrong) == "; did you mean 'configs/quickstart.yaml'?"
        assert suggest_path(tmp_path / wrong) == f"; did you mean '{tmp_path}/configs/quickstart.yaml'?"
    for other in (
        "configs/quickstart.yaml",
        "configs",
        "nothing/like/it",
        "configs/other",
        "x" * 5000,
        "\0",
        "",
        "/",
        "/nothing/like",
    ):
        assert suggest_path(other) == ""
    monkeypatch.setattr("os.listdir", Mock(side_effect=PermissionError))  # a folder that may not be listed
    assert suggest_path("configs/quickstart.yml") == ""


def test_what_cannot_be_printed_is_lost_and_stops_nothing(monkeypatch):
    stream = Mock(fileno=lambda: 1)
    stream.write.side_effect = OSError(errno.ENOSPC, "")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", None)  # closed, as daemons have it
    with lasting_output():
        print("lost")
        stream.write.side_effect = None
        print("printed", file=sys.stderr)
        print("printed")
    stream.write.assert_called_with("\n")
    assert [call.args[0] for call in stream.write.call_args_list][-2:] == ["printed", "\n"]


def test_too_few_addresses_are_said_before_a_library_needs_them():
    command = f"ulimit -v 450000; {sys.executable} carolina_originality.py inspect nope"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: only 439 MiB of memory may be addressed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("letters", [10, 100_000])  # kept in a buffer, and written at once
def test_whoever_has_read_enough_is_told_nothing_more(letters):
    write = f"[print('a' * {letters}, flush=True) for _ in range(99)]"
    write = f"from flexqwen.cli import command; command(lambda _: {write})()"
    words = f'{sys.executable} -c "{write}" | head -c 1; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("a", "") and ended.returncode in (0, 141)  # 0: head had not ended yet
