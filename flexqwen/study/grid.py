"""A study: one grid of training runs, strategies × splits × seeds, each measured the same way.

configs/<study>.yaml          the grid, the options of train.py that all cells share, and what is measured
runs/<study>/<cell>/          a training run each
results/<study>/cells/        a small JSON file for each finished cell: what made it, what it cost, every figure
results/<study>/items.json    what the figures' items are; the same for all cells
results/<study>/overlap.json  how many of the tasks' items have a passage in common with the training splits
results/<study>/README.md     the report (flexqwen.study_report, with study_results and study_figures)
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from configuration_flexqwen import FlexQwenConfig
from flexqwen.cli import InputError
from flexqwen.data import passages
from flexqwen.data.texts import dataset_digest, parquet_files
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.results import Result, check_finite
from flexqwen.evaluation.tasks import ZERO_SHOT, Context, load_task
from flexqwen.files import atomic_write, digest, file_digest, read_json, write_json
from flexqwen.loading import check_unchanged, digest_checkpoint
from flexqwen.training import arguments
from flexqwen.training.checkpoints import find_defect, list_checkpoints
from flexqwen.training.flops import model_flops
from flexqwen.training.objectives import ObjectiveArguments

ROOT = Path(__file__).parents[2]
KEYS = {"grid", "seeds", "training", "evaluation"}
ITEMS, OVERLAP = "items.json", "overlap.json"


@dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        strategy: as in the config: a strategy of train.py, with `causal:masked` after it where it mixes both.
        split: the dataset's config that is trained on.
    """

    strategy: str
    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.split}.{self.strategy.replace(' ', '-').replace(':', '-')}.{self.seed}"

    @property
    def objective(self) -> ObjectiveArguments:
        """
        Raises:
            InputError: an unknown strategy, or a ratio that is none.
        """
        name, _, ratio = self.strategy.partition(" ")
        if not ratio:
            return ObjectiveArguments(strategy=name)
        try:
            causal, masked = map(int, ratio.split(":"))
            return ObjectiveArguments(strategy=name, causal_fraction=causal / (causal + masked))
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"{ratio!r} in strategy {self.strategy!r} is no ratio causal:masked, such as 1:3"
            ) from None

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that it is measured in: those it trains, and fused where these are both."""
        trained = self.objective.modes
        return (*trained, "fused") if len(trained) == 2 else trained


@dataclass
class Study:
    """A study's config, read.

    Attributes:
        cells: in the order in which they are run: all cells of one seed, then those of the next.
        training: options of train.py, the same for all cells.
        tasks: likelihood tasks, by name.
        heldout: splits of the dataset's `heldout` config; the first is the one that counts most.
        documents: of each, at most.
        limit: items of a task, at most.
    """

    path: Path
    cells: list[Cell]
    training: dict
    tasks: list[str]
    heldout: list[str]
    documents: int
    limit: int | None

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def results(self) -> Path:
        return Path("results") / self.name

    def cell_file(self, cell: Cell) -> Path:
        return self.results / "cells" / f"{cell.name}.json"

    def run_folder(self, cell: Cell) -> Path:
        """The `output_dir` of its training."""
        return Path("runs") / self.name / cell.name


def read(path: str) -> Study:
    """Reads a study's config.

    Raises:
        InputError: it is not there, or a key or value in it cannot be; all before any work.
    """
    config = arguments.read_yaml(path)
    if set(config) != KEYS or not isinstance(config["training"], dict):
        raise InputError(f"config {path} must have the keys {', '.join(sorted(KEYS))}, and no others")
    try:
        evaluation = {"tasks": [], "heldout": ["test"], "documents": 500, "limit": None, **config["evaluation"]}
        cells = [
            Cell(strategy, split, int(seed))
            for seed in config["seeds"]
            for part in config["grid"]
            for strategy in part["strategies"]
            for split in part["splits"]
        ]
        study = Study(Path(path), list(dict.fromkeys(cells)), config["training"], **evaluation)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"config {path}: {type(error).__name__}: {error}; configs/study-cpu.yaml is one to follow"
        ) from None
    if unknown := set(study.tasks) - set(ZERO_SHOT):
        raise InputError(f"config {path}: unknown task {unknown.pop()!r}; there are: {', '.join(ZERO_SHOT)}")
    for cell in study.cells:
        _ = cell.objective
    if taken := {"strategy", "causal_fraction", "dataset_config", "seed", "output_dir"} & set(study.training):
        raise InputError(f"config {path}: training has {taken.pop()!r}, which the grid decides")
    for name in ("max_steps", "dataset", "tokenizer", "token_stores"):
        if name not in study.training:
            raise InputError(f"config {path}: training needs {name!r}")
    if int(study.training["max_steps"]) % int(study.training.get("logging_steps", 500)):
        raise InputError(
            f"config {path}: max_steps must be a multiple of logging_steps, or the last steps are not counted"
        )
    return study


def select(cells: Sequence[Cell], part: str | None) -> list[Cell]:
    """The i-th of n parts (`"i/n"`, i from 1) of the cells, so that several machines share them; all by default.

    A split and its control stay together: what machines differ in must not look like what splits differ in.

    Raises:
        InputError: it is no such part.
    """
    try:
        number, parts = map(int, (part or "1/1").split("/"))
        if not 1 <= number <= parts:
            raise ValueError
    except ValueError:
        raise InputError(f"--part is {part!r}; it must be i/n with i from 1 to n, such as 1/2") from None
    pairs = [(cell.seed, cell.strategy, re.sub("gold|matched", "", cell.split)) for cell in cells]
    chosen = set(list(dict.fromkeys(pairs))[number - 1 :: parts])
    return [cell for cell, pair in zip(cells, pairs, strict=True) if pair in chosen]


def run(study: Study, part: str | None, workers: int) -> None:
    """Makes the cells that are not made yet; with several workers, each in a process with its share of the cores.

    Raises:
        InputError: data, tokenizer or a task's items are not there (before any training), or a training failed.
    """
    config = train_config(study)
    digests = {
        "dataset": dataset_digest(study.training["dataset"]),
        "tokenizer": file_digest(Path(study.training["tokenizer"]) / "tokenizer.json"),
    }
    for split in {cell.split for cell in study.cells}:
        parquet_files(study.training["dataset"], split, "train")
    for split in study.heldout:
        parquet_files(study.training["dataset"], "heldout", split)
    find_overlap(study)
    cells = select(study.cells, part)
    waiting = [cell for cell in cells if not is_finished(study, cell, digests)]
    print(f"study {study.name}: {len(cells)} cells, {len(cells) - len(waiting)} of them finished")
    if workers > 1 and len(waiting) > 1:
        number, parts = map(int, (part or "1/1").split("/"))
        shares = [f"{number + parts * worker}/{parts * workers}" for worker in range(workers)]
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        command = [sys.executable, "-m", "flexqwen", "study", "run", str(study.path), "--part"]
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        processes = [subprocess.Popen([*command, share], env=environment) for share in shares]
        if any([process.wait() for process in processes]):
            raise InputError("a worker failed, see above; run the same command again to go on")
        return
    start = time.perf_counter()
    for number, cell in enumerate(waiting):
        seconds = make(study, cell, config, digests)
        left = (time.perf_counter() - start) / (number + 1) * (len(waiting) - number - 1)
        print(
            f"[{number + 1}/{len(waiting)}] {cell.name}: {seconds:.0f} s, about {left / 60:.0f} minutes left",
            flush=True,
        )


def find_overlap(study: Study) -> None:
    """Says once how many of the tasks' items have a 13-gram in common with what is trained on."""
    path = study.results / OVERLAP
    items = {
        task: load_task(task).load_items(Context(study.training["dataset"], limit=study.limit)) for task in study.tasks
    }
    if not items or (path.is_file() and any((study.results / "cells").glob("*.json"))):
        return
    shares = iter(
        passages.find_seen_shares([item.text for task in items.values() for item in task], study.training["dataset"])
    )
    found = {}
    for task, loaded in items.items():
        values = np.array([next(shares) for _ in loaded])
        found[task] = {"items": len(values), "seen": int((values > 0).sum()), "short": int(np.isnan(values).sum())}
    write_json(path, found)


def train_config(study: Study) -> Path:
    """Writes the options that all cells share as a config of train.py."""
    path = Path("runs") / study.name / "training.yaml"
    with atomic_write(path) as aside:
        aside.write_text(yaml.safe_dump(study.training, sort_keys=False), encoding="utf-8")
    arguments.parse([str(path)])  # raises where an option is unknown or of the wrong type
    return path


def is_finished(study: Study, cell: Cell, digests: dict[str, str]) -> bool:
    """
    Raises:
        InputError: its file is of other settings or data.
    """
    found = read_json(study.cell_file(cell))
    if found is None:
        return False
    if found["made_by"]["study"] != identity(study, digests):
        raise InputError(
            f"{study.cell_file(cell)} was made with another config, dataset or tokenizer; remove {study.results} and "
            f"runs/{study.name} to begin anew, or give the changed config another name"
        )
    return True


def identity(study: Study, digests: dict[str, str]) -> str:
    """Digest of all that must be equal in every cell: the training's options but where things lie, data, measures."""
    places = ("dataset", "tokenizer", "token_stores", "logging_steps", "save_steps", "save_total_limit", "use_cpu")
    training = {name: value for name, value in study.training.items() if name not in places}
    return digest([training, study.tasks, study.heldout, study.documents, study.limit, digests])


def make(study: Study, cell: Cell, config: Path, digests: dict[str, str]) -> float:
    """Trains a cell, or goes on with it, measures its last checkpoint and writes its file; seconds that it took."""
    start, objective, code = time.perf_counter(), cell.objective, code_version()
    options = {
        "strategy": objective.strategy,
        "causal_fraction": objective.causal_fraction,
        "dataset_config": cell.split,
        "seed": cell.seed,
        "output_dir": study.run_folder(cell),
        "disable_tqdm": not sys.stderr.isatty(),
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, str(ROOT / "train.py"), str(config), *words]
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise InputError(f"{cell.name}: training ended with status {status}; run the same command again to go on")
    run = next(path.parent for path in study.run_folder(cell).glob("*/finished.json"))
    checkpoint = list_checkpoints(run)[-1]
    if problem := find_defect(checkpoint):
        raise InputError(
            f"{checkpoint} is not as it was saved ({problem}); remove {run / 'finished.json'}, and the same command "
            "makes it again from the one before it"
        )
    results, parameters = measure(study, cell, str(checkpoint))
    described = read_json(run / "run.json")
    write_items(study, results)
    write_json(
        study.cell_file(cell),
        {
            "cell": vars(cell),
            "parameters": parameters,
            "made_by": {
                "study": identity(study, digests),
                "config": study.path.as_posix(),
                "command": described["command"],
                "rows_per_step": described["rows_per_step"],
                "digests": described["digests"],
                "code": code if code_version() == code else f"{code} to {code_version()}",
                "versions": described["versions"],
                "machine": machine(),
            },
            "cost": cost(run, checkpoint),
            "curve": curve(run, checkpoint),
            "figures": [figure(result) for result in results],
        },
    )
    return time.perf_counter() - start


def measure(study: Study, cell: Cell, checkpoint: str) -> tuple[list[Result], int]:
    """Every figure of a checkpoint, and its number of parameters."""
    digests, scorer = digest_checkpoint(checkpoint), likelihood.load(checkpoint)
    results = []
    for task, split in [("bits_per_byte", split) for split in study.heldout] + [(task, "") for task in study.tasks]:
        context = Context(study.training["dataset"], split, study.documents, limit=study.limit)
        items = load_task(task).load_items(context)
        for mode in cell.modes:
            results += load_task(task).evaluate(scorer, items, mode, context)
    check_finite(results)
    check_unchanged(checkpoint, digests)
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
            described.setdefault(_key(result), {**entry, "subsets": {}})
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


def _key(result: Result) -> str:
    return f"{result.task}/{result.subset}"


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
    config = FlexQwenConfig.from_pretrained(checkpoint)
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


def merge(study: Study, folders: list[str]) -> int:
    """Copies the cells that other machines made, from their results folders of the same study; how many were new.

    Raises:
        InputError: a file is no cell of this study, is of other settings or data, or names other items.
    """
    known = {cell.name: cell for cell in study.cells}
    items, identities = None, set()
    if mine := sorted((study.results / "cells").glob("*.json")):
        items = read_json(study.results / ITEMS)
        identities = {made_for(study, path)["made_by"]["study"] for path in mine}
    found = {}
    for folder in map(Path, folders):
        files = sorted((folder / "cells").glob("*.json"))
        if not files:
            raise InputError(f"no cells in {folder}: it must be a results folder of study.py, with cells/*.json")
        theirs = read_json(folder / ITEMS)
        if theirs is None or (items is not None and theirs != items):
            raise InputError(f"{folder / ITEMS} names other items than the cells before it were measured on")
        items = theirs
        for path in files:
            if path.stem not in known:
                raise InputError(f"{path} is no cell of {study.name}")
            content = made_for(study, path)
            identities.add(content["made_by"]["study"])
            if len(identities) > 1:
                raise InputError(f"{path} was made with another config, dataset or tokenizer than the cells before it")
            if not study.cell_file(known[path.stem]).is_file():
                found[path.stem] = content
    if found:
        with atomic_write(study.results / ITEMS) as aside:
            aside.write_text(json.dumps(items, ensure_ascii=False) + "\n", encoding="utf-8")
        shared = (
            []
            if (study.results / OVERLAP).is_file()
            else [read_json(Path(folder) / OVERLAP) for folder in folders if (Path(folder) / OVERLAP).is_file()]
        )
        if shared:
            write_json(study.results / OVERLAP, shared[0])
    for name, content in found.items():
        write_json(study.cell_file(known[name]), content)
    return len(found)


def made_for(study: Study, path: Path) -> dict:
    """The content of a cell's file.

    Raises:
        InputError: it is broken, another cell's, or was made with another config than the study has now.
    """
    content = read_json(path)
    try:
        cell, made_by = Cell(**content["cell"]), content["made_by"]
        digests = {name: made_by["digests"][name] for name in ("dataset", "tokenizer")}
        if cell.name != path.stem or made_by["study"] != identity(study, digests):
            raise InputError(
                f"{path} was made with another config than {study.path} is now; remove it, or change it back"
            )
    except (TypeError, KeyError):
        raise InputError(f"{path} is broken; remove it and make it again with python -m flexqwen study run") from None
    return content


def status(study: Study) -> str:
    """A line for each cell: finished, with its figures, or how far it is."""
    lines = []
    steps = int(study.training["max_steps"])
    for cell in study.cells:
        content = read_json(study.cell_file(cell))
        if content is not None:
            rows = [
                row
                for row in content["figures"]
                if row["metric"] != "loss" and row["subset"] in ("all", study.heldout[0])
            ]
            shown = [f"{row['task']} {row['mode']} {row['value']:.3f}" for row in rows]
            lines.append(f"{cell.name:45} {', '.join(shown)}")
            continue
        logs = list(study.run_folder(cell).glob("*/metrics.jsonl"))
        logged = [entry["step"] for entry in entries(logs[0].parent)] if logs else []
        lines.append(f"{cell.name:45} " + (f"step {logged[-1]:,} of {steps:,}" if logged else "waiting"))
    done = sum(study.cell_file(cell).is_file() for cell in study.cells)
    return "\n".join([*lines, f"{done} of {len(study.cells)} cells finished"])
