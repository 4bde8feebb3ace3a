"""Measures a checkpoint on tasks. A task that is finished is not measured again, and results that are there are reused.

The checkpoint, the dataset, the settings and the versions of the tasks decide what is reused. Versions of libraries are
written down and decide nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from flexqwen.cli import InputError
from flexqwen.data import passages
from flexqwen.data.texts import dataset_digest
from flexqwen.evaluation import likelihood, sources
from flexqwen.evaluation.finetuning import Settings
from flexqwen.evaluation.likelihood import MODES, Scorer
from flexqwen.evaluation.results import RESULTS, Result, read_results, write_results
from flexqwen.evaluation.tasks import FINE_TUNED, NAMES, ZERO_SHOT, Context, Item, Task, load_task
from flexqwen.files import read_json, remove_path, versions
from flexqwen.loading import check_unchanged, digest_checkpoint


@dataclass(frozen=True)
class Options:
    """What is measured, as `eval.py --help` explains it.

    Raises:
        InputError: a value that cannot be.
    """

    model: str
    tasks: str = "bits_per_byte"
    modes: str | None = None
    within_word: bool = False
    dataset: str = "carolina_originality"
    split: str = "test"
    documents: int = 500
    exclude_seen: bool = False
    limit: int | None = None
    seeds: int = 3
    learning_rates: Sequence[float] = Settings.learning_rates
    num_train_epochs: float | None = None
    trust_remote_code: bool = False
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        for name in ("documents", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if unknown := set(self.names) - set(NAMES):
            raise InputError(f"unknown task {unknown.pop()!r}; there are: {', '.join(NAMES)}")
        if self.modes and (unknown := set(self.modes.split(",")) - set(MODES)):
            raise InputError(f"unknown mode {unknown.pop()!r}; allowed: {', '.join(MODES)}")

    @property
    def names(self) -> Sequence[str]:
        return NAMES if self.tasks == "all" else self.tasks.split(",")

    @property
    def has_dataset(self) -> bool:
        return (Path(self.dataset) / "manifest.json").is_file()

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
    digests = digest_checkpoint(options.model)  # before it is loaded: training may go on, and replace it
    scorer = likelihood.load(options.model, trust_remote_code=options.trust_remote_code)
    modes = options.modes.split(",") if options.modes else list(scorer.modes)
    if missing := [mode for mode in modes if mode not in scorer.modes]:
        raise InputError(f"{options.model} is not scored in mode {missing[0]!r}; it has: {', '.join(scorer.modes)}")
    if not options.has_dataset and ("bits_per_byte" in options.names or options.exclude_seen):
        dataset_digest(options.dataset)  # raises
    commit = getattr(scorer.model.config, "_commit_hash", None)
    made_by = {
        "model": digests or {"repository": options.model, "commit": commit},
        "dataset_digest": dataset_digest(options.dataset) if options.has_dataset else None,
        "tasks": {name: load_task(name).version for name in options.names},
        "modes": modes,
    }
    settings = ["exclude_seen", "split", "documents", "within_word", "limit"]
    if set(options.names) & set(FINE_TUNED):
        settings += ["seeds", "learning_rates", "num_train_epochs"]
    if options.trust_remote_code:  # it may be other code than transformers' own
        settings.append("trust_remote_code")
    made_by |= {name: getattr(options, name) for name in settings}
    earlier = read_json(options.folder / RESULTS)
    if earlier and _is_made_by(earlier, made_by):
        print(f"evaluation: {options.folder} is already there, of the same checkpoint, data and settings; reused")
        return read_results(options.folder)[1]
    if earlier and not options.overwrite:
        raise InputError(f"{options.folder} holds results made otherwise; pass --overwrite or another --output")
    results, notes = measure(options, scorer, modes, made_by)
    if not results:
        raise InputError("no results: " + ("; ".join(notes) or "none of the tasks has one of the modes"))
    _write(options, made_by, results, options.folder, notes)
    remove_path(options.folder / "unfinished")
    return results


def measure(options: Options, scorer: Scorer, modes: list[str], made_by: dict) -> tuple[list[Result], list[str]]:
    """All results, and notes on what was left out; those of each finished task are kept in `unfinished` meanwhile."""
    context = Context(**{field.name: getattr(options, field.name) for field in fields(Context)})
    notes, items, results = [], {}, []
    for task in (load_task(name) for name in options.names if name in ZERO_SHOT):
        try:
            items[task] = task.load_items(context)
        except InputError as error:
            if not task.needs_hub or options.tasks != "all":
                raise
            notes.append(f"{task.name} left out: {error}")
    shares = find_seen(items, options.dataset) if options.has_dataset else {}
    if not options.has_dataset:
        notes.append(f"overlap with training is not known: no dataset in {options.dataset}")
    for task, loaded in items.items():
        seen = shares.get(task)
        kept = [item for item in loaded if not (options.exclude_seen and seen[item.id] > 0)]
        if kept:
            make = partial(_score, task, scorer, kept, modes, context, seen, len(loaded) - len(kept))
            results += _make_once(options, task, made_by, make)
        else:
            notes.append(f"{task.name} left out: a 13-gram of every item was trained on")
    for task in (load_task(name) for name in options.names if name in FINE_TUNED):
        settings = Settings(
            seeds=tuple(range(options.seeds)),
            learning_rates=tuple(options.learning_rates),
            num_train_epochs=options.num_train_epochs,
            limit=options.limit,
            dataset=options.dataset if options.has_dataset else None,
            exclude_seen=options.exclude_seen,
            trust_remote_code=options.trust_remote_code,
        )
        data = sources.folder(task.folder or task.name)
        results += _make_once(options, task, made_by, partial(task.fine_tune, options.model, data, settings))
    for note in notes:
        print(f"note: {note}")
    return results, notes


def find_seen(items: dict[Task, list[Item]], dataset: str) -> dict[Task, dict[str, float]]:
    """For each task and item, the share of its 13-grams in the training splits (NaN: under 13 words)."""
    texts = [item.text for loaded in items.values() for item in loaded]
    shares = iter(passages.find_seen_shares(texts, dataset).tolist())
    return {task: {item.id: next(shares) for item in loaded} for task, loaded in items.items()}


def _score(
    task: Task,
    scorer: Scorer,
    items: list[Item],
    modes: list[str],
    context: Context,
    seen: dict[str, float] | None,
    excluded: int,
) -> list[Result]:
    """A task's results in every mode, with what the training splits hold of its items where that is known."""
    results = [result for mode in modes for result in task.evaluate(scorer, items, mode, context)]
    for result in results if seen is not None else ():
        result.details |= passages.describe_seen(np.array([seen[item] for item in result.item_ids]), excluded)
    return results


def _make_once(options: Options, task: Task, made_by: dict, make: Callable[[], list[Result]]) -> list[Result]:
    """What `make()` gives; or what it gave, where the same evaluation was interrupted after it.

    Raises:
        InputError: the model's files are not those of `made_by` any more.
    """
    folder = options.folder / "unfinished" / task.name
    if _is_made_by(read_json(folder / RESULTS) or {}, made_by):
        return read_results(folder)[1]
    results = make()
    check_unchanged(options.model, {} if "repository" in made_by["model"] else made_by["model"])
    _write(options, made_by, results, folder)
    return results


def _is_made_by(header: dict, made_by: dict) -> bool:
    """Whether results are of this checkpoint, data and settings. Older files have library versions among them."""
    return {name: value for name, value in header.get("made_by", {}).items() if name != "versions"} == made_by


def _write(options: Options, made_by: dict, results: list[Result], folder: Path, notes: Sequence[str] = ()) -> None:
    known = versions("torch", "transformers", "tokenizers", "numpy", "datasets")
    write_results(folder, {"model": options.model, "made_by": made_by, "versions": known, "notes": notes}, results)
