"""A run's folder, which docs/training.md describes: what made it, is it finished, where does it resume."""

import contextlib
import fcntl
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from flexqwen import files
from flexqwen.cli import InputError, redact, suggest_path
from flexqwen.data.packing import open_token_store
from flexqwen.data.texts import dataset_digest, summarize
from flexqwen.files import digest, file_digest, read_json, remove_path, versions, write_json, write_text
from flexqwen.remote import explain_failure
from flexqwen.training.arguments import DEFAULTS, Arguments, TrainingArguments, as_dict
from flexqwen.training.checkpoints import find_defect, last_checkpoint, link_best, list_checkpoints, step_of
from flexqwen.training.loss_figure import draw_loss
from flexqwen.training.metrics import read_log
from flexqwen.training.model import save_code

# Settings that say where and how a run happens, not what comes out of it.
CIRCUMSTANCES = re.compile(
    r"output_dir|overwrite|resume_changed|dataset|tokenizer|token_stores?|disable_tqdm|report_to|run_name|log_level.*|logging_.*|"
    r"dataloader_.*|save_.*|push_to_hub|hub_.*|resume_from_checkpoint|use_cpu|ddp_.*|.*local_rank|project|trackio_.*|per_device_eval_batch_size"
)


def run_folder(arguments: Arguments) -> Path:
    name = f"{arguments.objective.strategy}-{arguments.data.sequence_length}"
    folder = Path(arguments.training.output_dir) / name
    files.resolve_output(folder)  # which refuses what could not be replaced
    return folder


def describe_run(args: Arguments, dataset: str, argv: list[str]) -> dict:
    """What `run.json` says of a run that is about to start. The folder `dataset` may be a copy of what the Hub has."""
    data, training = args.data, args.training
    tokenizer = Path(data.tokenizer) / "tokenizer.json"
    if not tokenizer.is_file():
        remedy = suggest_path(data.tokenizer) or "; make it with python -m flexqwen tokenizer"
        raise InputError(f"no tokenizer in {data.tokenizer}{remedy}")
    digests = {"tokenizer": file_digest(tokenizer)}
    if data.token_store:
        wanted = {"dataset_config": data.dataset_config, "tokenizer_digest": digests["tokenizer"]}
        wanted |= {"unique_tokens": data.unique_tokens, "seed": training.seed if data.unique_tokens else None}
        store = open_token_store(data.token_store, sequence_length=data.sequence_length, **wanted)
        digests["dataset"], summary = store.info["dataset_digest"], store.info.get("data")
        manifest = Path(dataset) / "manifest.json"  # older stores do not say what their data are
        if summary is None and manifest.is_file() and file_digest(manifest) == digests["dataset"]:
            summary = summarize(dataset, data.dataset_config)
    else:
        digests["dataset"], summary = dataset_digest(dataset), summarize(dataset, data.dataset_config)
    if checkpoint := args.model.model_name_or_path:
        weights = sorted(Path(checkpoint).glob("*.safetensors"))
        digests["model"] = digest([file_digest(file) for file in weights] or checkpoint)
    hardware = f"CPU, {os.cpu_count()} cores ({platform.machine()})"
    if training.device.type == "cuda":
        hardware = f"{training.world_size} × {torch.cuda.get_device_name()}"
    return {
        "settings": as_dict(args),
        "given": args.given,
        "rows_per_step": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "digests": digests,
        "versions": versions("torch", "transformers", "accelerate", "tokenizers", "numpy"),
        "command": redact(["train.py", *argv]),
        "data": summary,
        "dataset_is_of_the_hub": dataset != data.dataset,  # the name alone does not tell it from a folder
        "hardware": hardware,
    }


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the same folder. The lock lies beside it: a new run empties the folder."""
    path, is_new = folder.with_name(f"{folder.name}.lock"), not folder.parent.exists()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path)
    except BlockingIOError:
        remedy = "wait for it, or pass another --output_dir"
        raise InputError(f"another process is training in {folder}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be made ({error.strerror}); pass another --output_dir") from None
    try:
        files.remove_leftovers(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a run began there
            if is_new:
                folder.parent.rmdir()
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Descriptor of a locked file; opened again where a process that ended removed it before it was locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def find_state(folder: Path, description: dict, training: TrainingArguments) -> str:
    """What is to be done with a run's folder: "new" (nothing there, or something to be replaced), "resume" (it was
    interrupted) or "finished". Changes nothing.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return "new"
    if not (folder / "run.json").is_file():
        raise InputError(f"{folder} is not empty and holds no run; pass another --output_dir")
    is_finished, checkpoints = (folder / "finished.json").is_file(), list_checkpoints(folder)
    if not is_finished and not checkpoints:
        return "new"  # nothing is lost
    with explain_failure(f"{folder / 'run.json'} is damaged", "bring it back, or pass another --output_dir"):
        changes = differences(read_json(folder / "run.json"), description)
    if not changes and is_finished:
        return "finished"
    can_resume = last_checkpoint(folder) is not None
    if training.overwrite and (changes or not can_resume):
        return "new"
    if changes and not training.resume_changed:
        remedy = "--resume_changed to resume from its last checkpoint with the new ones, or another --output_dir"
        what = f"{folder} holds a run with other settings ({'; '.join(changes)})"
        raise InputError(f"{what}; pass --overwrite to replace it, {remedy}")
    optimizer = [change for change in changes if change.startswith("muon:")]
    if not training.muon:  # the Trainer's AdamW, fused or not, is one; and Muon heeds no `optim`
        optimizer += [c for c in changes if re.match("optim: (?!adamw_torch(_fused)? -> adamw_torch(_fused)?$)", c)]
    if optimizer:
        what = f"{folder} holds the state of another optimizer ({'; '.join(optimizer)})"
        raise InputError(f"{what}, from which no run resumes; pass --overwrite to begin anew, or another --output_dir")
    if not can_resume:
        defects = [f"{checkpoint.name}: {find_defect(checkpoint)}" for checkpoint in checkpoints]
        remedy = "bring back what is missing, or pass --overwrite to begin anew"
        raise InputError(f"{folder} cannot resume from any of its checkpoints ({'; '.join(defects)}); {remedy}")
    if changes:
        print(f"run: {folder} resumes with other settings ({'; '.join(changes)})")
    return "resume"


def start_run(folder: Path, description: dict, trainer, checkpoint: Path | None) -> None:
    """Readies the folder for a new run or, with a checkpoint, for one that resumes, and says on stdout what it is."""
    training, parameters = trainer.args, sum(parameter.numel() for parameter in trainer.model.parameters())
    if training.process_index:
        return
    description = {**description, "parameters": parameters}
    if checkpoint is None:
        target = files.resolve_output(folder)
        remove_path(target)
        target.mkdir(parents=True)
        (folder / "metrics.jsonl").touch()
        save_code(folder.parent)
    else:
        clean_up(folder, checkpoint)
    write_description(folder, description)
    last, passes = trainer.train_dataset.phases[-1], trainer.metrics.passes(training.max_steps)
    steps = f"{training.max_steps:,} steps of up to {last.tokens_per_step:,} tokens"
    data = f"{passes:.2f} passes over {last.rows.info['documents']:,} documents"
    resuming = f", resuming from {checkpoint.name}" if checkpoint else ""
    average = " (their average is evaluated and saved)" if training.ema_decay else ""
    size = f"{parameters:,} parameters{average}"
    print(f"run: {folder}, on {description['hardware']}, {size}, {steps}, {data}{resuming}")


def finish_run(folder: Path, trainer) -> None:
    """Draws the curves of a run that came to its last step, marks it as finished and says where all is."""
    if trainer.args.process_index:
        return
    with explain_failure(f"{folder / 'metrics.jsonl'} is damaged", "remove its wrong lines"):
        draw_loss(folder)
    end = {"step": trainer.state.global_step, "best_loss": trainer.state.best_metric}
    write_json(folder / "finished.json", end)
    print(f"checkpoint: {folder / 'best'}\nlogs:       {folder / 'logs'}, {folder / 'metrics.jsonl'}")
    print(f"figure:     {folder / 'loss.png'}")


def clean_up(folder: Path, last: Path) -> None:
    """Removes from an interrupted run's folder what the checkpoint that it resumes from does not know of."""
    remove_path(folder / "finished.json")
    for later in list_checkpoints(folder):
        if step_of(later) > step_of(last):
            defect = find_defect(later)
            print(f"run: {later} is removed ({defect}); resuming from {last.name}, before it", file=sys.stderr)
            remove_path(later)
    for left in (*folder.glob("checkpoint-*"), *folder.glob("*.partial")):
        remove_path(left)
    with explain_failure(f"{folder / 'metrics.jsonl'} is damaged", "remove its wrong lines"):
        entries = read_log(folder)
        evaluated = [entry for entry in entries if "eval_loss" in entry]
        if evaluated and min(evaluated, key=lambda entry: entry["eval_loss"])["step"] > step_of(last):
            remove_path(folder / "best")  # of a step that is to be made again, perhaps with other settings
        kept = [json.dumps(entry) + "\n" for entry in entries if entry["step"] <= step_of(last)]
    link_best(folder)
    write_text(folder / "metrics.jsonl", "".join(kept))


def write_description(folder: Path, description: dict) -> None:
    write_json(folder / "run.json", description)
    once = ("overwrite", "resume_changed")  # who makes the run again from this file does not ask for that
    names = [name for name in description["given"] if not name.endswith("_token") and name not in once]
    given = {name: description["settings"][name] for name in names}
    write_text(folder / "config.yaml", yaml.safe_dump(given, sort_keys=False))


def differences(old: dict, new: dict) -> list[str]:
    """`name: old -> new` for each setting or digest that would change what comes out."""
    found = []
    for part in ("settings", "digests"):
        for name in sorted({*old[part], *new[part]}):
            # An older run knows nothing of a newer option, whose default leaves it as it was.
            before, after = old[part].get(name, DEFAULTS.get(name)), new[part].get(name)
            if before != after and not (part == "settings" and CIRCUMSTANCES.fullmatch(name)):
                found.append(f"{name}: {before} -> {after}")
    before, after = old.get("rows_per_step"), new["rows_per_step"]
    if before != after and not found:  # the settings are the same, the number of processes is not
        found.append(f"rows of a step, over all processes: {before} -> {after}")
    return found
