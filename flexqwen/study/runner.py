"""Makes the cells of a study: each is trained, measured and written as one file, in a process of its own.

configs/<study>.yaml          the grid (flexqwen/study/grid.py)
runs/<study>/<cell>.yaml      the options of a cell's training; runs/<study>/<cell>/ is its run
results/<study>/cells/        a small JSON file for each finished cell: what made it, what it cost, every figure
results/<study>/items.json    what the figures' items are; the same for all cells
results/<study>/overlap.json  how many of the tasks' items have a passage in common with the training splits
results/<study>/README.md     the report, with findings.md, which is written by hand

What is in a cell's file is finished, and never made again. Cells of another machine are taken over by copying its
results folder.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import runpy
import subprocess
import time
from collections.abc import Collection
from multiprocessing import connection
from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import AutoConfig

from flexqwen import cli
from flexqwen.cli import InputError
from flexqwen.data import overlap
from flexqwen.data.texts import dataset_digest, parquet_files
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import TASKS
from flexqwen.evaluation.tasks.item import Context
from flexqwen.files import atomic_write, digest, file_digest, read_json, write_json
from flexqwen.parallel import end_with_parent
from flexqwen.study.grid import Cell, Study
from flexqwen.training import arguments
from flexqwen.training.flops import model_flops
from flexqwen.training.runs import last_checkpoint

ROOT = Path(__file__).parents[2]
ITEMS, OVERLAP = "items.json", "overlap.json"


def run(study: Study, workers: int = 1, seeds: Collection[int] | None = None) -> None:
    """Makes the cells that are not made yet, `workers` at a time; all seeds by default.

    Each worker has its share of the cores. When a cell fails, the others are made all the same.

    Raises:
        InputError: data, tokenizer or a task's items are not there, an option is unknown (before any training), or
            a cell failed.
    """
    digests = {
        "dataset": dataset_digest(study.training["dataset"]),
        "tokenizer": file_digest(Path(study.training["tokenizer"]) / "tokenizer.json"),
    }
    for point in study.points:
        options = arguments.parse([str(write_config(study, Cell(point, study.seeds[0])))])
        parquet_files(study.training["dataset"], options.data.dataset_config, "train")
    for split in study.measurement.heldout:
        parquet_files(study.training["dataset"], "heldout", split)
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
                process = context.Process(target=make, args=(study, cell := queue.pop(0), digests))
                process.start()
                running[process.sentinel] = process, cell
            for sentinel in connection.wait(list(running)):
                process, cell = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    failed.append(cell.name)
                done = len(waiting) - len(queue) - len(running)
                left = (time.perf_counter() - start) / done * (len(waiting) - done) / 60
                word = "failed" if process.exitcode else "finished"
                print(f"[{done}/{len(waiting)}] {cell.name} {word}, about {left:.0f} minutes left", flush=True)
    finally:
        for process, _ in running.values():  # interrupted: they write their checkpoints and end
            process.join()
    if failed:
        raise InputError(f"{', '.join(failed)} failed, see above; run the same command again to resume")


def write_config(study: Study, cell: Cell) -> Path:
    """Writes the options of a cell's training as a config of train.py."""
    path = study.run_folder(cell).with_name(f"{cell.name}.yaml")
    own = {"seed": cell.seed, "output_dir": str(study.run_folder(cell)), "disable_tqdm": True}
    with atomic_write(path) as aside:
        aside.write_text(yaml.safe_dump({**study.options(cell.point), **own}, sort_keys=False), encoding="utf-8")
    return path


def find_overlap(study: Study) -> None:
    """Counts once how many of the tasks' items have a 13-gram in common with what is trained on."""
    path, dataset = study.results / OVERLAP, study.training["dataset"]
    tasks = study.measurement.tasks
    items = {task: TASKS[task].load(Context(dataset, limit=study.measurement.limit)) for task in tasks}
    if not items or (path.is_file() and any((study.results / "cells").glob("*.json"))):
        return
    shares = iter(overlap.seen_shares([item.text for task in items.values() for item in task], dataset))
    found = {}
    for task, loaded in items.items():
        values = np.array([next(shares) for _ in loaded])
        found[task] = {"items": len(values), "seen": int((values > 0).sum()), "short": int(np.isnan(values).sum())}
    write_json(path, found)


def read_cell(study: Study, cell: Cell, digests: dict[str, str] | None = None) -> dict | None:
    """The content of a cell's file; None where it is not made yet.

    Args:
        digests: of the dataset and tokenizer that it must be made with; by default those that it names.

    Raises:
        InputError: it is broken, another cell's, or was made with another config or data.
    """
    path = study.cell_file(cell)
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        made_by = content["made_by"]
        digests = digests or {name: made_by["digests"][name] for name in ("dataset", "tokenizer")}
        # The values alone: the axes were called strategy and split once, and options were not written.
        is_this = sorted(map(str, content["cell"].values())) == sorted(
            map(str, [*dict(cell.point).values(), cell.seed])
        )
        options = content.get("options", study.points[cell.point])
    except (TypeError, KeyError, AttributeError):
        raise InputError(f"{path} is broken; remove it and make it again with python -m flexqwen study run") from None
    if not is_this or options != study.points[cell.point] or made_by["study"] != study.identity(digests):
        raise InputError(
            f"{path} was made with another config, dataset or tokenizer than {study.path} has now; change them back, "
            f"give the changed config another name, or remove {study.results} and runs/{study.name} to begin anew"
        )
    return content


def make(study: Study, cell: Cell, digests: dict[str, str]) -> None:
    """Trains a cell, or resumes its training, measures it and writes its file; ends the process if that fails."""
    end_with_parent()
    cli.command(lambda _: _make(study, cell, digests))()


def _make(study: Study, cell: Cell, digests: dict[str, str]) -> None:
    code = code_version()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        runpy.run_path(str(ROOT / "train.py"))["main"]([str(write_config(study, cell))])
    run = next(path.parent for path in study.run_folder(cell).glob("*/finished.json"))
    last = last_checkpoint(run)
    results, parameters = measure(study, cell, str(run / "best" if study.measurement.checkpoint == "best" else last))
    described = read_json(run / "run.json")
    write_items(study, results)
    write_json(
        study.cell_file(cell),
        {
            "cell": {**dict(cell.point), "seed": cell.seed},
            "options": study.points[cell.point],
            "parameters": parameters,
            "made_by": {
                "study": study.identity(digests),
                "items": digest(read_json(study.results / ITEMS)),
                "config": study.path.as_posix(),
                "command": described["command"],
                "rows_per_step": described["rows_per_step"],
                "digests": described["digests"],
                "code": code if code_version() == code else f"{code} to {code_version()}",
                "versions": described["versions"],
                "machine": machine(),
            },
            "cost": cost(run, last),
            "curve": curve(run, last),
            "figures": [figure(result) for result in results],
        },
    )


def measure(study: Study, cell: Cell, checkpoint: str) -> tuple[list[Result], int]:
    """Every figure of a checkpoint, and its number of parameters."""
    scorer, measured, results = likelihood.load(checkpoint), study.measurement, []
    for task, split in [("bits_per_byte", split) for split in measured.heldout] + [
        (task, "") for task in measured.tasks
    ]:
        context = Context(study.training["dataset"], split, measured.documents, limit=measured.limit)
        items = TASKS[task].load(context)
        for mode in study.modes(cell.point):
            results += TASKS[task].evaluate(scorer, items, mode, context)
    return results, scorer.model.num_parameters()


def figure(result: Result) -> dict:
    """A result as a cell's file has it. Only the figures of all items carry a number for each."""
    kept = ("task", "version", "mode", "metric", "subset", "value", "interval", "n", "baseline", "baseline_name")
    entry = {name: getattr(result, name) for name in kept}
    if has_items(result):
        entry["items"] = [float(f"{value:.5g}") for value in result.items]
    return entry


def has_items(result: Result) -> bool:
    """Whether its items are kept: nats per token and the figures of subsets follow from the others'."""
    return result.metric != "loss" and (result.subset == "all" or result.task.startswith("bits_per_byte"))


def write_items(study: Study, results: list[Result]) -> None:
    """Says, once for all cells, what the items are: ids, weights, and the subsets that they belong to.

    Raises:
        InputError: a cell was measured on other items before.
    """
    described = {}
    for result in results:
        if has_items(result):
            entry = {"ids": result.item_ids, "weights": result.weights, "clusters": result.clusters}
            described.setdefault(f"{result.task}/{result.subset}", {**entry, "subsets": {}})
    for result in results:
        whole = described.get(f"{result.task}/all")
        if whole and result.subset != "all":
            places = {name: place for place, name in enumerate(whole["ids"])}
            whole["subsets"][result.subset] = [places[name] for name in result.item_ids]
    path = study.results / ITEMS
    known = read_json(path)
    if known is None:
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(described, ensure_ascii=False) + "\n", encoding="utf-8")
    elif known != json.loads(json.dumps(described)):
        raise InputError(f"{path} names other items than this cell was measured on; were the evaluation data changed?")


def entries(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    found = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line that is being written
            found.append(json.loads(line))
    return found


def cost(run: Path, checkpoint: Path) -> dict[str, float]:
    """What a cell cost: tokens, updates, passes over the data, labels by mode, FLOPs, seconds of training."""
    logged = [entry for entry in entries(run) if "loss" in entry]
    last = logged[-1]
    labels = {mode: sum(entry.get(f"labels_{mode}", 0) for entry in logged) for mode in ("causal", "masked")}
    tokens, seconds, before = last["tokens_seen"], 0.0, 0
    for entry in logged:
        seconds += (entry["tokens_seen"] - before) / entry["tokens_per_second"]
        before = entry["tokens_seen"]
    return {
        "updates": last["step"],
        "tokens": tokens,
        "passes": round(last["epoch"], 4),
        "labels_causal": labels["causal"],
        "labels_masked": labels["masked"],
        "flops": flops(checkpoint, tokens, sum(labels.values())),
        "train_seconds": round(seconds, 1),
    }


def flops(checkpoint: Path, tokens: float, labels: float) -> float:
    """Of training on so many tokens with so many labels."""
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    return model_flops(config, tokens, labels, config.max_position_embeddings)


def curve(run: Path, checkpoint: Path) -> list[dict[str, float]]:
    """Held-out loss in both modes, of the validation split, as training went on: tokens, FLOPs, nats per token."""
    points, labels = [], 0
    for entry in entries(run):
        labels += entry.get("labels_causal", 0) + entry.get("labels_masked", 0)
        if "eval_loss" in entry:
            point = {mode: round(entry[f"eval_loss_{mode}"], 5) for mode in ("causal", "masked")}
            tokens = entry["tokens_seen"]
            points.append({"tokens": tokens, "flops": flops(checkpoint, tokens, labels), **point})
    return points


def code_version() -> str | None:
    """The git commit of this repository, with `-dirty` if Python files differ from it; None where git has none."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit, changes = (
            subprocess.run([*git, *words], check=True, capture_output=True, text=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--", "*.py"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def machine() -> dict[str, str | int]:
    """The hardware a cell was made on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def status(study: Study) -> str:
    """A line for each cell: finished, with its figures, or how far it is."""
    lines, finished = [], 0
    for cell in study.cells:
        shown = "waiting"
        if (content := read_json(study.cell_file(cell))) is not None:
            finished += 1
            subsets = ("all", *study.measurement.heldout[:1])
            rows = [row for row in content["figures"] if row["metric"] != "loss" and row["subset"] in subsets]
            figures = [(f"{row['task']} {row['mode']}", row["value"]) for row in rows]
            figures = figures or [(f"{mode} loss", content["curve"][-1][mode]) for mode in ("causal", "masked")]
            shown = ", ".join(f"{name} {value:.3f}" for name, value in figures)
        elif logs := list(study.run_folder(cell).glob("*/metrics.jsonl")):
            steps = [entry["step"] for entry in entries(logs[0].parent)]
            shown = f"step {max(steps, default=0):,} of {int(study.options(cell.point)['max_steps']):,}"
        lines.append(f"{cell.name:45} {shown}")
    return "\n".join([*lines, f"{finished} of {len(lines)} cells finished"])
