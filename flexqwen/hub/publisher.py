"""Publishes a run on the Hugging Face Hub, while it trains or afterwards.

    python train.py <config.yaml> --push_to_hub true --hub_model_id <org>/<name>
    python -m flexqwen publish <run folder> --repo <org>/<name> [--results <folder made by eval.py> ...]

The second finishes what the first could not upload, and adds results. A repository holds the runs of one tokenizer:

    README.md, *.py, tokenizer…     card, remote code and tokenizer: the first commit of all
    config.json, *.safetensors…     `best` of one run, which the card names: the repository is a model
    .eval_results/                  the figures that belong to datasets of the Hub
    <strategy>-<sequence_length>/   a run's folder as on disk (see runs.py), a commit each checkpoint; and, as `qwen3/`
                                    and `qwen3-bidirectional/`, `best` as a plain Qwen3 in the modes that were trained

The tag `step_000500` is a revision whose root is that checkpoint, `<run>-step_000500` of a run that is not the root's.
Checkpoints stay there when `save_total_limit` deletes them on disk. No pickle is published but what a run resumes from.
"""

import fnmatch
import os
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars
from transformers.trainer_callback import TrainerCallback
from transformers.utils import logging

import configuration_flexqwen
import modeling_flexqwen
from flexqwen.cli import ArgumentParser, InputError, command, path
from flexqwen.evaluation.results import RESULTS
from flexqwen.files import file_digest, read_json
from flexqwen.hub import model_card
from flexqwen.hub.export import export
from flexqwen.hub.repository import Repository
from flexqwen.hub.restore import LAST, RECORDS, TOKENIZER, compare, restore, restore_tokenizer, say, stage
from flexqwen.remote import reason
from flexqwen.training.arguments import Arguments
from flexqwen.training.checkpoints import MODEL, list_checkpoints
from flexqwen.training.objectives import ObjectiveArguments

CODE = [Path(module.__file__) for module in (configuration_flexqwen, modeling_flexqwen)]
OF_OTHER_RUNS = ("run.json", "metrics.jsonl", LAST, "loss.png", f"eval-*/{RESULTS}")  # what the card says
CARD, BEST, README = "card, code and records", "best", "README.md"
CHECKPOINTS = "checkpoints"  # the branch on whose commits the tags are
STEP = re.compile(r"step_\d+")
# Plain Qwen3s of `best`: the mode that was trained, and the mode of the export.
TWINS = {"qwen3": ("causal", "causal"), "qwen3-bidirectional": ("masked", "bidirectional")}


class Publisher(TrainerCallback):
    """Publishes a run's folder: `publish` uploads what is not there yet, part by part, a commit each.

    Told to by a Trainer at each save, it does so in a thread of its own, and never raises into training.

    Args:
        run: the run's folder.
        tokenizer: folder of its tokenizer.
        if_changed: "overwrite" or "resume_changed", where the repository may hold this run with other settings.
        results: folders made by eval.py, besides the `eval-…` that the run's folder holds.
        as_root: make this run the one whose `best` is at the root; by default only where there is no other.
    """

    def __init__(self, repository: Repository, run: Path, tokenizer: Path, if_changed="", results=(), as_root=False):
        self.repository, self.run, self.tokenizer = repository, run, tokenizer
        self.if_changed, self.results = if_changed, list(results)
        self.as_root, self.root = as_root, ""  # name of the run at the root; empty before that is looked at
        self._tags: dict[str, str] = {}
        self.is_reached = False  # whether the repository could be looked at
        self.has_begun = False  # before that, the run's folder is still that of an earlier run
        self._failure: Exception | None = None  # the last of several in a row
        self._thread, self._wanted = threading.Thread(), threading.Event()
        self._replaced: set[str] | None = None  # files of another run, to be deleted; None before that is looked at
        self._published: dict[str, dict] = {}  # part -> what its files were
        disable_progress_bars()  # of uploads: they would break up the training's

    def prepare(self) -> None:
        """Looks at the repository, changing nothing there, and fetches the tokenizer where this machine has none.

        Raises:
            InputError: it holds something else. Where the Hub cannot be reached it says so, and nothing is raised.
        """
        try:
            restore_tokenizer(self.repository, self.tokenizer)
            self.is_reached = True
        except InputError:
            raise
        except Exception as error:
            say(f"{self.repository.url} cannot be read ({reason(error)}); this stops nothing, it is tried again")

    def restore(self, description: dict, state: str) -> bool:
        """Calls `restore` of the module of that name, if the Hub could be reached."""
        return self.is_reached and restore(self.repository, self.run, description, state, self.if_changed)

    def publish(self) -> None:
        """Uploads the parts that changed since, in order.

        Raises:
            InputError: the repository holds something else, or this run with other settings.
        """
        if self._replaced is None:
            restore_tokenizer(self.repository, self.tokenizer)
            there, changes = compare(self.repository, self.run, read_json(self.run / "run.json"), self.if_changed)
            self.repository.create()
            overwrite = changes and self.if_changed == "overwrite"
            self._find_root(overwrite)
            self._replaced = {f"{self.run.name}/{file}" for file in there} if overwrite else set()
        for part, files, now in self._missing():
            with stage(self.run) as staged:
                self._upload(part, files, now, staged)

    def _find_root(self, overwrite: bool) -> None:
        """Finds which run's `best` is at the root, and the tags of checkpoints. A run that was replaced has none."""
        with stage(self.run) as staged:
            self.repository.fetch([README], staged)
            before = model_card.read_root(staged / README)
        self.root = self.run.name if self.as_root or not before else before
        self._tags = self.repository.list_tags()
        for tag, commit in list(self._tags.items()):
            leaves_root = before not in ("", self.root) and STEP.fullmatch(tag)
            if leaves_root:
                self.repository.tag(f"{before}-{tag}", commit)
            if leaves_root or (overwrite and re.fullmatch(self._tag_of(STEP.pattern), tag)):
                self.repository.delete_tag(tag)
                del self._tags[tag]

    def _tag_of(self, checkpoint: str) -> str:
        return checkpoint if self.root == self.run.name else f"{self.run.name}-{checkpoint}"

    def on_train_begin(self, args=None, state=None, control=None, **kwargs):
        self.has_begun = True
        if self.is_reached:
            self.on_save()

    def on_save(self, args=None, state=None, control=None, **kwargs):
        self._wanted.set()
        if not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="publishing", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while self._wanted.is_set():
            self._wanted.clear()
            try:
                self.publish()
                self._failure = None
            except Exception as error:
                if self.has_begun and not self._failure:
                    say(f"not everything is on the Hub yet ({reason(error)}); this stops nothing, it is tried again")
                self._failure = error

    def finish(self, wait: bool = True) -> None:
        """Waits, unless told not to, for the upload under way, and tries once more what is missing then.

        Raises:
            InputError: not everything is there; it names the rest and the command that finishes it.
        """
        why = "interrupted"
        try:
            self._wanted.set()
            while wait and self._wanted.is_set():  # again, if the thread was just about to end
                self.on_save()
                self._thread.join()
            if wait:
                why = reason(self._failure) if self._failure else "changed while it was looked at"
        except KeyboardInterrupt:
            pass
        if isinstance(self._failure, InputError):
            raise self._failure
        if missing := [part for part, _, _ in self._missing()]:
            words = [self.run, "--repo", self.repository.repo_id]
            words += ["--revision", self.repository.revision] if self.repository.revision else []
            words += ["--private"] if self.repository.private else []
            words += [f"--{self.if_changed}"] if self.if_changed else []
            words += ["--root"] if self.as_root else []
            words += ["--results", *self.results] if self.results else []
            raise InputError(
                f"not on the Hub yet: {', '.join(missing)} ({why}); all of it is in {self.run}; to finish: "
                f"python -m flexqwen publish {shlex.join(map(str, words))}"
            )
        print(f"hub:        {self.repository.url}")

    def _missing(self) -> Iterator[tuple[str, dict[str, Path], dict]]:
        """The parts that changed since they were published, with what their files are now."""
        for part, files in self._parts():
            if self._published.get(part) != (now := states_of(files)):
                yield part, files, now

    def _parts(self) -> Iterator[tuple[str, dict[str, Path]]]:
        """What is to be there, in order: a name, and the files by their paths in the repository."""
        run, name = self.run, self.run.name
        card = self._code_and_tokenizer() | {f"{name}/{file}": run / file for file in RECORDS if (run / file).is_file()}
        card |= list_folder(run / "logs", f"{name}/logs")
        for folder in find_results(run, self.results):
            card |= list_folder(folder, f"{name}/eval-{folder.name.removeprefix('eval-')}")
        yield CARD, card
        for folder in list_checkpoints(run):
            yield folder.name, list_folder(folder, f"{name}/{folder.name}")
        for folder in run.glob(BEST):
            yield BEST, list_folder(folder, f"{name}/{BEST}") | (at_root(folder) if self.root == name else {})
        if (run / LAST).is_file():
            strategy = read_json(run / "run.json")["settings"]["strategy"]
            for twin, (trained, _) in TWINS.items():
                if trained in ObjectiveArguments(strategy=strategy).modes:
                    yield twin, list_folder(run / BEST, f"{name}/{twin}")
            yield LAST, card | {f"{name}/{LAST}": run / LAST}

    def _upload(self, part: str, files: dict[str, Path], now: dict, staged: Path) -> None:
        """Commits a part, from copies or links that training cannot change or remove meanwhile."""
        with_card = part in (CARD, LAST)
        try:
            for path_in_repo, file in files.items():
                stage_file(file, staged / path_in_repo, as_link=not with_card)
        except FileNotFoundError:
            return
        if states_of(files) != now and not with_card:
            return  # a checkpoint was removed, or a `best` replaced: the next look sees what there is
        found, deleted = {name: staged / name for name in files}, set()
        if with_card:
            there = self.repository.list_files()  # each time: other runs may have come, or an answer been lost
            deleted = self._replaced & there
            others = {file.split("/")[0] for file in there if file.endswith("/run.json")} - {self.run.name}
            if others:  # the card tells of them too
                self.repository.fetch([f"{run}/{file}" for run in others for file in OF_OTHER_RUNS], staged)
            if (self.run / LAST).is_file():  # the card may know
                stage_file(self.run / LAST, staged / self.run.name / LAST, as_link=False)
            found |= model_card.write(staged, self.repository.repo_id, self.root)
        elif part in TWINS:
            export(staged / self.run.name / part, staged / "exported", TWINS[part][1])
            found = list_folder(staged / "exported", f"{self.run.name}/{part}")
        elif part == BEST and self.root == self.run.name:
            deleted = self._list_models()
        self.repository.commit(found, f"{self.run.name}: {part}", deleted - found.keys())
        if STEP.fullmatch(part) and (tag := self._tag_of(part)) not in self._tags:
            model = self._code_and_tokenizer() | at_root(staged / self.run.name / part)
            stale = self._list_models(CHECKPOINTS) - model.keys()
            self._tags[tag] = self.repository.commit(model, f"{self.run.name}: {part}", stale, CHECKPOINTS)
            self.repository.tag(tag, self._tags[tag])
        self._published[part] = now
        self._replaced = set()  # only the first commit of all, which has the card, deletes

    def _code_and_tokenizer(self) -> dict[str, Path]:
        there = [self.tokenizer / file for file in TOKENIZER if (self.tokenizer / file).is_file()]
        return {file.name: file for file in (*CODE, *there)}

    def _list_models(self, branch: str | None = None) -> set[str]:
        """The files at the root of a branch that a model is loaded from."""
        there = self.repository.list_files(branch)
        return {file for file in there for pattern in MODEL if fnmatch.fnmatch(file, pattern)}


@contextmanager
def publishing(publisher: Publisher | None, trainer=None) -> Iterator[None]:
    """Publishes what makes the repository loadable; while the body trains, what is saved; at the end, the rest.

    Without a publisher it does nothing.

    Raises:
        InputError: not everything is there. If the body itself raises, this is only said.
    """
    if publisher is None:
        yield
        return
    if trainer is None:
        publisher.on_train_begin()
    else:
        trainer.add_callback(publisher)
    try:
        yield
    except BaseException as stopped:
        if publisher.has_begun:
            try:
                publisher.finish(wait=not isinstance(stopped, KeyboardInterrupt))
            except InputError as error:
                say(str(error))
        raise
    publisher.finish()


def make_publisher(args: Arguments, run: Path) -> Publisher | None:
    """What publishes a run, where that is asked for and in the first process; it has looked at the repository.

    Raises:
        InputError: what was asked for cannot be, or the repository holds something else.
    """
    training = args.training
    if not training.push_to_hub or training.process_index:
        return None
    options = {"token": training.hub_token, "private": training.hub_private_repo, "revision": training.hub_revision}
    if_changed = "overwrite" if training.overwrite else "resume_changed" if training.resume_changed else ""
    publisher = Publisher(Repository(training.hub_model_id, **options), run, Path(args.data.tokenizer), if_changed)
    publisher.prepare()
    return publisher


def list_folder(folder: Path, path_in_repo: str) -> dict[str, Path]:
    """The files in a folder, by their paths in the repository. Not the Trainer's pickled arguments."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "training_args.bin")
    return {f"{path_in_repo}/{file.relative_to(folder).as_posix()}": file for file in files}


def at_root(checkpoint: Path) -> dict[str, Path]:
    """The files that a checkpoint is loaded from, by their paths in it."""
    found = [file for pattern in MODEL for file in checkpoint.glob(pattern)]
    return {file.relative_to(checkpoint).as_posix(): file for file in found}


def states_of(files: dict[str, Path]) -> dict[str, tuple]:
    """What tells whether files have changed or are gone."""
    found = {}
    for path_in_repo, file in files.items():
        with suppress(FileNotFoundError):
            status = file.stat()
            found[path_in_repo] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def stage_file(file: Path, staged: Path, as_link: bool) -> None:
    """Makes `staged` what `file` is now. A link costs nothing, and does for what is replaced but never written to."""
    staged.parent.mkdir(parents=True, exist_ok=True)
    if as_link:
        with suppress(OSError):  # a file system without links
            return os.link(file, staged)
    shutil.copyfile(file, staged)


def find_results(run: Path, more: list[Path]) -> list[Path]:
    """The folders of results that are of a checkpoint of the run: those in its folder, and `more`.

    Raises:
        InputError: one of `more` holds none.
    """
    found = []
    candidates = [*sorted(file.parent for file in run.glob(f"eval-*/{RESULTS}")), *more]
    weights = {file_digest(file) for file in run.glob("*/model.safetensors")} if candidates else set()
    for folder in candidates:
        header = read_json(folder / RESULTS)
        if isinstance(header, dict) and header["made_by"]["model"].get("model.safetensors") in weights:
            found.append(folder)
        elif folder in more:
            raise InputError(f"{folder} holds no results of a checkpoint in {run}; make them with eval.py --model …")
    return found


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=path, help="a run's folder, made by train.py")
    parser.add_argument("--repo", required=True, help="<user or organisation>/<name> of the model repository")
    parser.add_argument("--results", type=path, nargs="+", default=[], help="folders made by eval.py, besides eval-…")
    parser.add_argument("--revision", help="branch to write to; main by default")
    parser.add_argument("--root", action="store_true", help="make this run's best the model at the repository's root")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    for name, text in (("overwrite", "replace a run there"), ("resume_changed", "this run resumed from the one there")):
        flag = {"dest": "if_changed", "action": "store_const", "const": name, "default": ""}
        parser.add_argument(f"--{name}", **flag, help=f"{text}, which has other settings")
    args = parser.parse_args(argv)
    description = read_json(args.run / "run.json")
    if not description:
        raise InputError(f"no run in {args.run}: run.json is missing; name the folder that train.py made")
    checkpoints = args.run.glob("*/tokenizer.json")  # each has a copy
    tokenizer = next((file.parent for file in checkpoints), Path(description["settings"]["tokenizer"]))
    logging.disable_progress_bar()
    find_results(args.run, args.results)
    repository = Repository(args.repo, private=args.private or None, revision=args.revision)
    Publisher(repository, args.run, tokenizer, args.if_changed, args.results, args.root).finish()
