"""A run's folder: what made it, whether it is finished, and where it goes on.

<output_dir>/<strategy>-<sequence_length>/
    run.json        every setting, digests of dataset and tokenizer, versions, the command
    config.yaml     the settings that were given; train.py <this file> makes the run again
    metrics.jsonl   one line a log entry
    logs/           TensorBoard logs
    step_000500/    checkpoints, complete or absent; each lists its files in files.json
    best/           the checkpoint with the lowest held-out loss
    loss.png        loss against tokens
    finished.json   written last
"""

import fcntl
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from transformers import TrainerState

from flexqwen.cli import InputError, redact
from flexqwen.files import atomic_write, digest, read_json, remove_path, write_json
from flexqwen.training.arguments import Arguments, as_dict

FILES, SUMS, STATE = "files.json", "sums.json", "trainer_state.json"  # of a checkpoint
NEEDED = ("*.safetensors", "optimizer*", "scheduler.pt", "rng_state*.pth", STATE)  # to go on as if never interrupted

# Settings that say where and how a run happens, not what comes out of it.
CIRCUMSTANCES = re.compile(
    r"output_dir|overwrite|resume_changed|dataset|tokenizer|token_stores|disable_tqdm|report_to|run_name|log_level.*|logging_.*|"
    r"dataloader_.*|save_.*|push_to_hub|hub_.*|resume_from_checkpoint|use_cpu|ddp_.*|.*local_rank|project|trackio_.*|per_device_eval_batch_size"
)


def run_folder(arguments: Arguments) -> Path:
    """`<output_dir>/<strategy>-<sequence_length>`."""
    name = f"{arguments.objective.strategy}-{arguments.data.sequence_length}"
    return Path(arguments.training.output_dir) / name


def describe(arguments: Arguments, digests: dict[str, str], versions: dict[str, str], command: list[str]) -> dict:
    """What `run.json` says of a run that is about to start."""
    return {
        "settings": as_dict(arguments),
        "given": arguments.given,
        "rows_per_step": rows_per_step(arguments),
        "digests": digests,
        "versions": versions,
        "command": redact(command),
    }


def hardware(processes: int) -> str:
    """What this machine trains on, for `run.json`."""
    if torch.cuda.is_available():
        return f"{processes} × {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"


def lock(folder: Path):
    """Keeps other processes of this machine from training in the same folder, as long as what it returns is open.

    Raises:
        InputError: another one is training there.
    """
    name = f"flexqwen-{os.getuid()}-{digest(str(folder.resolve()))[:16]}.lock"
    # Not in the folder, which a new run empties.
    file = open(Path(tempfile.gettempdir()) / name, "w")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(
            f"another process is training in {folder}; wait for it, or pass another --output_dir"
        ) from None
    return file


def rows_per_step(arguments: Arguments) -> int:
    """Rows of one optimiser step, over all processes and accumulated batches."""
    training = arguments.training
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def state_of(folder: Path, description: dict, overwrite: bool, resume_changed: bool) -> str:
    """What is to be done with a run's folder. Changes nothing.

    Returns:
        "new" (nothing there, or something to be replaced), "resume" (it was interrupted) or "finished".

    Raises:
        InputError: the folder holds a run made with other settings or data, and neither `overwrite` nor
            `resume_changed` is set; the message names what differs. Or it cannot go on from any of its checkpoints.
    """
    file = folder / "run.json"
    if not folder.exists() or not any(folder.iterdir()):
        return "new"
    if not file.is_file():
        raise InputError(f"{folder} is not empty and holds no run; pass another --output_dir")
    is_finished = (folder / "finished.json").is_file()
    if not is_finished and not checkpoints(folder):
        return "new"  # nothing is lost
    changes = differences(json.loads(file.read_text(encoding="utf-8")), description)
    if not changes and is_finished:
        return "finished"
    can_go_on = last_checkpoint(folder) is not None
    if overwrite and (changes or not can_go_on):
        return "new"
    if checkpoints(folder) and not can_go_on and (resume_changed or not changes):
        defects = [f"{checkpoint.name}: {defect(checkpoint)}" for checkpoint in checkpoints(folder)]
        raise InputError(
            f"{folder} cannot go on from any of its checkpoints ({'; '.join(defects)}); bring back what is missing, or "
            "pass --overwrite to begin anew"
        )
    if not changes:
        return "resume"
    if resume_changed and can_go_on:
        print(f"run: {folder} goes on with other settings ({'; '.join(changes)})")
        return "resume"
    raise InputError(
        f"{folder} holds a run with other settings ({'; '.join(changes)}); pass --overwrite to replace it, "
        "--resume_changed to go on from its last checkpoint with the new ones, or another --output_dir"
    )


def begin(folder: Path, description: dict) -> None:
    """Empties the folder of a new run and says in it what the run is."""
    remove_path(folder)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    say(folder, description)


def go_on(folder: Path, description: dict) -> None:
    """Removes from an interrupted run's folder what its last checkpoint does not know of.

    Those after it, which cannot be gone on from, are named on stderr.
    """
    last = last_checkpoint(folder)
    step = int(last.name.removeprefix("step_"))
    remove_path(folder / "finished.json")
    for later in checkpoints(folder)[checkpoints(folder).index(last) + 1 :]:
        problem = defect(later)
        print(f"run: {later} is removed ({problem}); going on from {last.name}, before it", file=sys.stderr)
        remove_path(later)
    for left in (*folder.glob("checkpoint-*"), *folder.glob("*.partial")):
        remove_path(left)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    evaluated = [json.loads(line) for line in lines if _step_of(line) < float("inf") and "eval_loss" in line]
    if evaluated and min(evaluated, key=lambda entry: entry["eval_loss"])["step"] > step:
        remove_path(folder / "best")  # of a step that is to be made again, perhaps with other settings
    with atomic_write(folder / "metrics.jsonl") as aside:
        aside.write_text("".join(line for line in lines if _step_of(line) <= step), encoding="utf-8")
    say(folder, description)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # the process was killed while it wrote the line
        return float("inf")


def say(folder: Path, description: dict) -> None:
    """Writes `run.json` and `config.yaml`."""
    write_json(folder / "run.json", description)
    given = [name for name in description["given"] if not name.endswith("_token")]
    settings = {name: description["settings"][name] for name in given}
    with atomic_write(folder / "config.yaml") as aside:
        aside.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def differences(old: dict, new: dict) -> list[str]:
    """`name: old -> new` for each setting or digest that would change what comes out."""
    found = []
    for part in ("settings", "digests"):
        for name in sorted({*old[part], *new[part]}):
            before, after = old[part].get(name), new[part].get(name)
            if before != after and not (part == "settings" and CIRCUMSTANCES.fullmatch(name)):
                found.append(f"{name}: {before} -> {after}")
    before, after = old.get("rows_per_step"), new["rows_per_step"]
    if before != after and not found:  # the settings are the same, the number of processes is not
        found.append(f"rows of a step, over all processes: {before} -> {after}")
    return found


def checkpoints(folder: Path) -> list[Path]:
    """The `step_...` folders of a run, in order."""
    return sorted(folder.glob("step_[0-9]*[0-9]"), key=lambda path: int(path.name.removeprefix("step_")))


def last_checkpoint(folder: Path) -> Path | None:
    """The `step_...` folder of the highest step that can be gone on from."""
    return next((checkpoint for checkpoint in reversed(checkpoints(folder)) if defect(checkpoint) is None), None)


def sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of a checkpoint's files, for its `files.json`; but of the Trainer's pickle, which nobody reads."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != "training_args.bin"]
    return {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}


def defect(checkpoint: Path) -> str | None:
    """Why a run that goes on from a checkpoint would end in other weights than one that never stopped; None if not.

    A checkpoint without a list of its files is an older one; the files that every checkpoint needs are looked for.
    """
    if missing := [pattern for pattern in NEEDED if not any(checkpoint.glob(pattern))]:
        return f"{missing[0]} is missing"
    if (checkpoint / FILES).exists():
        listed, there = read_json(checkpoint / FILES), sizes(checkpoint)
        if not isinstance(listed, dict) or not listed:
            return f"{FILES} is malformed"
        for name, size in listed.items():
            if there.get(name) != size:
                return f"{name} has {there[name]} bytes instead of {size}" if name in there else f"{name} is missing"
    try:
        step = TrainerState.load_from_json(str(checkpoint / STATE)).global_step
    except (OSError, ValueError, TypeError):
        return f"{STATE} is malformed"
    if step != int(checkpoint.name.removeprefix("step_")):
        return f"{STATE} is of step {step}"
    try:
        if (checkpoint / SUMS).exists():
            so_far = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
            torch.tensor([so_far["step"], so_far["loss"]], dtype=torch.float64)
            if torch.tensor(so_far["sums"], dtype=torch.float64).shape not in ((), (2, 3)):  # 0: saved at a log
                raise ValueError
    except (OSError, ValueError, TypeError, LookupError, RuntimeError):
        return f"{SUMS} is malformed"
    return None
