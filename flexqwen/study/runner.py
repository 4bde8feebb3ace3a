"""Makes the cells of a study: each is trained, measured and written as one file, in a process of its own.

results/<study>/cells/        a small JSON file for each finished cell: what made it, what it cost, every figure
results/<study>/items.json    what the figures' items are; the same for all cells that have them
results/<study>/overlap.json  how many of the tasks' items have a passage in common with the training splits
results/<study>/registered.json  where the study has a plan: the commit that held it before the first cell

What has a file is finished. Cells of another machine are taken over by copying its results folder.
"""

import contextlib
import fcntl
import gc
import json
import multiprocessing
import os
import platform
import re
import runpy
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path

import numpy as np
import torch
import yaml

from configuration_flexqwen import FlexQwenConfig
from flexqwen import cli
from flexqwen.cli import InputError
from flexqwen.data import passages
from flexqwen.data.texts import dataset_digest, parquet_files
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.results import Result, check_finite
from flexqwen.evaluation.tasks import Context, Task, load_task
from flexqwen.files import digest, file_digest, read_json, read_object, write_json, write_text
from flexqwen.loading import check_unchanged, digest_checkpoint
from flexqwen.parallel import end_with_parent
from flexqwen.study.grid import Cell, Study
from flexqwen.training import arguments
from flexqwen.training.checkpoints import find_defect, list_checkpoints
from flexqwen.training.flops import model_flops
from flexqwen.training.metrics import read_log
from flexqwen.training.runs import run_folder

ROOT = Path(__file__).parents[2]
ITEMS, OVERLAP, REGISTERED = "items.json", "overlap.json", "registered.json"
AMENDMENTS = "\n## Amendments"  # what stands below it in a plan may be written when the study has begun


def run(study: Study, workers: int = 1, seeds: Collection[int] | None = None) -> None:
    """Makes the cells that are not made yet, `workers` at a time, which share the cores; all seeds by default.

    What is not there, or wrong, is found before any training. Cells that fail do not stop the others.
    """
    if not (ROOT / "train.py").is_file():
        raise InputError(f"study run needs train.py, which is not in {ROOT}; run it in a checkout of the repository")
    tokenizer_file = Path(study.training["tokenizer"]) / "tokenizer.json"
    digests = {"dataset": dataset_digest(study.training["dataset"]), "tokenizer": file_digest(tokenizer_file)}
    for point in study.points:
        options = arguments.parse([str(write_config(study, Cell(point, study.seeds[0])))])
        arguments.check(options)
        parquet_files(study.training["dataset"], options.data.dataset_config, "train")
    for split in study.measurement.heldout:
        parquet_files(study.training["dataset"], "heldout", split)
    register(study)
    find_overlap(study)
    cells = [cell for cell in study.cells if seeds is None or cell.seed in seeds]
    waiting = [cell for cell in cells if read_cell(study, cell, digests) is None]
    print(f"study {study.name}: {len(cells)} cells, {len(cells) - len(waiting)} of them finished", flush=True)
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    context, queue, running, failed = multiprocessing.get_context("spawn"), list(waiting), {}, []
    start = time.perf_counter()
    try:
        while queue or running:
            while queue and len(running) < workers:
                process = context.Process(target=run_cell, args=(study, cell := queue.pop(0), digests))
                process.start()
                running[process.sentinel] = process, cell
            for sentinel in connection.wait(list(running)):
                process, cell = running.pop(sentinel)
                process.join()
                failed += [cell.name] * bool(process.exitcode)
                done = len(waiting) - len(queue) - len(running)
                left = (time.perf_counter() - start) / done * (len(waiting) - done) / 60
                word = "failed" if process.exitcode else "finished"
                print(f"[{done}/{len(waiting)}] {cell.name} {word}, about {left:.0f} minutes left", flush=True)
    finally:
        for process, _ in running.values():  # interrupted as this process is: they write a checkpoint and end
            process.join()
    if failed:
        raise InputError(f"{', '.join(failed)} failed, see above; run the same command again to resume")


def write_config(study: Study, cell: Cell) -> Path:
    path = study.run_folder(cell).with_name(f"{cell.name}.yaml")
    own = {"seed": cell.seed, "output_dir": str(study.run_folder(cell)), "disable_tqdm": True}
    write_text(path, yaml.safe_dump({**study.options(cell.point), **own}, sort_keys=False))
    return path


def find_overlap(study: Study) -> None:
    """Counts once how many of the tasks' items have a 13-gram in common with what is trained on."""
    path, dataset = study.results / OVERLAP, study.training["dataset"]
    asked = [plan[:2] for plan in plan_tasks(study) if not plan[0].fine_tune and plan[0].name != "memorisation"]
    items = {}
    for task, context in asked:
        name = f"{task.name}/{context.split}" if task.name == "bits_per_byte" else task.name  # which comes once a split
        items[name] = task.load_items(context)
    if not items or (path.is_file() and any((study.results / "cells").glob("*.json"))):
        return
    shares = iter(passages.find_seen_shares([item.text for task in items.values() for item in task], dataset))
    found = {}
    for task, loaded in items.items():
        values = np.array([next(shares) for _ in loaded])
        found[task] = {"items": len(values), "seen": int((values > 0).sum()), "short": int(np.isnan(values).sum())}
    write_json(path, found)


def register(study: Study) -> None:
    """Writes down, before the first cell of a study that has a plan, which commit holds plan and config."""
    path = study.results / REGISTERED
    if study.plan is None or path.is_file():
        return
    if any((study.results / "cells").glob("*.json")):
        raise InputError(f"{path} is missing, but cells are there: bring it back, or remove {path.parent / 'cells'}")
    files = [str(file.resolve()) for file in (study.path, study.plan)]
    commit = run_git(study.path.parent, "log", "-1", "--format=%H", "--", *files)
    if not study.plan.is_file() or not commit or run_git(study.path.parent, "status", "--porcelain", "--", *files):
        raise InputError(f"commit {study.plan} and {study.path} before the first cell is made, which names that commit")
    write_json(path, {"commit": commit, "digests": digest_plan(study)})


def digest_plan(study: Study, commit: str | None = None) -> dict[str, str] | None:
    """Digests of a study's config, and of its plan without the amendments; in a commit, None where git lacks it."""
    config, plan = (
        run_git(path.parent, "show", f"{commit}:./{path.name}") if commit else path.read_text(encoding="utf-8").strip()
        for path in (study.path, study.plan)
    )
    if None in (config, plan):
        return None
    before = plan.partition(AMENDMENTS)[0].rstrip("\n") + "\n"  # the same whether amendments follow or not
    return {"config": digest(config), "plan": digest(before)}


def read_cell(study: Study, cell: Cell, digests: dict[str, str] | None = None) -> dict | None:
    """The content of a cell's file; None where it is not made yet; `InputError` if it was made with other things.

    `digests` are of the dataset and tokenizer that it must be made with; by default those that it names.
    """
    path, own = study.cell_file(cell), study.points[cell.point]
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        digests = digests or {name: content["made_by"]["digests"][name] for name in ("dataset", "tokenizer")}
        found = content["made_by"]["study"], content.get("options", own), sorted(map(str, content["cell"].values()))
    except (TypeError, KeyError, AttributeError):
        raise InputError(f"{path} is broken; remove it and make it again with python -m flexqwen study run") from None
    # The axes' values alone: older files call them strategy and split, and do not name options.
    if found != (study.identity(digests), own, sorted(map(str, [*dict(cell.point).values(), cell.seed]))):
        what = f"{path} was made with another config, dataset or tokenizer than {study.path} has now; change them back,"
        begin = f"remove {study.results} and runs/{study.name} to begin anew"
        raise InputError(f"{what} give the changed config another name, or {begin}")
    return content


def read_result(study: Study, name: str) -> dict | None:
    """The content of a file that all cells share; None where it is not there, `InputError` where it is damaged."""
    return read_object(study.results / name, "bring it back, or remove it and the cells and make them again")


def run_cell(study: Study, cell: Cell, digests: dict[str, str]) -> None:
    """Makes a cell as a process of its own, which ends with the one that started it."""
    end_with_parent()
    cli.command(lambda _: make_cell(study, cell, digests))()


def make_cell(study: Study, cell: Cell, digests: dict[str, str]) -> None:
    """Trains a cell, or resumes its training, measures it and writes its file."""
    code = find_commit()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        runpy.run_path(str(ROOT / "train.py"))["main"]([str(write_config(study, cell))])
    gc.collect()  # frees the trainer, whose data is loaded by workers: torch has a process fail that ends before them
    run = run_folder(arguments.parse([str(write_config(study, cell))]))
    last, described = list_checkpoints(run)[-1], read_json(run / "run.json")
    if problem := find_defect(last):
        remedy = f"remove {run / 'finished.json'}, and the same command makes it again from the one before it"
        raise InputError(f"{last} is not as it was saved ({problem}); {remedy}")
    results, parameters = measure(study, cell, str(run / "best" if study.measurement.checkpoint == "best" else last))
    cost, curve = summarize_log(run, last)
    made_by = {"study": study.identity(digests), "items": write_items(study, results), "config": study.path.as_posix()}
    made_by |= {name: described[name] for name in ("command", "rows_per_step", "digests", "versions")}
    made_by["code"] = code if find_commit() == code else f"{code} to {find_commit()}"
    made_by["machine"] = describe_machine()
    content = {"cell": {**dict(cell.point), "seed": cell.seed}, "options": study.points[cell.point]}
    content |= {"parameters": parameters, "made_by": made_by, "cost": cost, "curve": curve}
    content |= {"figures": [describe_result(result) for result in results]}
    write_text(study.cell_file(cell), json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")


def measure(study: Study, cell: Cell, checkpoint: str) -> tuple[list[Result], int]:
    """Every figure of a checkpoint, and its number of parameters."""
    digests, scorer, results = digest_checkpoint(checkpoint), likelihood.load(checkpoint), []
    for task, context, modes in plan_tasks(study, checkpoint):
        if task.fine_tune:
            results += map(merge_clusters, task.fine_tune(checkpoint, context))
            continue
        items = task.load_items(context)
        for mode in study.modes(cell.point):
            results += task.evaluate(scorer, items, mode, context) if mode in (modes or study.modes(cell.point)) else []
    check_finite(results)
    check_unchanged(checkpoint, digests)
    return results, scorer.model.num_parameters()


def plan_tasks(study: Study, checkpoint: str = "") -> list[tuple[Task, Context, Sequence[str] | None]]:
    """What is measured of a checkpoint: tasks, what they are told, and the modes that they are kept to."""
    dataset, measured = study.training["dataset"], study.measurement
    task = load_task("bits_per_byte")
    found = [(task, Context(dataset, split, measured.documents), None) for split in measured.heldout]
    for name in measured.tasks:
        task = load_task(name)  # a fine-tuned one would look its texts up in the dataset for each cell
        found.append((task, *measured.context(name, "" if task.fine_tune else dataset, checkpoint)))
    return found


def merge_clusters(result: Result) -> Result:
    """The same figure with an item for each cluster, such as a sentence, where it has one for each word."""
    if result.clusters is None:
        return result
    sizes, first = np.bincount(result.clusters), np.unique(result.clusters, return_index=True)[1]
    items, ids = np.bincount(result.clusters, result.items) / sizes, [result.item_ids[place] for place in first]
    return replace(result, items=items.tolist(), item_ids=ids, weights=sizes.tolist(), clusters=None)


def describe_result(result: Result) -> dict:
    """A result as a cell's file has it. Only the figures of all items carry a number for each."""
    kept = ("task", "version", "mode", "metric", "subset", "value", "interval", "n", "baseline", "baseline_name")
    items = {"items": [float(f"{value:.5g}") for value in result.items]} if has_items(result) else {}
    return {name: getattr(result, name) for name in kept} | items


def has_items(result: Result) -> bool:
    """Whether its items are kept: nats per token and the figures of subsets follow from the others'."""
    is_whole = result.subset == "all" or result.task.startswith("bits_per_byte") or result.task == "memorisation"
    return result.items is not None and result.metric != "loss" and is_whole


def write_items(study: Study, results: list[Result]) -> dict[str, str]:
    """Says, once for all cells, what the items are: ids, weights, and the subsets that they belong to; their digests.

    A cell that trains one mode lacks what is measured in the other alone.
    """
    described = {}
    for result in filter(has_items, results):
        # The clusters of memorisation are of the cell's own training documents.
        clusters = None if result.task == "memorisation" else result.clusters
        entry = {"ids": result.item_ids, "weights": result.weights, "clusters": clusters, "subsets": {}}
        described.setdefault(f"{result.task}/{result.subset}", entry)
    for result in results:
        if result.subset != "all" and (whole := described.get(f"{result.task}/all")):
            places = {name: place for place, name in enumerate(whole["ids"])}
            whole["subsets"][result.subset] = [places[name] for name in result.item_ids]
    path, described = study.results / ITEMS, json.loads(json.dumps(described))
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two workers would each write without what the other adds
        known = read_result(study, ITEMS) or {}
        if any(known.get(key, entry) != entry for key, entry in described.items()):
            what = f"{path} names other items than this cell was measured on"
            raise InputError(f"{what}; were the evaluation data changed?")
        if known.keys() | described.keys() != known.keys() or not path.is_file():
            write_text(path, json.dumps(known | described, ensure_ascii=False) + "\n")
    finally:
        os.close(folder)
    return {key: digest(entry)[:12] for key, entry in described.items()}


def summarize_log(run: Path, checkpoint: Path) -> tuple[dict, list[dict]]:
    """What a run cost, and its curve: held-out loss in both modes (nats per token) by tokens and FLOPs."""
    config = FlexQwenConfig.from_pretrained(checkpoint)
    cost = {"updates": 0, "tokens": 0, "passes": 0.0, "labels_causal": 0, "labels_masked": 0, "flops": 0.0}
    seconds, curve = 0.0, []
    for entry in read_log(run):
        for name in ("labels_causal", "labels_masked"):
            cost[name] += entry.get(name, 0)
        labels = cost["labels_causal"] + cost["labels_masked"]
        flops = model_flops(config, entry.get("tokens_seen", 0), labels, config.max_position_embeddings)
        if "loss" in entry:
            seconds += (entry["tokens_seen"] - cost["tokens"]) / entry["tokens_per_second"]
            cost |= {"updates": entry["step"], "tokens": entry["tokens_seen"], "passes": round(entry["epoch"], 4)}
            cost["flops"] = flops
        if "eval_loss" in entry:
            losses = {mode: round(entry[f"eval_loss_{mode}"], 5) for mode in ("causal", "masked")}
            curve.append({"tokens": entry["tokens_seen"], "flops": flops, **losses})
    return {**cost, "train_seconds": round(seconds, 1)}, curve


def find_commit() -> str | None:
    """The git commit of this repository, with `-dirty` if Python files differ from it; None where git has none."""
    commit = run_git(ROOT, "rev-parse", "--short=12", "HEAD")
    return commit and f"{commit}{'-dirty' if run_git(ROOT, 'status', '--porcelain', '--', '*.py') else ''}"


def run_git(folder: Path, *words: str) -> str | None:
    """What git says in a folder; None where it fails or is not there."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()


def describe_machine() -> dict[str, str | int | None]:
    information = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: *(.*)", information.read_text() if information.is_file() else "", re.MULTILINE)
    cpu = named[1].strip() if named else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def format_status(study: Study) -> str:
    """A line for each cell: finished, or how far it is."""
    lines, finished = [], [cell for cell in study.cells if study.cell_file(cell).is_file()]
    for cell in study.cells:
        logs = study.run_folder(cell).glob("*/metrics.jsonl")
        logged = [entry["step"] for log in logs for entry in read_log(log.parent)]
        progress = f"step {max(logged):,} of {int(study.options(cell.point)['max_steps']):,}" if logged else "waiting"
        lines.append(f"{cell.name:45} {'finished' if cell in finished else progress}")
    return "\n".join([*lines, f"{len(finished)} of {len(lines)} cells finished"])
