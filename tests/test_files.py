"""Outputs appear whole or not at all, whenever a process is killed."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from flexqwen.cli import InputError, command
from flexqwen.data.build import Parameters, build
from flexqwen.files import atomic_write, remove_leftovers, replace_path
from flexqwen.remote import explain_failure

KILLED_AT = """
import os, sys
from pathlib import Path
from flexqwen import files
count, replace = [0], os.replace
def replace_or_die(*args):
    if count[0] == int(sys.argv[2]):
        os._exit(9)
    count[0] += 1
    replace(*args)
os.replace = replace_or_die
with files.atomic_write(sys.argv[1]) as partial:
    partial.mkdir()
    (partial / "x").write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_folder_survives_a_process_that_is_killed_while_it_replaces_it(tmp_path, renames):
    folder = tmp_path / "folder"
    with atomic_write(folder) as partial:
        partial.mkdir()
        (partial / "x").write_text("old")
    words = [sys.executable, "-c", KILLED_AT, str(folder), str(renames)]
    assert subprocess.run(words, cwd=os.getcwd()).returncode == 9
    assert len(list(tmp_path.iterdir())) > 1
    remove_leftovers(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and (folder / "x").read_text() == "old"
    with atomic_write(folder) as partial:
        partial.mkdir()
        (partial / "x").write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and (folder / "x").read_text() == "newer"


def test_a_link_to_a_folder_stays_and_a_mount_point_is_refused_at_once(tmp_path, monkeypatch):
    """The link may lead to a larger disk; a mount point, as a container has, could not be replaced when all is done."""
    (tmp_path / "disk/data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/data")
    for text in ("old", "new"):
        with atomic_write(tmp_path / "link") as partial:
            partial.mkdir()
            (partial / "x").write_text(text)
            assert partial.parent == tmp_path / "disk"
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/data/x").read_text() == text
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(tmp_path / "disk"))
    with pytest.raises(InputError, match="disk is a mount point, which cannot be replaced"):
        build(tmp_path / "none", tmp_path / "disk", Parameters())


def test_what_a_running_process_writes_is_left_alone(tmp_path):
    theirs = tmp_path / f"file.{os.getppid()}.partial"
    theirs.write_text("at work")
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("mine")
    assert theirs.read_text() == "at work" and (tmp_path / "file").read_text() == "mine"


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="full"), atomic_write(tmp_path / "file") as partial:
        partial.write_text("half")
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"
    (tmp_path / "new").write_text("new")
    replace_path(tmp_path / "new", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "new"


def test_an_error_of_another_file_is_not_taken_for_the_outputs(tmp_path):
    with pytest.raises(InputError, match="input is damaged"), atomic_write(tmp_path / "output"):
        raise InputError("input is damaged (os error 13)")
    with pytest.raises(PermissionError, match="output"), atomic_write(tmp_path / "output"):
        raise RuntimeError("cannot be written (os error 13)")


FILL = {
    "numpy": lambda: np.arange(10**6).tofile("/dev/full"),
    "torch": lambda: torch.save(torch.zeros(10**6), "/dev/full"),
    "torch, little": lambda: torch.save(torch.zeros(3), "/dev/full"),
}


@pytest.mark.parametrize("library", FILL)
def test_a_library_on_a_full_disk_is_named_as_the_system_names_it(library, tmp_path):
    with pytest.raises(OSError, match=r"No space left on device.*output"), atomic_write(tmp_path / "output"):
        FILL[library]()


def test_what_is_read_is_not_damaged_where_the_disk_is_full(tmp_path):
    with pytest.raises(OSError, match="No space left"), explain_failure("x is damaged", "remove it"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RuntimeError, match="DefaultCPU"), explain_failure("x is damaged", "remove it"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(InputError, match=r"x is not there.*No space left"), explain_failure("x is not there", "again"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match="x is damaged"), explain_failure("x is damaged", "remove it"):
        raise OSError(errno.EISDIR, "Is a directory")


def test_a_gpu_without_memory_is_one_line(capsys):
    @command
    def main(argv):
        raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB.")  # torch.OutOfMemoryError is one

    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: out of memory; ")
