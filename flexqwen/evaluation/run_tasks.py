"""Measures a checkpoint on tasks, in modes. Results accumulate in its folder: what is there is not measured again.

The checkpoint, the dataset, the settings and the versions of the tasks decide what is reused. Versions of libraries are
written down and decide nothing.
"""

import sys
from pathlib import Path

import numpy as np

from flexqwen import subsampling
from flexqwen.cli import InputError
from flexqwen.data import passages
from flexqwen.data.texts import dataset_digest
from flexqwen.evaluation import MODES, likelihood, sources
from flexqwen.evaluation.options import Options, default_folder
from flexqwen.evaluation.results import RESULTS, Result, read_results, write_results
from flexqwen.evaluation.tasks import NAMES, OPTIONAL, Item, Task, load_task
from flexqwen.files import digest, read_json, read_object, remove_path, versions
from flexqwen.loading import check_unchanged, digest_checkpoint


def find_results(folder: Path) -> Path:
    """A results folder itself, or that of the checkpoint in `folder`."""
    return folder if (folder / RESULTS).is_file() or not folder.is_dir() else default_folder(str(folder))


def caution_dataset(options: Options) -> None:
    """Says on stderr where a run's checkpoint is measured on another dataset than it was trained on."""
    run = read_object(Path(options.model).parent / "run.json", "bring it back") or {}
    trained, name = run.get("digests", {}).get("dataset"), run.get("settings", {}).get("dataset")
    if trained and options.has_dataset and trained != dataset_digest(options.dataset):
        what = f"held-out text of {options.dataset} is measured, and {options.model} was trained on {name}"
        print(f"caution: {what}; --dataset {name} measures its own", file=sys.stderr)


def evaluate(options: Options) -> list[Result]:
    """All results of `options.folder`; those that were asked for are measured, unless they are there.

    Each task's results in a mode are written as soon as they are made.
    """
    tasks = sorted(map(load_task, options.names), key=lambda task: bool(task.fine_tune))
    if len({task.name for task in tasks}) < len(tasks):
        raise InputError(f"--tasks {options.tasks} names a task twice; name each once")
    digests = digest_checkpoint(options.model)  # before it is loaded: a running training may replace it
    scorer = likelihood.load(options.model, trust_remote_code=options.trust_remote_code)
    modes = options.modes.split(",") if options.modes else list(scorer.modes)
    if missing := [mode for mode in modes if mode not in scorer.modes]:
        raise InputError(f"{options.model} is not scored in mode {missing[0]!r}; it has: {', '.join(scorer.modes)}")
    model = digests or {"repository": options.model, "commit": getattr(scorer.model.config, "_commit_hash", None)}
    measured, results = read_earlier(options, model)
    wanted = {
        (task, mode): describe(task, mode, options, scorer.kind) for task in tasks for mode in task.find_modes(modes)
    }
    waiting = {}
    for (task, mode), how in wanted.items():
        earlier = measured.get(f"{task.name}/{mode}")
        earlier = earlier if isinstance(earlier, dict) else {}
        if options.overwrite or earlier != how:
            waiting.setdefault(task, []).append(mode)
        if earlier and earlier != how:
            changed = [name for name in {**how, **earlier} if earlier.get(name) != how.get(name)]
            print(f"{task.name}, {mode}: measured again, for another {', '.join(changed)}; the old figures go")
    if there := [task.name for task in dict.fromkeys(task for task, _ in wanted) if task not in waiting]:
        print(f"evaluation: {options.folder} has {', '.join(there)}, of the same checkpoint and settings; reused")
    notes, unfinished = [], options.folder / "unfinished"
    if scorer.model.device.type == "cuda":
        notes.append("on a GPU, factors of float32 matrix products are rounded to TF32")
    scorer.folder = unfinished / digest(model)[:16]
    for task, items in load_items(list(waiting), options, notes).items():
        for mode in waiting[task]:
            if task.fine_tune:
                made = task.fine_tune(options.model, options)
            else:
                made = measure(task, scorer, items, mode, options)
            check_unchanged(options.model, digests)
            results = [row for row in results if (row.task, row.mode) != (task.name, mode)] + made
            results.sort(key=lambda row: (NAMES.index(row.task) if row.task in NAMES else len(NAMES), row.task))
            measured[f"{task.name}/{mode}"] = wanted[task, mode]
            known = versions("torch", "transformers", "tokenizers", "numpy", "datasets")
            heldout = (measured.get(f"bits_per_byte/{mode}", {}) for mode in MODES)
            digest_of_dataset = next(filter(None, (how.get("dataset_digest") for how in heldout)), None)
            made_by = {"model": model, "dataset_digest": digest_of_dataset, "measured": measured}
            header = {"model": options.model, "made_by": made_by, "versions": known, "notes": notes}
            write_results(options.folder, header, results)
    remove_path(unfinished)
    for note in notes:
        print(f"note: {note}")
    if not results:
        raise InputError("no results: " + ("; ".join(notes) or "none of the tasks has one of the modes"))
    return results


def read_earlier(options: Options, model: dict) -> tuple[dict[str, dict], list[Result]]:
    """What the folder holds of this model, and of no other: how each `task/mode` was measured, and the results."""
    found = read_json(options.folder / RESULTS)
    if found is None:
        return {}, []
    made_by = (found.get("made_by") or {}) if isinstance(found, dict) else {}
    if not options.overwrite and made_by.get("model") != model:
        raise InputError(f"{options.folder} holds results of other weights; pass --overwrite or another --output")
    try:
        if made_by.get("model") == model:
            return made_by.get("measured", {}), read_results(options.folder)[1]
    except InputError:  # one of the two files is broken
        if not options.overwrite:
            raise
    return {}, []


def describe(task: Task, mode: str, options: Options, kind: str) -> dict:
    """What decides a task's figures in a mode, besides the model."""
    names = [*task.settings, "exclude_seen"]
    if task.fine_tune:
        names += ["seeds", "learning_rates", "num_train_epochs"]
    elif mode != "causal":
        names += ["within_word", "mask_groups"]
    how = {"version": task.version, **{name: getattr(options, name) for name in names}}
    if options.has_dataset or "documents" in names or options.exclude_seen:
        how["dataset_digest"] = dataset_digest(options.dataset)
    if task.has_limit and options.limit:
        how |= {"limit": options.limit, "subsampling": subsampling.FORMAT}
    if task.by_kind and kind != "flexqwen":
        how["kind"] = kind
    if options.trust_remote_code:  # it may be other code than transformers' own
        how["trust_remote_code"] = True
    return {name: list(value) if isinstance(value, tuple) else value for name, value in how.items()}


def load_items(tasks: list[Task], options: Options, notes: list[str]) -> dict[Task, list[Item]]:
    """The items of each task that can be measured, with the share of them that was trained on; notes on what cannot."""
    items = {}
    for task in tasks:
        try:
            if task.fine_tune:  # its data are read when it runs; what is missing is said before anything is measured
                sources.fetch(task.sources)
            items[task] = [] if task.fine_tune else task.load_items(options)
        except InputError as error:
            if task.name not in OPTIONAL or options.tasks != "all":
                raise
            notes.append(f"{task.name} left out: {error}")
    if not options.has_dataset:
        if items:
            notes.append(f"overlap with training is not known: no dataset in {options.dataset}")
        return items
    shares = iter(passages.find_seen_shares([item.text for those in items.values() for item in those], options.dataset))
    for those in items.values():
        for item in those:
            item.seen = float(next(shares))
    for task in [task for task, those in items.items() if those and options.exclude_seen]:
        if all(item.seen > 0 for item in items[task]):
            notes.append(f"{task.name} left out: a 13-gram of every item was trained on")
            del items[task]
    return items


def measure(task: Task, scorer: likelihood.Scorer, items: list[Item], mode: str, options: Options) -> list[Result]:
    """The results of a likelihood task in a mode, each with what was trained on of its items, if that is known."""
    kept = [item for item in items if not (options.exclude_seen and item.seen > 0)]
    results = task.evaluate(scorer, kept, mode, options)
    seen = {item.id: item.seen for item in kept}
    for result in results if options.has_dataset else ():
        shares = np.array([seen[item] for item in result.item_ids])
        result.details |= passages.describe_seen(shares, len(items) - len(kept))
    return results
