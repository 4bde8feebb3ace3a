"""Publishes a run on the Hugging Face Hub while it trains, and brings it back from there.

    python train.py <config.yaml> --push_to_hub true --hub_model_id <org>/<name>
    python -m flexqwen publish <run folder> --repo <org>/<name> [--results <folder made by eval.py> ...]

The second finishes what the first could not upload, and adds results. A repository holds the runs of one tokenizer:

    README.md, *.py, tokenizer…     card, remote code and tokenizer: the first commit of all
    .eval_results/                  the figures that belong to datasets of the Hub
    <strategy>-<sequence_length>/   a run's folder as it is on disk (see runs.py); each checkpoint is one commit
        qwen3/                      `best` as a plain Qwen3
        eval-best/                  results

Checkpoints stay there when `save_total_limit` deletes them on disk; those that it deletes before their turn never get
there. No pickle is published but the states of optimizer, schedule and random generators, which going on needs.
"""

import os
import shlex
import shutil
import sys
import threading
import time
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
from flexqwen.files import file_digest, read_json, remove_leftovers, remove_path, replace_path
from flexqwen.hub import model_card
from flexqwen.hub.export import export
from flexqwen.hub.repository import Repository, is_permanent, reason, with_retries
from flexqwen.training.runs import checkpoints, defect, differences, last_checkpoint

CODE = [Path(module.__file__) for module in (configuration_flexqwen, modeling_flexqwen)]
RECORDS = ("run.json", "config.yaml", "metrics.jsonl", "loss.png")
OF_OTHER_RUNS = ("run.json", "metrics.jsonl", "finished.json", "loss.png", f"eval-*/{RESULTS}")  # what the card says
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ROOT, QWEN3, LAST = "card, code and records", "qwen3", "finished.json"
LONGEST_WAIT = 60  # seconds between tries while training goes on
LAST_TRIES = 5  # once it has ended


class Publisher(TrainerCallback):
    """Brings a run's folder to a repository, in a thread of its own, and never raises into training.

    At each save, and at the end, the thread compares the folder with what it has published and uploads the rest, part
    by part, a commit each. What fails is tried again: soon if the network is the trouble, else at the next save.

    Args:
        run: the run's folder.
        tokenizer: folder of its tokenizer.
        results: folders made by eval.py, besides the `eval-…` that the run's folder holds.
    """

    def __init__(self, repository: Repository, run: Path, tokenizer: Path, results: list[Path] | None = None):
        self.repository, self.run, self.tokenizer, self.results = repository, run, tokenizer, results or []
        self._there: set[str] | None = None  # files that the repository had
        self._is_checked, self._may_change = False, (False, False)
        self._differs = False  # whether the repository's run has other settings
        self._replaced: set[str] = set()  # those of another run, to be deleted
        self._published: dict[str, dict] = {}  # part -> what its files were
        self._failure: str | None = None
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="publishing", daemon=True)
        self._aside = run.with_name(f"{run.name}.hub.{os.getpid()}.partial")
        disable_progress_bars()  # of uploads: they would break up the training's

    # Before training

    def look(self) -> None:
        """Looks at the repository, changing nothing there, and fetches the tokenizer where this machine has none.

        Raises:
            InputError: it holds something else. Where the Hub cannot be reached it says so, and nothing is raised.
        """
        with suppress(OSError):  # it is in nobody's way
            remove_leftovers(self._aside.with_name(f"{self.run.name}.hub"))
        try:
            self._look()
        except InputError:
            raise
        except Exception as error:
            self._say(f"{self.repository.url} cannot be read ({reason(error)}); this stops nothing, it is tried again")

    def _look(self) -> None:
        there = with_retries(self.repository.files)
        content = there - {".gitattributes"}  # which the Hub puts into every new one
        if content and CODE[0].name not in content:
            raise InputError(
                f"{self.repository.url} holds something else ({min(content)}, …), which is not overwritten; "
                "give --hub_model_id a name that is free"
            )
        self._there = there
        if "tokenizer.json" not in content:
            return
        with self._fetched([*TOKENIZER]) as fetched:
            mine, theirs = self.tokenizer / "tokenizer.json", fetched / "tokenizer.json"
            if not mine.is_file():
                self.tokenizer.mkdir(parents=True, exist_ok=True)
                for file in reversed(TOKENIZER):
                    if (fetched / file).is_file():
                        replace_path(fetched / file, self.tokenizer / file)
            elif file_digest(mine) != file_digest(theirs):
                raise InputError(
                    f"{self.repository.url} holds runs of another tokenizer than {self.tokenizer}; give --hub_model_id "
                    "a name that is free, or its tokenizer"
                )

    def compare(self, description: dict, overwrite: bool = False, resume_changed: bool = False) -> set[str]:
        """Compares this run with what the repository holds of it, and returns the files that it may go on from.

        Raises:
            InputError: the run there was made with other settings and neither `overwrite` nor `resume_changed` is set.
        """
        self._may_change = overwrite, resume_changed
        if self._there is None:  # it cannot be reached; before anything is uploaded this is done again
            return set()
        name, changes = self.run.name, []
        there = {file.removeprefix(f"{name}/") for file in self._there if file.startswith(f"{name}/")}
        if "run.json" in there:
            with self._fetched([f"{name}/run.json"]) as fetched:
                changes = differences(read_json(fetched / name / "run.json"), description)
        if changes and not overwrite and not resume_changed:
            raise InputError(
                f"{self.repository.url} holds a run {name} with other settings ({'; '.join(changes)}); pass another "
                "--hub_model_id, --overwrite to replace it, or --resume_changed to go on from its last checkpoint"
            )
        self._is_checked, self._differs = True, bool(changes)
        if changes and overwrite:
            self._replaced = {f"{name}/{file}" for file in there}
            return set()
        return there

    def take_up(self, description: dict, state: str, overwrite: bool, resume_changed: bool) -> bool:
        """Fetches this run's records and last checkpoint, if it has got further in the repository than on this disk.

        Args:
            state: what `runs.state_of` says of the folder. A "new" one holds nothing that is to be kept; what another
                one holds and the repository has not, such as earlier checkpoints and results, stays.

        Returns:
            Whether something was fetched.

        Raises:
            InputError: as `compare`; or the checkpoint cannot be fetched, or cannot be gone on from.
        """
        name, there = self.run.name, self.compare(description, overwrite, resume_changed)
        steps = {file.split("/")[0] for file in there if file.startswith("step_")}
        last, is_finished = max(steps, key=lambda step: int(step[5:]), default=None), LAST in there
        if last is None or state == "finished":
            return False
        if state == "resume":
            if self._differs or differences(read_json(self.run / "run.json"), description):
                return False  # with --resume_changed; the checkpoints of two runs in one folder would be mixed up
            if int(last_checkpoint(self.run).name[5:]) >= int(last[5:]) and not is_finished:
                return False
        self.run.parent.mkdir(parents=True, exist_ok=True)
        wanted = [*RECORDS, LAST, "logs/*", "best/*", f"{last}/*"]
        with self._fetched([f"{name}/{pattern}" for pattern in wanted]) as fetched:
            if not is_finished and (problem := defect(fetched / name / last)):
                raise InputError(
                    f"{self.repository.url} holds a {name}/{last} that cannot be gone on from ({problem}); delete that "
                    "folder there, and the same command takes up the one before it"
                )
            if state == "new":
                replace_path(fetched / name, self.run)
            else:  # the checkpoint after what goes with it, so that a killed process leaves what is fetched again
                for entry in sorted((fetched / name).iterdir(), key=lambda e: (e.name == LAST, e.name == last)):
                    replace_path(entry, self.run / entry.name)
        self._say(f"{name} was fetched from {self.repository.url}, " + ("finished" if is_finished else f"with {last}"))
        return True

    @contextmanager
    def _fetched(self, patterns: list[str]) -> Iterator[Path]:
        """A folder beside the run's with files of the repository, removed in the end."""
        try:
            try:
                with_retries(lambda: self.repository.fetch(patterns, self._aside))
            except Exception as error:
                raise InputError(
                    f"{self.repository.url} holds files of this run that cannot be fetched to {self.run.parent} "
                    f"({reason(error)}); run the same again, or leave --push_to_hub out"
                ) from error
            yield self._aside
        finally:
            remove_path(self._aside)

    # During training

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publishes what makes the repository loadable, then the rest while the body runs, and waits for it at the end.

        Raises:
            InputError: not everything is there; it names the rest and the command that finishes it. If the body itself
                raises, this is only said.
        """
        self._publish_all(first_only=True)
        try:
            yield
        except BaseException as stopped:
            try:
                self.finish(wait=not isinstance(stopped, KeyboardInterrupt))
            except InputError as error:
                self._say(str(error))
            raise
        self.finish()

    def on_save(self, args, state, control, **kwargs):
        self._wake_up()

    def _wake_up(self) -> None:
        if self._thread.ident is None:  # started late: by then the data loader's workers have been forked
            self._thread.start()
        self._wake.set()

    def finish(self, wait: bool = True) -> None:
        """Waits, unless told not to, until everything is published or was tried `LAST_TRIES` times more.

        Raises:
            InputError: not everything is there.
        """
        self._ending.set()
        try:
            if wait:
                self._wake_up()
                self._thread.join()
        except KeyboardInterrupt:
            wait = False
        if not wait:
            self._failure = "interrupted"
        missing = [name for name, files in self._parts() if self._published.get(name) != seen(files)]
        if not self._thread.is_alive():  # else, interrupted again, it still writes there; the next start clears it
            with suppress(OSError):  # what is to be said is more than a folder that stays
                remove_path(self._aside)
        if missing:
            words = [self.run, "--tokenizer", self.tokenizer, "--repo", self.repository.repo_id]
            words += ["--revision", self.repository.revision] if self.repository.revision else []
            words += ["--private"] if self.repository.private else []
            words += ["--results", *self.results] if self.results else []
            raise InputError(
                f"not on the Hub yet: {', '.join(missing)} ({self._failure or 'changed while it was looked at'}); "
                f"all of it is in {self.run}; to finish: python -m flexqwen publish {shlex.join(map(str, words))}"
            )
        print(f"hub:        {self.repository.url}")

    def _say(self, text: str) -> None:
        print(f"hub: {text}", file=sys.stderr, flush=True)

    def _work(self) -> None:
        """What the thread does."""
        tries = 0
        while True:
            self._wake.clear()  # before the next line, so that no call of `finish` is missed
            is_last = self._ending.is_set()
            error = self._publish_all()
            tries = 0 if error is None else tries + 1
            soon = error is not None and not is_permanent(error)
            if is_last and (not soon or tries > LAST_TRIES):
                return
            wait = min(2**tries, LONGEST_WAIT) if soon else None
            if is_last:
                time.sleep(wait)
            elif self._wake.wait(wait):
                tries = 0

    def _publish_all(self, first_only: bool = False) -> Exception | None:
        """Uploads the parts that changed, in order; returns what stopped it."""
        try:
            if not self._is_checked:
                self._look()
                self.compare(read_json(self.run / "run.json"), *self._may_change)
            if not self._published:
                self.repository.create()
            for name, files in self._parts():
                now = seen(files)
                if self._published.get(name) != now:
                    self._publish(name, files, now)
                if first_only:
                    break
            self._failure = None
        except Exception as error:
            if self._failure is None:
                self._say(f"not everything is on the Hub yet ({reason(error)}); this stops nothing, it is tried again")
            self._failure = reason(error)
            return error
        return None

    def _parts(self) -> Iterator[tuple[str, dict[str, Path]]]:
        """What is to be there, in order: a name, and the files by their paths in the repository."""
        run, name = self.run, self.run.name
        root = {file.name: file for file in CODE}
        root |= {file: self.tokenizer / file for file in TOKENIZER if (self.tokenizer / file).is_file()}
        root |= {f"{name}/{file}": run / file for file in RECORDS if (run / file).is_file()}
        root |= under(run / "logs", f"{name}/logs")
        for folder in results_of(run, self.results):
            root |= under(folder, f"{name}/eval-{folder.name.removeprefix('eval-')}")
        yield ROOT, root
        for folder in (*checkpoints(run), run / "best"):
            if folder.is_dir():
                yield folder.name, under(folder, f"{name}/{folder.name}")
        if (run / "finished.json").is_file():
            if read_json(run / "run.json")["settings"]["strategy"] != "baseline-masked":  # which is no causal model
                yield QWEN3, under(run / "best", f"{name}/{QWEN3}")
            yield LAST, root | {f"{name}/{LAST}": run / LAST}

    def _publish(self, name: str, files: dict[str, Path], now: dict) -> None:
        """Commits a part, from copies or links that training cannot change or remove meanwhile."""
        held, with_card = self._aside / "part", name in (ROOT, LAST)
        remove_path(held)
        try:
            for path_in_repo, file in files.items():
                hold(file, held / path_in_repo, as_link=not with_card)
        except FileNotFoundError:
            return  # a checkpoint that was removed, or a `best` that was replaced: the next look sees what there is
        if not with_card and seen(files) != now:
            return
        found, deleted = {path_in_repo: held / path_in_repo for path_in_repo in files}, set()
        if with_card:
            there = self.repository.files()  # asked each time: other runs may have come, or an answer been lost
            deleted = self._replaced & there
            self._fetch_other_runs(there, held)
            if (self.run / LAST).is_file():  # the card may know
                hold(self.run / LAST, held / self.run.name / LAST, as_link=False)
            found |= model_card.write(held, self.repository.repo_id)
        elif name == QWEN3:
            export(held / self.run.name / QWEN3, held / "exported")
            found = under(held / "exported", f"{self.run.name}/{QWEN3}")
        self.repository.commit(found, f"{self.run.name}: {name}", deleted - found.keys())
        self._published[name] = now
        self._replaced = set()  # only the first commit of all, which has the card, deletes
        remove_path(held)

    def _fetch_other_runs(self, there: set[str], folder: Path) -> None:
        """Puts the records of the repository's other runs, which the card tells of, beside this one's."""
        runs = {file.split("/")[0] for file in there if file.endswith("/run.json")} - {self.run.name}
        if runs:
            self.repository.fetch([f"{run}/{file}" for run in runs for file in OF_OTHER_RUNS], folder)


def under(folder: Path, path_in_repo: str) -> dict[str, Path]:
    """The files in a folder, by their paths in the repository. Not the Trainer's pickled arguments."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "training_args.bin")
    return {f"{path_in_repo}/{file.relative_to(folder).as_posix()}": file for file in files}


def seen(files: dict[str, Path]) -> dict[str, tuple | None]:
    """What tells whether files have changed; None for one that is gone."""
    found = {}
    for path_in_repo, file in files.items():
        try:
            status = file.stat()
            found[path_in_repo] = (status.st_ino, status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            found[path_in_repo] = None
    return found


def hold(file: Path, held: Path, as_link: bool) -> None:
    """Makes `held` what `file` is now. A link costs nothing, and does for what is replaced but never written to."""
    held.parent.mkdir(parents=True, exist_ok=True)
    if as_link:
        try:
            os.link(file, held)
            return
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links
            pass
    shutil.copyfile(file, held)


def results_of(run: Path, more: list[Path]) -> list[Path]:
    """The folders of results that are of a checkpoint of the run: those in its folder, and `more`.

    Raises:
        InputError: one of `more` holds none.
    """
    inside = [folder for folder in sorted(run.glob("eval-*")) if (folder / RESULTS).is_file()]
    if not inside and not more:
        return []
    weights = {file_digest(file) for file in run.glob("*/model.safetensors")}
    for folder in more:
        if not is_of(folder, weights):
            raise InputError(f"{folder} holds no results of a checkpoint in {run}; make them with eval.py --model …")
    return [folder for folder in inside if is_of(folder, weights)] + more


def is_of(results: Path, weights: set[str]) -> bool:
    """Whether results are of a model whose `model.safetensors` has one of these digests."""
    header = read_json(results / RESULTS)
    return isinstance(header, dict) and header["made_by"]["model"].get("model.safetensors") in weights


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=path, help="a run's folder, made by train.py")
    parser.add_argument("--repo", required=True, help="<user or organisation>/<name> of the model repository")
    parser.add_argument("--tokenizer", type=path, help="folder of the run's tokenizer; by default what run.json says")
    parser.add_argument("--results", type=path, nargs="+", default=[], help="folders made by eval.py, besides eval-…")
    parser.add_argument("--revision", help="branch to write to; main by default")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    args = parser.parse_args(argv)
    description = read_json(args.run / "run.json")
    if not description:
        raise InputError(f"no run in {args.run}: run.json is missing; name the folder that train.py made")
    tokenizer = args.tokenizer or Path(description["settings"]["tokenizer"])
    if not (tokenizer / "tokenizer.json").is_file():
        tokenizer = args.run / "best"  # each checkpoint has a copy
    logging.disable_progress_bar()
    repository = Repository(args.repo, private=args.private or None, revision=args.revision)
    publisher = Publisher(repository, args.run, tokenizer, args.results)
    results_of(args.run, args.results)
    publisher.look()
    publisher.compare(description)
    with publisher.publishing():
        pass
