"""Compares a run with what a repository of the Hub holds of it, and brings it back from there."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexqwen.cli import InputError
from flexqwen.files import file_digest, read_json, remove_leftovers, remove_path, replace_path
from flexqwen.hub.repository import Repository
from flexqwen.remote import explain_failure, reason
from flexqwen.training.checkpoints import find_defect, last_checkpoint, link_best
from flexqwen.training.runs import differences

CODE = "configuration_flexqwen.py"  # what tells our repositories from others
RECORDS = ("run.json", "config.yaml", "metrics.jsonl", "loss.png", "loss.pdf")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LAST = "finished.json"
RENAME = "give --hub_model_id a name that is free"


class Refused(InputError):
    """The repository holds what is not to be overwritten: trying again changes nothing."""


def restore_tokenizer(repository: Repository, tokenizer: Path) -> set[str]:
    """Fetches the tokenizer where this machine has none; returns the files of the repository."""
    there = repository.list_files()
    if there and CODE not in there:
        what = f"holds something else ({min(there)}, …), which is not overwritten"
        raise Refused(f"{repository.url} {what}; {RENAME}")
    if "tokenizer.json" not in there:
        return there
    with fetch_beside(tokenizer, repository, [*TOKENIZER]) as fetched:
        if not (tokenizer / "tokenizer.json").is_file():
            tokenizer.mkdir(parents=True, exist_ok=True)
            for file in reversed(TOKENIZER):  # what the others belong to comes last
                if (fetched / file).is_file():
                    replace_path(fetched / file, tokenizer / file)
        elif file_digest(tokenizer / "tokenizer.json") != file_digest(fetched / "tokenizer.json"):
            what = f"{repository.url} holds runs of another tokenizer than {tokenizer}"
            raise Refused(f"{what}; {RENAME}, or its tokenizer")
    return there


def compare(repository: Repository, run: Path, description: dict, if_changed: str) -> tuple[set[str], list[str]]:
    """Files that the repository has of a run, by their paths in it, and in what its settings differ, if they may."""
    name, changes = run.name, []
    there = {file.removeprefix(f"{name}/") for file in repository.list_files() if file.startswith(f"{name}/")}
    if "run.json" in there:
        with fetch_beside(run, repository, [f"{name}/run.json"]) as fetched:
            try:
                changes = differences(read_json(fetched / name / "run.json"), description)
            except Exception as error:
                what = f"{repository.url} holds a {name}/run.json that is damaged ({reason(error)})"
                raise Refused(f"{what}; delete the folder {name} there, or {RENAME}") from error
    if changes and not if_changed:
        what = f"{repository.url} holds a run {name} with other settings ({'; '.join(changes)}); pass another"
        otherwise = "--overwrite to replace it, or --resume_changed to resume from its last checkpoint"
        raise Refused(f"{what} --hub_model_id, {otherwise}")
    return there, changes


def restore(repository: Repository, run: Path, description: dict, state: str, if_changed: str = "") -> bool:
    """Fetches a run's records and last checkpoint, if it has got further in the repository; whether it did so.

    `state` is what `runs.find_state` says of the folder. A "new" one holds nothing that is to be kept; what another one
    holds and the repository does not, such as earlier checkpoints and results, stays.
    """
    there, changes = compare(repository, run, description, if_changed)
    steps = {file.split("/")[0] for file in there if re.match(r"step_\d+/", file)}
    last, is_finished = max(steps, key=lambda step: int(step[5:]), default=None), LAST in there
    if last is None or state == "finished" or (changes and if_changed == "overwrite"):
        return False
    if state == "resume":
        if changes or differences(read_json(run / "run.json"), description):
            return False  # with --resume_changed: the checkpoints of two runs would be mixed in one folder
        if int(last_checkpoint(run).name[5:]) >= int(last[5:]) and not is_finished:
            return False
    wanted = [*RECORDS, LAST, "logs/*", "best/*", f"{last}/*"]
    with fetch_beside(run, repository, [f"{run.name}/{pattern}" for pattern in wanted]) as fetched:
        if not is_finished and (problem := find_defect(fetched / run.name / last)):
            what = f"{repository.url} holds a {run.name}/{last} that no run can resume from ({problem})"
            raise InputError(f"{what}; delete that folder there, and the same command restores the one before it")
        if state == "new":
            replace_path(fetched / run.name, run)
        else:  # the checkpoint after what goes with it, so that after a kill all of it is fetched again
            for entry in sorted((fetched / run.name).iterdir(), key=lambda e: (e.name == LAST, e.name == last)):
                replace_path(entry, run / entry.name)
    link_best(run)
    say(f"{run.name} was fetched from {repository.url}, {'finished' if is_finished else f'with {last}'}")
    return True


@contextmanager
def stage(path: Path) -> Iterator[Path]:
    """A folder beside a path for what comes from the Hub or goes there; removed in the end, as is one left behind."""
    place = path.with_name(f"{path.name}.hub")
    staged = place.with_name(f"{place.name}.{os.getpid()}.partial")
    with suppress(OSError):  # they are in nobody's way
        remove_leftovers(place)
    try:
        yield staged
    finally:
        remove_path(staged)


@contextmanager
def fetch_beside(path: Path, repository: Repository, patterns: list[str]) -> Iterator[Path]:
    """A folder beside a path with files of the repository, removed in the end."""
    what = f"{repository.url} holds files that could not be fetched to {path.parent}"
    with stage(path) as fetched:
        with explain_failure(what, "run the same command again, or leave --push_to_hub out"):
            repository.fetch(patterns, fetched)
        yield fetched


def say(text: str) -> None:
    """What goes on with the Hub, beside the training's own output."""
    print(f"hub: {text}", file=sys.stderr, flush=True)
