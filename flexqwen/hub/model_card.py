"""The model card and the evaluation results of a repository, from the records of its runs and from nothing else."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from flexqwen.evaluation.results import RESULTS, Result, format_results
from flexqwen.files import read_json
from flexqwen.training.metrics import read_log
from flexqwen.training.objectives import trained_modes

TEMPLATE = Path(__file__).with_suffix(".md")  # Jinja, as huggingface_hub's own
CAROLINA = "carolina-c4ai/corpus-carolina"  # the corpus where a manifest names none
BENCHMARKS = {"multiblimp_por": ("jumelet/multiblimp", "por")}  # task -> dataset of the Hub, and its task there
TASKS = (*BENCHMARKS, "bits_per_byte")  # of which there are figures in .eval_results
TAGS = {"masked": "masked-language-modeling", "causal": "causal-lm"}
ROOT = "root_run"  # in the card's metadata
TASK_TYPES = {"fused": "text-generation", "causal": "text-generation", "masked": "fill-mask"}


class Run:
    """What `run.json`, `metrics.jsonl`, `finished.json` and `eval-*/results.json` of a run's folder say."""

    def __init__(self, folder: Path):
        self.name, self.description = folder.name, read_json(folder / "run.json")
        self.settings = self.description["settings"]
        self.modes = trained_modes(self.settings)
        # One of the Hub; a folder may look like such a name.
        self.dataset = self.settings["dataset"] if self.description.get("dataset_is_of_the_hub") else None
        data = self.description.get("data") or {"corpus": None}  # which is not known
        self.is_generated, self.corpus = bool(data.get("generated")), data.get("corpus", CAROLINA)
        self.finished, self.has_curves = read_json(folder / "finished.json"), (folder / "loss.png").is_file()
        self.last: dict[str, float] = {}  # logged value of every quantity
        for entry in read_log(folder):
            self.last.update(entry)
        self.evaluations: list[tuple[str, dict, list[Result]]] = []  # name of the checkpoint, what made the figures
        for found in map(read_json, sorted(folder.glob(f"eval-*/{RESULTS}"))):
            rows = [Result(**row) for row in found["results"]]
            self.evaluations.append((Path(found["model"]).name, found["made_by"], rows))


def read_root(file: Path) -> str:
    """Which run's `best` is at the root of a repository, by its `README.md`; empty where that says nothing."""
    return str(ModelCard.load(file).data.get(ROOT, "")) if file.is_file() else ""


def write(folder: Path, repo_id: str, root: str) -> dict[str, Path]:
    """Writes `README.md` and `.eval_results/*.yaml` about the runs in `folder`; returns the files by name.

    `root` is the name of the run whose `best` is at the repository's root.
    """
    runs = [Run(file.parent) for file in sorted(folder.glob("*/run.json"))]
    example = next((run for run in runs if run.name == root), runs[0])
    data, template = metadata(runs, example, repo_id, root), TEMPLATE.read_text(encoding="utf-8")
    names = {"repo": repo_id, "runs": runs, "example": example, "format_results": format_results}
    names["is_root"] = example.name == root  # not where somebody deleted that run's folder
    names["is_generated"] = any(run.is_generated for run in runs)
    names["is_portuguese"] = is_portuguese(runs)
    names["corpora"] = sorted({run.corpus for run in runs} - {None, CAROLINA})
    ModelCard.from_template(data, template_str=template, **names).save(folder / "README.md")
    found = {"README.md": folder / "README.md"}
    for task, entries in result_entries(runs).items():
        file = folder / ".eval_results" / f"{task}.yaml"
        file.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        file.write_text(text, encoding="utf-8")
        found[f".eval_results/{task}.yaml"] = file
    return found


def is_portuguese(runs: list[Run]) -> bool:
    """Whether the language is known: that of Corpus Carolina."""
    return all(run.corpus == CAROLINA for run in runs)


def metadata(runs: list[Run], example: Run, repo_id: str, root: str) -> ModelCardData:
    """What stands at the head of the card."""
    datasets = [run.dataset for run in runs if run.dataset]
    datasets += [CAROLINA] if any(run.corpus == CAROLINA and not run.is_generated for run in runs) else []
    modes = {mode for run in runs for mode in run.modes}
    tags = ["qwen3", *(tag for mode, tag in TAGS.items() if mode in modes), "data-efficient-pretraining"]
    tags += ["hybrid-objective"] if any(len(run.modes) > 1 for run in runs) else []
    results = []
    for run, checkpoint, _, row in figures(runs):
        if row.subset == "all" or row.task.startswith("bits_per_byte"):
            title = row.task if row.subset == "all" else f"{row.task}, {row.subset}"
            name = f"{row.metric}, {row.mode}, {run.name}/{checkpoint}, {spread(row)}"
            kind, value = TASK_TYPES.get(row.mode, "text-classification"), round(row.value, 4)
            results.append(EvalResult(kind, row.task, title, row.metric, value, metric_name=name))
    tags += ["portuguese", "custom_code"] if is_portuguese(runs) else ["custom_code"]
    fields = {"pipeline_tag": TASK_TYPES[example.modes[0]], "tags": tags}
    fields |= {"language": "pt" if is_portuguese(runs) else None, "license": "apache-2.0"}
    fields |= {"library_name": "transformers"}
    fields |= {"datasets": list(dict.fromkeys(datasets)) or None, "eval_results": results or None, ROOT: root}
    return ModelCardData(model_name=repo_id.split("/")[1] if results else None, **fields)


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
    return ((run, *made, row) for run in runs for *made, rows in run.evaluations for row in rows)


def spread(row: Result) -> str:
    """The interval of a figure, and of how many items it is."""
    return f"95 % [{row.interval[0]:.3f}, {row.interval[1]:.3f}], n = {row.n}"
