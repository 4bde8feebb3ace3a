"""Measures a checkpoint on tasks. A task that is finished is not measured again, and results that are there are reused.

The checkpoint, the dataset, the settings and the versions of the tasks decide what is reused. Versions of libraries are
written down and decide nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flexqwen import subsampling
from flexqwen.cli import InputError, suggest_name
from flexqwen.data import passages
from flexqwen.data.texts import dataset_digest
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.likelihood import MODES, Scorer
from flexqwen.evaluation.results import RESULTS, Result, read_results, write_results
from flexqwen.evaluation.tasks import FINE_TUNED, NAMES, OPTIONAL, Context, load_task
from flexqwen.files import read_json, remove_path, versions
from flexqwen.loading import check_unchanged, digest_checkpoint


@dataclass(frozen=True, kw_only=True)
class Options(Context):
    """What is measured, as `eval.py --help` explains it.

    Raises:
        InputError: a value that cannot be.
    """

    model: str
    tasks: str = "bits_per_byte"
    modes: str | None = None
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        super().__post_init__()
        for what, given, known in (("task", self.names, NAMES), ("mode", (self.modes or MODES[0]).split(","), MODES)):
            if unknown := [name for name in given if name not in known]:
                nearest = suggest_name(unknown[0], known)
                raise InputError(f"unknown {what} {unknown[0]!r}{nearest}; there are: {', '.join(known)}")

    @property
    def names(self) -> Sequence[str]:
        return NAMES if self.tasks == "all" else self.tasks.split(",")

    @property
    def folder(self) -> Path:
        return Path(self.output) if self.output else default_folder(self.model)


def default_folder(model: str) -> Path:
    """Where the results of a checkpoint lie: beside its folder; those of a model on the Hub lie under `runs`."""
    path = Path(model)
    return (path.parent if path.is_dir() else Path("runs")) / f"eval-{path.name}"


def find_results(path: str) -> Path:
    """A results folder itself, or that of the checkpoint in `path`."""
    folder = Path(path)
    return folder if (folder / RESULTS).is_file() or not folder.is_dir() else default_folder(path)


def evaluate(options: Options) -> list[Result]:
    """The results, which are written to `options.folder`, or were there.

    Raises:
        InputError: the model or the data cannot be had or do not fit the options; the folder holds other results.
    """
    digests = digest_checkpoint(options.model)  # before it is loaded: a running training may replace it
    scorer = likelihood.load(options.model, trust_remote_code=options.trust_remote_code)
    modes = options.modes.split(",") if options.modes else list(scorer.modes)
    if missing := [mode for mode in modes if mode not in scorer.modes]:
        raise InputError(f"{options.model} is not scored in mode {missing[0]!r}; it has: {', '.join(scorer.modes)}")
    needs_dataset = "bits_per_byte" in options.names or options.exclude_seen
    commit = getattr(scorer.model.config, "_commit_hash", None)
    made_by = {
        "model": digests or {"repository": options.model, "commit": commit},
        "dataset_digest": dataset_digest(options.dataset) if needs_dataset or options.has_dataset else None,
        "tasks": {name: load_task(name).version for name in options.names},
        "modes": modes,
    }
    settings = ["exclude_seen", "split", "documents", "within_word", "limit"]
    if set(options.names) & set(FINE_TUNED):
        settings += ["seeds", "learning_rates", "num_train_epochs"]
    if options.trust_remote_code:  # it may be other code than transformers' own
        settings.append("trust_remote_code")
    made_by |= {name: getattr(options, name) for name in settings}
    if options.limit:
        made_by["subsampling"] = subsampling.FORMAT
    if _is_there(options.folder, made_by):
        print(f"evaluation: {options.folder} is already there, of the same checkpoint, data and settings; reused")
        return read_results(options.folder)[1]
    if read_json(options.folder / RESULTS) is not None and not options.overwrite:
        raise InputError(f"{options.folder} holds results made otherwise; pass --overwrite or another --output")
    results, notes = measure(options, scorer, modes, made_by)
    if not results:
        raise InputError("no results: " + ("; ".join(notes) or "none of the tasks has one of the modes"))
    _write(options, made_by, results, options.folder, notes)
    remove_path(options.folder / "unfinished")
    return results


def measure(options: Options, scorer: Scorer, modes: list[str], made_by: dict) -> tuple[list[Result], list[str]]:
    """All results, and notes on what was left out; those of each finished task are kept in `unfinished` meanwhile."""
    notes, items, results = [], {}, []
    for task in map(load_task, sorted(options.names, key=FINE_TUNED.__contains__)):
        try:
            items[task] = [] if task.fine_tune else task.load_items(options)
        except InputError as error:
            if task.name not in OPTIONAL or options.tasks != "all":
                raise
            notes.append(f"{task.name} left out: {error}")
    if options.has_dataset:
        texts = [item.text for loaded in items.values() for item in loaded]
        shares = iter(passages.find_seen_shares(texts, options.dataset).tolist())
    else:
        notes.append(f"overlap with training is not known: no dataset in {options.dataset}")
    for task, loaded in items.items():
        folder = options.folder / "unfinished" / task.name
        seen = {item.id: next(shares) for item in loaded} if options.has_dataset else {}
        kept = [item for item in loaded if not (options.exclude_seen and seen[item.id] > 0)]
        if not (kept or task.fine_tune):
            notes.append(f"{task.name} left out: a 13-gram of every item was trained on")
        elif _is_there(folder, made_by):
            results += read_results(folder)[1]
        else:
            if task.fine_tune:
                made = task.fine_tune(options.model, options)
            else:
                made = [result for mode in modes for result in task.evaluate(scorer, kept, mode, options)]
                for result in made if seen else ():
                    shares_of_items = np.array([seen[item] for item in result.item_ids])
                    result.details |= passages.describe_seen(shares_of_items, len(loaded) - len(kept))
            check_unchanged(options.model, {} if "repository" in made_by["model"] else made_by["model"])
            _write(options, made_by, made, folder)
            results += made
    for note in notes:
        print(f"note: {note}")
    return results, notes


def _is_there(folder: Path, made_by: dict) -> bool:
    """Whether its results are of this checkpoint, data and settings. Older files have library versions among them."""
    found = read_json(folder / RESULTS)
    earlier = found.get("made_by") if isinstance(found, dict) else None
    return isinstance(earlier, dict) and earlier | {"versions": None} == made_by | {"versions": None}


def _write(options: Options, made_by: dict, results: list[Result], folder: Path, notes: Sequence[str] = ()) -> None:
    known = versions("torch", "transformers", "tokenizers", "numpy", "datasets")
    write_results(folder, {"model": options.model, "made_by": made_by, "versions": known, "notes": notes}, results)
