"""Reads the files of a task's data folder; what is wrong with one is a line that names it."""

import csv
import json
from pathlib import Path
from typing import Any

from flexqwen.cli import InputError


def data_file(folder: Path, name: str) -> Path:
    """The file of that name. Raises InputError if there is none."""
    path = Path(folder) / name
    if not path.is_file():
        raise InputError(f"no {name} in {folder}; put the task's published files there, or let them be downloaded")
    return path


def read_csv(path: Path, *columns: str, label: str) -> list[dict[str, str]]:
    """The rows of a UTF-8 CSV file with a header; the column `label` holds 0 or 1.

    Raises:
        InputError: a column is not there, or a label is another.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = (*columns, label)
    for column in columns:
        if not rows or rows[0].get(column) is None:
            raise InputError(f"{path} has no column {column!r}; expected {', '.join(columns)}: fetch the file again")
    for number, row in enumerate(rows, 1):
        if row[label] not in ("0", "1"):
            raise InputError(f"{path}: record {number} has {label} {row[label]!r}; it must be 0 or 1")
    return rows


def read_json_file(path: Path) -> Any:
    """The content of a JSON file. Raises InputError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); fetch the file again") from error
