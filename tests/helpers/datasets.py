"""The sample corpus and what is built of it: its size, the command line, and looks at folders."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import carolina_originality

ROOT = Path(__file__).parents[2]
DOCUMENTS = 800  # of the sample corpus that tests share
CONFIGS = ("gold", "matched", "gold_typology", "matched_typology", "tokenizer", "index")


def files(folder: Path) -> dict[str, bytes]:
    """Every file under the folder: name and bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def visible(folder: Path) -> list[str]:
    """What a user sees there: not what is unfinished."""
    return [path.name for path in folder.iterdir() if not path.name.endswith(".partial")]


def read_split(folder: Path, config: str, split: str = "train") -> pa.Table:
    return pq.read_table(sorted((folder / "data" / config).glob(f"{split}-*.parquet")))


def run(*arguments, expected: int = 0, **options) -> subprocess.CompletedProcess:
    """Runs the command line in a process of its own."""
    command = [sys.executable, str(ROOT / "carolina_originality.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == expected, done.stderr
    return done


def call(capsys, *arguments, expected: int = 0) -> str:
    """Runs the command line in this process; returns what it printed: the output, or the one line of an error."""
    if not expected:
        carolina_originality.main([str(argument) for argument in arguments])
        return capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        carolina_originality.main([str(argument) for argument in arguments])
    assert stop.value.code == expected
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error
