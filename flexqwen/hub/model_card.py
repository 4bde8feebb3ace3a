"""The model card and the evaluation results of a repository, from the records of its runs and from nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from flexqwen.evaluation.results import RESULTS, Result, format_results
from flexqwen.files import read_json
from flexqwen.training.objectives import ObjectiveArguments

CORPUS = "carolina-c4ai/corpus-carolina"
BENCHMARKS = {"multiblimp_por": ("jumelet/multiblimp", "por")}  # task -> dataset of the Hub, and its task there
TAGS = {"masked": "masked-language-modeling", "causal": "causal-lm"}
TASK_TYPES = {"fused": "text-generation", "causal": "text-generation", "masked": "fill-mask"}

_CAUSAL = """\
model = AutoModelForCausalLM.from_pretrained(repo, subfolder=best, trust_remote_code=True)
inputs = tokenizer("O Brasil é grande.", return_tensors="pt")
model(**inputs)  # causal: exactly Qwen3
"""
_BOTH = """\
model(**inputs, is_causal=False)  # bidirectional, the same weights
model(**inputs, prefix_length=torch.tensor([3]))  # the first three tokens see each other, the rest is causal
"""
_GENERATION = """\

pipeline("text-generation", model, tokenizer=tokenizer)("O Brasil", max_new_tokens=20)
"""
_MASKED = """\
masked = AutoModelForMaskedLM.from_pretrained(repo, subfolder=best, trust_remote_code=True)
pipeline("fill-mask", masked, tokenizer=tokenizer)("O Brasil é um <mask> grande.")
"""
_USE = """\
```python
{imports}

repo, best = "{repo}", "{run}/best"
tokenizer = AutoTokenizer.from_pretrained(repo)
{code}```

Pin what you load with `revision="<commit>"`. `AutoModelForSequenceClassification`, `…TokenClassification` and
`…QuestionAnswering` give encoders to fine-tune, bidirectional by default."""
_QWEN3 = """
`{run}/qwen3` is the same checkpoint as a plain Qwen3: `from_pretrained("{repo}", subfolder="{run}/qwen3")` needs no
remote code, and vLLM and llama.cpp run it. It is causal only."""
_LIMITS = """\
- These are small base models for research: they are not instructed, know little, and state falsehoods.
- They learned from the texts named above and repeat their biases, mistakes and offensive language.
- Portuguese only. Sequences begin with BOS, which the tokenizer adds, and are not longer than in training.
- Checkpoints `step_…` hold, beside weights as safetensors, the states of optimizer and random generators as PyTorch
  pickles, to go on from; transformers reads them as data only (`weights_only`). `best` and `qwen3` hold no pickle."""
_GENERATED = """\
**Trained on generated text, to try the tools.** The texts were made by a grammar; this model knows no Portuguese.

"""
_CITATION = """\
```bibtex
@inproceedings{carpi-finger-2026-flexqwen,
  title     = {{FlexQwen}: Exploring Hybrid Objectives and Text Originality for {P}ortuguese},
  author    = {Carpi and Finger},
  booktitle = {Proceedings of the International Conference on Computational Processing of Portuguese (PROPOR)},
  year      = {2026}
}
```"""


@dataclass
class Run:
    """What the records of a run say.

    Attributes:
        last: the last logged value of every quantity.
        evaluations: name of the evaluated checkpoint, what the figures were made by, and the figures.
    """

    name: str
    description: dict
    last: dict[str, float]
    finished: dict | None
    has_curves: bool
    evaluations: list[tuple[str, dict, list[Result]]]

    @property
    def settings(self) -> dict:
        return self.description["settings"]

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that it was trained in."""
        return ObjectiveArguments(strategy=self.settings["strategy"]).modes

    @property
    def dataset(self) -> str | None:
        """Its dataset on the Hub; None where it came from a folder, which may look like such a name."""
        return self.settings["dataset"] if self.description.get("dataset_is_of_the_hub") else None


def read_run(folder: Path) -> Run:
    """Reads `run.json`, `metrics.jsonl`, `finished.json` and `eval-*/results.json` of a run's folder."""
    last: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            last.update(json.loads(line))
        except ValueError:  # it was copied while it was being written
            continue
    evaluations = []
    for file in sorted(folder.glob(f"eval-*/{RESULTS}")):
        found = read_json(file)
        rows = [Result(**row) for row in found["results"]]
        evaluations.append((Path(found["model"]).name, found["made_by"], rows))
    return Run(
        folder.name,
        read_json(folder / "run.json"),
        last,
        read_json(folder / "finished.json"),
        (folder / "loss.png").is_file(),
        evaluations,
    )


def write(folder: Path, repo_id: str) -> dict[str, Path]:
    """Writes `README.md` and `.eval_results/*.yaml` about the runs in `folder`; returns the files by name."""
    runs = [read_run(file.parent) for file in sorted(folder.glob("*/run.json"))]
    card = ModelCard(f"---\n{_metadata(runs, repo_id).to_yaml()}\n---\n\n{_body(runs, repo_id)}")
    card.save(folder / "README.md")
    found = {"README.md": folder / "README.md"}
    for task, entries in _entries(runs).items():
        file = folder / ".eval_results" / f"{task}.yaml"
        file.parent.mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
        file.write_text(text, encoding="utf-8")
        found[f".eval_results/{task}.yaml"] = file
    return found


def _metadata(runs: list[Run], repo_id: str) -> ModelCardData:
    datasets = [run.dataset for run in runs if run.dataset]
    if not all(_generated(run) for run in runs):
        datasets.append(CORPUS)
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
            metric_name=f"{row.metric}, {row.mode}, {run.name}/{checkpoint}, 95 % {_interval(row)}, n = {row.n}",
        )
        for run in runs
        for checkpoint, _, rows in run.evaluations
        for row in rows
        if row.subset == "all" or row.task.startswith("bits_per_byte")
    ]
    return ModelCardData(
        language="pt",
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag=TASK_TYPES[_example(runs).modes[0]],
        tags=[*tags, "portuguese", "custom_code"],
        datasets=list(dict.fromkeys(datasets)) or None,
        model_name=repo_id.split("/")[1] if results else None,
        eval_results=results or None,
    )


def _entries(runs: list[Run]) -> dict[str, list[EvalResultEntry]]:
    """By task, the figures that belong to a dataset of the Hub: the benchmark, or the held-out text trained beside."""
    found: dict[str, list[EvalResultEntry]] = {}
    for run in runs:
        for checkpoint, made_by, rows in run.evaluations:
            for row in rows:
                dataset = BENCHMARKS.get(row.task) if row.subset == "all" else None
                of_training = made_by["dataset_digest"] == run.description["digests"]["dataset"]
                if (row.task, row.metric) == ("bits_per_byte", "bits_per_byte") and of_training:
                    dataset = (run.dataset, f"heldout/{row.subset}") if run.dataset else None
                if dataset:
                    notes = (
                        f"{run.name}/{checkpoint}, {row.mode} mode, {row.metric}, 95 % {_interval(row)}, n = {row.n}"
                    )
                    entry = EvalResultEntry(dataset[0], dataset[1], round(row.value, 4), notes=notes)
                    found.setdefault(row.task, []).append(entry)
    return found


def _interval(row: Result) -> str:
    return f"[{row.interval[0]:.3f}, {row.interval[1]:.3f}]"


def _generated(run: Run) -> bool:
    return bool((run.description.get("data") or {}).get("generated"))


def _body(runs: list[Run], repo_id: str) -> str:
    warning = _GENERATED if any(_generated(run) for run in runs) else ""
    sections = "\n\n".join(_section(run) for run in runs)
    # Which is made of a finished run, and is causal.
    has_qwen3 = [run.name for run in runs if run.finished and "causal" in run.modes]
    qwen3 = _QWEN3.format(run=has_qwen3[0], repo=repo_id) if has_qwen3 else ""
    return f"""\
# {repo_id.split("/")[1]}

{warning}A FlexQwen for Portuguese: a Qwen3 that attends causally,
bidirectionally, or with a bidirectional prefix, chosen per call.

## Use

{_use(_example(runs), repo_id)}
{qwen3}

## Runs

This page is made from what the runs recorded, and made again whenever one is published. Losses are in nats per
predicted token, over held-out documents.

{sections}

## Limits

{_LIMITS}

## Licence

Code and weights: Apache-2.0. Corpus Carolina's headers are CC BY 4.0, and each of its texts keeps the licence that its
header names: see the dataset's `license` column.

## Citation

{_CITATION}
"""


def _example(runs: list[Run]) -> Run:
    """The run that the examples are of: the first of those that do most."""
    return max(runs, key=lambda run: len(run.modes))


def _use(run: Run, repo_id: str) -> str:
    """How to load a run, in the modes that it was trained in and in no other."""
    causal, masked = ("causal" in run.modes, "masked" in run.modes)
    code = (_CAUSAL + (_BOTH if masked else "") + _GENERATION if causal else "") + (_MASKED if masked else "")
    classes = [name for name in ("AutoModelForCausalLM", "AutoModelForMaskedLM") if name in code]
    imports = f"from transformers import {', '.join(classes)}, AutoTokenizer, pipeline"
    imports = f"import torch\n{imports}" if "torch." in code else imports
    return _USE.format(repo=repo_id, run=run.name, imports=imports, code=code)


def _section(run: Run) -> str:
    settings, last, digests = run.settings, run.last, run.description["digests"]
    data, hardware = run.description.get("data") or {}, run.description.get("hardware")
    parameters = run.description.get("parameters")
    state = (
        f"finished at step {run.finished['step']:,}" if run.finished else f"in training, step {last.get('step', 0):,}"
    )
    rows = {
        "state": state,
        "training data": f"`{settings['dataset_config']}` of `{settings['dataset']}`"
        + (f", {data['documents']:,} documents, {data['tokens']:,} words" if data else "")
        + f"; manifest SHA-256 `{digests['dataset'][:16]}…`",
        "tokenizer": f"SHA-256 `{digests['tokenizer'][:16]}…`",
        "started from": f"`{settings['model_name_or_path']}`" if settings["model_name_or_path"] else "new weights",
        "strategy": f"`{settings['strategy']}`, causal fraction {settings['causal_fraction']}",
        "size": f"{parameters:,} parameters" if parameters else None,
        "tokens seen": f"{last['tokens_seen']:,}, padding included" if "tokens_seen" in last else None,
        "sequence length": f"{settings['sequence_length']}",
        "hardware": hardware,
        "speed": f"{last['tokens_per_second']:,.0f} tokens/s at the end" if "tokens_per_second" in last else None,
        "held-out loss, last": ", ".join(
            f"{mode} {last[f'eval_loss_{mode}']:.3f}" for mode in ("causal", "masked") if f"eval_loss_{mode}" in last
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in run.description["versions"].items()),
    }
    lines = [f"### {run.name}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value]
    lines += ["", f"Every setting is in `{run.name}/run.json`, every logged value in `{run.name}/metrics.jsonl`."]
    if run.has_curves:
        lines += ["", f"![Loss against tokens]({run.name}/loss.png)"]
    for checkpoint, _, results in run.evaluations:
        lines += ["", f"Evaluation of `{run.name}/{checkpoint}`, with 95 % intervals:", "", format_results(results)]
    if not run.evaluations:
        lines += ["", "No evaluation has been published yet."]
    return "\n".join(lines)
