"""The `step_...` folders of a run: complete or absent, each with a list of its files.

A checkpoint that lacks something would be resumed from to other weights, so it is looked at first, and passed over for
the one before it.
"""

import functools
import os
import re
from contextlib import suppress
from pathlib import Path

import torch

from flexqwen.files import file_digest, read_json, remove_path, sync, write_json
from flexqwen.remote import reason

FILES, SUMS, STATE = "files.json", "sums.json", "trainer_state.json"
EMBEDDINGS = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")  # what sentence-transformers reads
MODEL = ("config.json", "generation_config.json", "model*.safetensors*", *EMBEDDINGS)  # what loads it
NEEDED = ("*.safetensors", "optimizer*", "scheduler.pt", "rng_state*.pth", STATE)  # to go on as if never interrupted


def list_checkpoints(folder: Path) -> list[Path]:
    """The `step_...` folders of a run, in order."""
    return sorted((path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def last_checkpoint(folder: Path) -> Path | None:
    """The `step_...` folder of the highest step that a run can be resumed from."""
    return next((path for path in reversed(list_checkpoints(folder)) if find_defect(path) is None), None)


def write_embedding_modules(checkpoint: Path, hidden_size: int) -> None:
    """Makes embedders load a checkpoint bidirectionally, and take the mean of the tokens' hidden states.

    sentence-transformers and vLLM read it; vLLM would take the last token's.
    """
    modules = {"": "Transformer", "1_Pooling": "Pooling"}
    described = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{module}"}
        for place, (path, module) in enumerate(modules.items())
    ]
    pooling = {"word_embedding_dimension": hidden_size, "pooling_mode_mean_tokens": True}
    for file, content in zip(EMBEDDINGS, (described, {"config_args": {"is_causal": False}}, pooling), strict=True):
        write_json(checkpoint / file, content)


def link_best(folder: Path) -> None:
    """Makes a run's folder load as its `best` does, by links; a file system that has none does without.

    What has the place of a link, as where a folder was copied with what its links led to, is removed: it would be
    loaded though it is of an earlier `best`. So are links to what `best` no longer has.
    """
    targets = {folder / entry.name: f"best/{entry.name}" for entry in (folder / "best").glob("*")}
    for link in folder.iterdir():
        if link.is_symlink() and link not in targets and os.readlink(link).startswith("best/"):
            link.unlink()
    for link, target in targets.items():
        if not link.is_symlink() or os.readlink(link) != target:
            remove_path(link)
            with suppress(OSError):
                link.symlink_to(target)


def finish_checkpoint(unfinished: Path, checkpoint: Path, sums: dict) -> None:
    """Makes a checkpoint of what the Trainer wrote, with the sums since the last log, and brings it to the disk."""
    write_json(unfinished / SUMS, sums)
    write_json(unfinished / FILES, {name: file_digest(file) for name, file in list_files(unfinished).items()})
    sync(*unfinished.rglob("*"), unfinished)
    remove_path(checkpoint)
    unfinished.rename(checkpoint)
    sync(checkpoint.parent)


def list_files(checkpoint: Path) -> dict[str, Path]:
    """A checkpoint's files by name, but for the Trainer's pickle, which nobody reads."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != "training_args.bin"]
    return {file.relative_to(checkpoint).as_posix(): file for file in files}


@functools.cache
def digest_once(file: Path, *state: int) -> str:
    """`file_digest`, taken once in a process as long as `state` (when it was changed, its inode) is the same."""
    return file_digest(file)


def find_defect(checkpoint: Path) -> str | None:
    """Why a run that resumes from a checkpoint would end in other weights than one that never stopped; None if not.

    A checkpoint without a list of its files is an old one; the files that every checkpoint needs are looked for, and
    learning rates that are not those of its optimizer.
    """
    if missing := [pattern for pattern in NEEDED if not any(checkpoint.glob(pattern))]:
        return f"{missing[0]} is missing"
    if (checkpoint / FILES).exists():
        listed, there = read_json(checkpoint / FILES), list_files(checkpoint)
        if not isinstance(listed, dict) or not listed:
            return f"{FILES} is malformed"
        for name, saved in listed.items():
            if name not in there:
                return f"{name} is missing"
            # An older list has their sizes.
            stat = there[name].stat()
            if saved != (
                stat.st_size if isinstance(saved, int) else digest_once(there[name], stat.st_mtime_ns, stat.st_ino)
            ):
                return f"{name} is not as it was saved"
    elif (checkpoint / "optimizer.pt").is_file():
        try:
            names = ("scheduler.pt", "optimizer.pt")
            scheduler, optimizer = (torch.load(checkpoint / name, "cpu", weights_only=True) for name in names)
            rates, stepped = [group["initial_lr"] for group in optimizer["param_groups"]], step_of(checkpoint)
            if scheduler.get("base_lrs") and (scheduler["base_lrs"], scheduler["last_epoch"]) != (rates, stepped):
                return "scheduler.pt is not the one of optimizer.pt"
            kept = [pair for state in optimizer["state"].values() for pair in state.items()]
            if not all(torch.is_tensor(value) or name == "step" for name, value in kept):  # Adafactor's is a number
                return "optimizer.pt is damaged"
        except Exception as error:  # whatever a damaged file makes of it
            return f"scheduler.pt or optimizer.pt is damaged ({reason(error)})"
    state = read_json(checkpoint / STATE)
    if not isinstance(state, dict) or state.get("global_step") != step_of(checkpoint):
        return f"{STATE} is malformed, or of another step"
    try:
        if (checkpoint / SUMS).exists():
            sums = read_json(checkpoint / SUMS)
            torch.tensor([sums["step"], sums["loss"]], dtype=torch.float64)
            if torch.tensor(sums["sums"], dtype=torch.float64).shape not in ((), (2, 3)):  # 0: saved at a log
                raise ValueError
    except (ValueError, TypeError, LookupError, RuntimeError):
        return f"{SUMS} is malformed"
    return None
