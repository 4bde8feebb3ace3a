"""Publishes a run on the Hugging Face Hub, while it trains or afterwards.

A repository holds the runs of one tokenizer:

    README.md, *.py, tokenizer…     card, remote code and tokenizer: the first commit of all
    config.json, *.safetensors…     `best` of one run, which the card names: the repository is a model
    .eval_results/                  the figures that belong to datasets of the Hub
    <strategy>-<sequence_length>/   a run's folder as on disk (see runs.py), a commit each checkpoint; and, as `qwen3/`
                                    and `qwen3-bidirectional/`, `best` as a plain Qwen3 in the modes that were trained

The tag `<run>-step_000500` is a revision whose root is that checkpoint; `step_000500` is that of the run at the root.
Branches other than main have no tags. Checkpoints stay there when `save_total_limit` deletes them on disk.
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
from flexqwen.cli import ArgumentParser, InputError, command, existing
from flexqwen.evaluation.results import RESULTS
from flexqwen.files import file_digest, read_json
from flexqwen.hub import model_card
from flexqwen.hub.export import export
from flexqwen.hub.repository import Repository
from flexqwen.hub.restore import LAST, RECORDS, TOKENIZER, Refused, compare, restore, restore_tokenizer, say, stage
from flexqwen.hub.space import publish_space
from flexqwen.loading import check_shapes
from flexqwen.remote import reason
from flexqwen.training.arguments import Arguments
from flexqwen.training.checkpoints import MODEL, find_defect, list_checkpoints
from flexqwen.training.objectives import trained_modes

CODE = [Path(module.__file__) for module in (configuration_flexqwen, modeling_flexqwen)]
OF_OTHER_RUNS = ("run.json", "metrics.jsonl", LAST, "loss.png", f"eval-*/{RESULTS}")  # what the card says
CARD, BEST, README = "card, code and records", "best", "README.md"
CHECKPOINTS = "checkpoints"  # the branch on whose commits the tags are
STEP = re.compile(r"step_\d+")
# Plain Qwen3s of `best`: the mode that was trained, and the mode of the export.
TWINS = {"qwen3": ("causal", "causal"), "qwen3-bidirectional": ("masked", "bidirectional")}


class Publisher(TrainerCallback):
    """Publishes a run's folder: `publish` uploads what is not there yet, part by part, a commit each.

    Told to by a Trainer at each save, it does so in a thread of its own, and never raises into training. `if_changed`,
    "overwrite" or "resume_changed", is for a repository that holds this run with other settings; `results` are folders
    made by eval.py, besides those in the run's; `as_root` makes this the run whose `best` is at the root.
    """

    def __init__(self, repository: Repository, run: Path, tokenizer: Path, if_changed="", results=(), as_root=False):
        self.repository, self.run, self.tokenizer = repository, run, tokenizer
        self.if_changed, self.results = if_changed, list(results)
        self.as_root, self.root = as_root, ""  # name of the run at the root; looked at before each upload
        self.is_reached = False  # whether the repository could be looked at
        self.has_begun = False  # before that, the run's folder is still that of an earlier run
        self._failure: Exception | None = None  # the last of several in a row
        self._thread, self._wanted = threading.Thread(), threading.Event()
        self._replaced: set[str] | None = None  # files of another run, to be deleted; None before that is looked at
        self._ended: set[str] = set()  # the mark that the run there had come to an end, when this one goes on from it
        self._published: dict[str, dict] = {}  # part -> what its files were
        disable_progress_bars()  # of uploads: they would break up the training's

    def prepare(self) -> None:
        """Looks at the repository, if it can be reached, and fetches the tokenizer where this machine has none."""
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
        """Uploads the parts that changed since, in order."""
        if self._replaced is None:
            restore_tokenizer(self.repository, self.tokenizer)
            there, changes = compare(self.repository, self.run, read_json(self.run / "run.json"), self.if_changed)
            self.repository.create()
            overwrite = changes and self.if_changed == "overwrite"
            self._replaced = {f"{self.run.name}/{file}" for file in there} if overwrite else set()
            self._ended = {f"{self.run.name}/{LAST}"} if changes else set()
        for part, files, now in self._missing():
            with stage(self.run) as staged:
                self._upload(part, files, now, staged)

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

        The `InputError` where not everything is there names the rest and the command that finishes it.
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
        if isinstance(self._failure, Refused):
            raise self._failure
        if missing := [part for part, _, _ in self._missing()]:
            there, words = self.repository, [self.run, "--repo", self.repository.repo_id]
            words += ["--revision", there.revision] * bool(there.revision) + ["--private"] * bool(there.private)
            words += [f"--{self.if_changed}"] * bool(self.if_changed) + ["--root"] * self.as_root
            words += ["--results", *self.results] * bool(self.results)
            what = f"not on the Hub yet: {', '.join(missing)} ({why}); all of it is in {self.run}"
            raise InputError(f"{what}; to finish: python -m flexqwen publish {shlex.join(map(str, words))}")
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
            yield BEST, list_folder(folder, f"{name}/{BEST}")
        if (run / LAST).is_file():
            modes = trained_modes(read_json(run / "run.json")["settings"])
            for twin, (trained, _) in TWINS.items():
                if trained in modes:
                    yield twin, list_folder(run / BEST, f"{name}/{twin}")
            yield LAST, card | {f"{name}/{LAST}": run / LAST}

    def _upload(self, part: str, files: dict[str, Path], now: dict, staged: Path) -> None:
        """Commits a part, from copies or links that training cannot change or remove meanwhile."""
        name, with_card = self.run.name, part in (CARD, LAST)
        try:
            for path_in_repo, file in files.items():
                stage_file(file, staged / path_in_repo, as_link=not with_card)
        except FileNotFoundError:
            return
        if states_of(files) != now and not with_card:
            return  # a checkpoint was removed, or a `best` replaced: the next look sees what there is
        if STEP.fullmatch(part) and (defect := find_defect(staged / name / part)):
            say(f"{name}/{part} is not published: {defect}")
            self._published[part] = now
            return
        if part == BEST:
            check_shapes(modeling_flexqwen.FlexQwenForCausalLM, staged / name / part)
        found, deleted = {file: staged / file for file in files}, set()
        self.repository.fetch([README], staged / "before")
        before = model_card.read_root(staged / "before" / README)  # each time: another may have been made the root
        self.root = name if self.as_root or not before else before
        if with_card:
            there = self.repository.list_files()  # each time: other runs may have come, or an answer been lost
            deleted = (self._replaced | self._ended) & there
            # Those that hold are made anew.
            deleted |= there & {f".eval_results/{task}.yaml" for task in model_card.TASKS}
            if self.root != name:  # the tokenizer at the root is its own run's
                found = {file: found[file] for file in found if file not in there.intersection(TOKENIZER)}
            elif self._replaced:
                deleted |= self._list_models()
            others = {file.split("/")[0] for file in there if file.endswith("/run.json")} - {name}
            own = fnmatch.filter(there - self._replaced - found.keys(), f"{name}/eval-*/{RESULTS}")
            if others or own:  # the card tells of them too
                wanted = [f"{run}/{file}" for run in others for file in OF_OTHER_RUNS]
                self.repository.fetch(wanted + own, staged)
            for folder in {os.path.dirname(file) for file in own}:
                if is_of(staged / folder, self.run) is False:  # of weights that were replaced
                    shutil.rmtree(staged / folder)
                    deleted |= {file for file in there if file.startswith(f"{folder}/")}
            if (self.run / LAST).is_file():  # the card may know
                stage_file(self.run / LAST, staged / name / LAST, as_link=False)
            found |= model_card.write(staged, self.repository.repo_id, self.root)
        elif part in TWINS:
            export(staged / name / part, staged / "exported", TWINS[part][1])
            found = list_folder(staged / "exported", f"{name}/{part}")
        elif part == BEST and self.root == name:
            found |= at_root(staged / name / BEST)
            deleted = self._list_models()
        self.repository.commit(found, f"{name}: {part}", deleted - found.keys())
        if self.repository.revision in (None, "main"):
            self._update_tags(part, staged / name / part)
        self._published[part] = now
        self._replaced = self._ended = set()  # only the first commit of all, which has the card, deletes

    def _update_tags(self, part: str, folder: Path) -> None:
        """Tags a checkpoint that is new or has other content, and makes `step_…` those of the run at the root."""
        name, is_root = self.run.name, self.root == self.run.name
        mine = re.compile(f"({re.escape(name)}-){'?' if is_root else ''}{STEP.pattern}")
        tags = {tag: commit for tag, commit in self.repository.list_tags().items() if mine.fullmatch(tag)}
        wanted = {} if self._replaced else {tag: tags[tag] for tag in tags if tag.startswith(name)}
        if STEP.fullmatch(part):
            tag, model, place = f"{name}-{part}", at_root(folder), f"{name}/{part}/"
            tagged = self.repository.blob_ids(model, tag) if tag in tags else {}
            if self.repository.blob_ids([place + file for file in model]) != {place + f: tagged[f] for f in tagged}:
                stale, files = self._list_models(CHECKPOINTS) - model.keys(), self._code_and_tokenizer() | model
                wanted[tag] = self.repository.commit(files, f"{name}: {part}", stale, CHECKPOINTS)
        if is_root:
            wanted |= {tag.removeprefix(f"{name}-"): commit for tag, commit in wanted.items()}
        for tag in sorted(tags.items() - wanted.items()):
            self.repository.delete_tag(tag[0])
        for tag in sorted(wanted.items() - tags.items()):
            self.repository.tag(*tag)

    def _code_and_tokenizer(self) -> dict[str, Path]:
        there = [self.tokenizer / file for file in TOKENIZER if (self.tokenizer / file).is_file()]
        return {file.name: file for file in (*CODE, *there)}

    def _list_models(self, branch: str | None = None) -> set[str]:
        """The files at the root of a branch that a model is loaded from."""
        there = self.repository.list_files(branch)
        return {file for file in there for p in MODEL if fnmatch.fnmatch(file, p) and file.count("/") == p.count("/")}


@contextmanager
def publishing(publisher: Publisher | None, trainer=None) -> Iterator[None]:
    """Publishes what makes the repository loadable; while the body trains, what is saved; at the end, the rest.

    Without a publisher it does nothing. That not everything is there is only said where the body itself raises.
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
    """What publishes a run, where that is asked for and in the first process; it has looked at the repository."""
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
    """The folders of results that are of a checkpoint of the run: those in its folder, and `more`, which must be."""
    found = []
    candidates = [*sorted(file.parent for file in run.glob(f"eval-*/{RESULTS}")), *more]
    for folder in candidates:
        if is_of(folder, run):
            found.append(folder)
        elif folder in more:
            raise InputError(f"{folder} holds no results of a checkpoint in {run}; make them with eval.py --model …")
    places: dict[str, Path] = {}
    for folder in found:
        name = f"eval-{folder.name.removeprefix('eval-')}"
        if not places.setdefault(name, folder).samefile(folder):
            raise InputError(f"{places[name]} and {folder} would both be published as {name}; rename one of them")
    return found


def is_of(results: Path, run: Path) -> bool | None:
    """Whether a folder of results is of a checkpoint as the run has it; None where it has none of that name."""
    header = read_json(results / RESULTS)
    if not isinstance(header, dict):
        return False
    digest, own = header["made_by"]["model"].get("model.safetensors"), run / Path(header["model"]).name
    if (own / "model.safetensors").is_file():
        return digest == file_digest(own / "model.safetensors")
    # A copy that lies elsewhere, or the run's folder itself, which loads as `best`.
    return digest in map(file_digest, run.glob("*/model.safetensors")) or None


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen publish", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", type=existing, nargs="?", help="a run's folder, made by train.py; none: only --space")
    add("--repo", required=True, help="<user or organisation>/<name> of the model repository")
    add("--space", help="<user or organisation>/<name> of a Space: a page on which people try the model")
    add("--results", type=existing, nargs="+", default=[], help="folders made by eval.py, besides eval-…")
    add("--revision", help="branch to write to; main by default")
    add("--root", action="store_true", help="make this run's best the model at the repository's root")
    add("--private", action="store_true", help="make the repository private, if it is made now")
    for name, text in (("overwrite", "replace a run there"), ("resume_changed", "this run resumed from the one there")):
        flag = {"dest": "if_changed", "action": "store_const", "const": name, "default": ""}
        add(f"--{name}", **flag, help=f"{text}, which has other settings")
    args = parser.parse_args(argv)
    repository = Repository(args.repo, private=args.private or None, revision=args.revision)
    if args.space and args.revision:
        raise InputError("the page of a --space loads the main branch; leave --revision or --space out")
    if not args.run and not args.space:
        raise InputError("nothing to publish; name a run's folder, made by train.py, or a --space")
    if args.run:
        description = read_json(args.run / "run.json")
        if not description:
            raise InputError(f"no run in {args.run}: run.json is missing; name the folder that train.py made")
        tokenizer = Path(description["settings"]["tokenizer"])
        file = tokenizer / "tokenizer.json"
        if not file.is_file() or file_digest(file) != description["digests"]["tokenizer"]:
            # Each checkpoint has a copy, which says that texts are as short as the run's sequences.
            tokenizer = next((file.parent for file in sorted(args.run.glob("*/tokenizer.json"))), tokenizer)
        logging.disable_progress_bar()
        find_results(args.run, args.results)
        Publisher(repository, args.run, tokenizer, args.if_changed, args.results, args.root).finish()
    if args.space:
        space = Repository(args.space, kind="space", private=args.private or None)
        publish_space(space, repository)
        print(f"space:      {space.url}")
