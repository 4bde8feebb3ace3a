"""Outputs appear whole or not at all, and say what made them."""

import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from flexqwen import __version__
from flexqwen.cli import InputError, locate_error


def resolve_output(path: str | Path) -> Path:
    """Where an output is made: a link to a folder, as on a larger disk, stays, and what it leads to is replaced.

    `InputError` for a mount point, in whose place nothing can be renamed: it would be found when all is done.
    """
    path = Path(path)
    path = Path(os.path.realpath(path)) if path.is_symlink() and path.is_dir() else path
    if os.path.ismount(path):
        raise InputError(f"{path} is a mount point, which cannot be replaced as a whole; name a folder in it")
    return path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields `<path>.<pid>.partial` to write to; renames it to `path` on success and removes it on error.

    An existing `path` is replaced only at the rename. What killed processes left is removed first.
    """
    path = resolve_output(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    try:
        yield partial
        replace_path(partial, path)
    except BaseException as error:
        remove_path(partial)
        located = error if isinstance(error, InputError) else locate_error(error, path)
        if located is error:
            raise
        raise located from error


def remove_leftovers(path: Path) -> None:
    """Removes what this process, or a killed one, left as `<path>.<pid>.partial`; puts back what was being replaced."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
        pid = left.name[len(path.name) + 1 : -len(".partial")]
        number = pid.removeprefix("old.")
        if number.isdecimal() and (int(number) == os.getpid() or not _is_running(int(number))):
            if pid != number and not path.exists():
                os.replace(left, path)
            else:
                remove_path(left)


def replace_path(partial: Path, path: Path) -> None:
    """Renames a finished file or folder to `path`, in place of what is there."""
    old = path.with_name(f"{path.name}.old.{os.getpid()}.partial")
    remove_path(old)
    if path.is_dir():  # os.replace cannot put a folder over a folder that has content
        os.replace(path, old)
    os.replace(partial, path)
    remove_path(old)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def is_made(output: Path, found: Any, made_by: dict[str, Any], overwrite: bool) -> bool:
    """Whether `output` is there, made by `made_by`, rather than to be made or replaced.

    `found` is what `output` says of how it was made, a dict if this project made it; what else it says decides nothing.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not isinstance(found, dict):
        raise InputError(f"{output} holds something that this does not make; name another, or remove it yourself")
    found = {"format": 1} | found  # the first files do not name their format
    if all(found.get(name) == value for name, value in made_by.items()):
        print(f"{output}: already there, made from the same; reused")
        return True
    if not overwrite:
        raise InputError(f"{output} was made otherwise; name another output, remove it, or give --overwrite")
    return False


def remove_path(path: Path) -> None:
    """Removes a file or a folder, if it is there. A folder is renamed first: no half of it keeps its name."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.endswith(".partial"):
            path = path.rename(path.with_name(f"{path.name}.{os.getpid()}.partial"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(*paths: Path) -> None:
    """Brings files, and the names that folders hold, to the disk, where a machine that fails finds them again."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems have it for files only
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, whole or not at all; `InputError` for NaN or an infinite number in it."""
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path} is not written: a number in it is NaN or infinite ({error})") from error
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON; None where there is no such file or it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: str | Path, remedy: str) -> dict[str, Any] | None:
    """Reads a JSON object; None where there is no such file, and `InputError` where it is anything else."""
    value = read_json(path)
    if not isinstance(value, dict) and os.path.lexists(path):
        raise InputError(f"{path} is damaged: it is no JSON object; {remedy}")
    return value


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of flexqwen, Python and the named packages; a package that is not installed is left out."""
    found = {"flexqwen": __version__, "python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
