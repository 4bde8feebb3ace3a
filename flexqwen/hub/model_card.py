"""The model card and the evaluation results of a repository, from the records of its runs and from nothing else."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from flexqwen.evaluation.results import RESULTS, Result, format_results
from flexqwen.files import read_json
from flexqwen.training.metrics import read_log
from flexqwen.training.objectives import ObjectiveArguments

TEMPLATE = Path(__file__).with_suffix(".md")  # Jinja, as huggingface_hub's own
CORPUS = "carolina-c4ai/corpus-carolina"
BENCHMARKS = {"multiblimp_por": ("jumelet/multiblimp", "por")}  # task -> dataset of the Hub, and its task there
TAGS = {"masked": "masked-language-modeling", "causal": "causal-lm"}
ROOT = "root_run"  # in the card's metadata
TASK_TYPES = {"fused": "text-generation", "causal": "text-generation", "masked": "fill-mask"}


class Run:
    """What `run.json`, `metrics.jsonl`, `finished.json` and `eval-*/results.json` of a run's folder say.

    Attributes:
        modes: that it was trained in.
        dataset: its dataset on the Hub; None where it came from a folder, which may look like such a name.
        is_generated: whether it was trained on the sample corpus.
        last: the last logged value of every quantity.
        evaluations: name of the evaluated checkpoint, what the figures were made by, and the figures.
    """

    def __init__(self, folder: Path):
        self.name, self.description = folder.name, read_json(folder / "run.json")
        self.settings = self.description["settings"]
        self.modes = ObjectiveArguments(strategy=self.settings["strategy"]).modes
        self.dataset = self.settings["dataset"] if self.description.get("dataset_is_of_the_hub") else None
        self.is_generated = bool((self.description.get("data") or {}).get("generated"))
        self.finished, self.has_curves = read_json(folder / "finished.json"), (folder / "loss.png").is_file()
        self.last: dict[str, float] = {}
        for entry in read_log(folder):
            self.last.update(entry)
        self.evaluations: list[tuple[str, dict, list[Result]]] = []
        for file in sorted(folder.glob(f"eval-*/{RESULTS}")):
            found = read_json(file)
            rows = [Result(**row) for row in found["results"]]
            self.evaluations.append((Path(found["model"]).name, found["made_by"], rows))


def read_root(file: Path) -> str:
    """Which run's `best` is at the root of a repository, by its `README.md`; empty where that says nothing."""
    return str(ModelCard.load(file).data.get(ROOT, "")) if file.is_file() else ""


def write(folder: Path, repo_id: str, root: str) -> dict[str, Path]:
    """Writes `README.md` and `.eval_results/*.yaml` about the runs in `folder`; returns the files by name.

    Args:
        root: name of the run whose `best` is at the root.
    """
    runs = [Run(file.parent) for file in sorted(folder.glob("*/run.json"))]
    example = next((run for run in runs if run.name == root), runs[0])
    card = ModelCard.from_template(
        metadata(runs, example, repo_id, root),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        repo=repo_id,
        runs=runs,
        example=example,
        is_root=example.name == root,  # not where somebody deleted that run's folder
        is_generated=any(run.is_generated for run in runs),
        format_results=format_results,
    )
    card.save(folder / "README.md")
    found = {"README.md": folder / "README.md"}
    for task, entries in result_entries(runs).items():
        file = folder / ".eval_results" / f"{task}.yaml"
        file.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        file.write_text(text, encoding="utf-8")
        found[f".eval_results/{task}.yaml"] = file
    return found


def metadata(runs: list[Run], example: Run, repo_id: str, root: str) -> ModelCardData:
    """What stands at the head of the card."""
    datasets = [run.dataset for run in runs if run.dataset]
    datasets += [] if all(run.is_generated for run in runs) else [CORPUS]
    modes = {mode for run in runs for mode in run.modes}
    tags = ["qwen3", *(tag for mode, tag in TAGS.items() if mode in modes), "data-efficient-pretraining"]
    tags += ["hybrid-objective"] if any(len(run.modes) > 1 for run in runs) else []
    results = [
        EvalResult(
            task_type=TASK_TYPES.get(row.mode, "text-classification"),
            dataset_type=row.task,
            dataset_name=row.task if row.subset == "all" else f"{row.task}, {row.subset}",
            metric_type=row.metric,
            metric_value=round(row.value, 4),
            metric_name=f"{row.metric}, {row.mode}, {run.name}/{checkpoint}, {spread(row)}",
        )
        for run, checkpoint, _, row in figures(runs)
        if row.subset == "all" or row.task.startswith("bits_per_byte")
    ]
    return ModelCardData(
        language="pt",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=TASK_TYPES[example.modes[0]],
        tags=[*tags, "portuguese", "custom_code"],
        datasets=list(dict.fromkeys(datasets)) or None,
        model_name=repo_id.split("/")[1] if results else None,
        eval_results=results or None,
        **{ROOT: root},
    )


def result_entries(runs: list[Run]) -> dict[str, list[EvalResultEntry]]:
    """By task, the figures that belong to a dataset of the Hub: the benchmark, or the held-out text trained beside."""
    found: dict[str, list[EvalResultEntry]] = {}
    for run, checkpoint, made_by, row in figures(runs):
        dataset = BENCHMARKS.get(row.task) if row.subset == "all" else None
        of_training = made_by["dataset_digest"] == run.description["digests"]["dataset"]
        if (row.task, row.metric) == ("bits_per_byte", "bits_per_byte") and of_training:
            dataset = (run.dataset, f"heldout/{row.subset}") if run.dataset else None
        if dataset:
            notes = f"{run.name}/{checkpoint}, {row.mode} mode, {row.metric}, {spread(row)}"
            entry = EvalResultEntry(*dataset, round(row.value, 4), notes=notes)
            found.setdefault(row.task, []).append(entry)
    return found


def figures(runs: list[Run]) -> Iterator[tuple[Run, str, dict, Result]]:
    """Every figure, with its run, its checkpoint and what made it."""
    for run in runs:
        for checkpoint, made_by, rows in run.evaluations:
            yield from ((run, checkpoint, made_by, row) for row in rows)


def spread(row: Result) -> str:
    """The interval of a figure, and of how many items it is."""
    return f"95 % [{row.interval[0]:.3f}, {row.interval[1]:.3f}], n = {row.n}"
