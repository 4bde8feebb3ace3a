"""The nine tasks of the Open Portuguese LLM Leaderboard, by its own harness: each one's figure, or why it did not run.

    git clone https://github.com/eduagarcia/lm-evaluation-harness-pt && python -m venv .venv-leaderboard
    .venv-leaderboard/bin/pip install torch==2.13.0 "transformers<5" -e lm-evaluation-harness-pt
    python benchmarks/leaderboard.py --model <checkpoint> --lm_eval .venv-leaderboard/bin/lm_eval [--output <file>]

The harness runs the checkpoint's plain Qwen3 export, with its own prompts, examples and metrics. ASSIN 2 is read from
the pinned files of eval.py, and all other data by the harness from the Hub. A prompt that is longer than the model's
context loses its beginning: with 256 tokens hardly one of the 3 to 25 examples is left, and the figure is no few-shot
figure.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from flexqwen.evaluation.tasks import assin2
from flexqwen.files import write_json
from flexqwen.hub.export import export
from flexqwen.tables import markdown_table

TASKS = {  # metric and level of chance, as the harness's README has them
    "assin2_rte": ("f1_macro", 50.0),
    "assin2_sts": ("pearson", 0.0),
    "bluex": ("acc", 33.3),
    "enem_challenge": ("acc", 20.0),
    "faquad_nli": ("f1_macro", 33.3),
    "hatebr_offensive": ("f1_macro", 50.0),
    "portuguese_hate_speech": ("f1_macro", 47.9),
    "tweetsentbr": ("f1_macro", 32.8),
    "oab_exams": ("acc", 20.0),
}


def write_assin2(folder: Path) -> None:
    """ASSIN 2 where the harness looks for a dataset of that name before it asks the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    read = assin2.read()
    for split in ("train", "test"):
        pairs, levels = read["rte"][split], read["sts"][split]
        columns = {
            "sentence_pair_id": [int(pair.id) for pair in pairs],
            "premise": [pair.texts[0] for pair in pairs],
            "hypothesis": [pair.texts[1] for pair in pairs],
            "entailment_judgment": [pair.label for pair in pairs],
            "relatedness_score": [pair.label for pair in levels],
        }
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


def run_task(name: str, command: list[str], folder: Path) -> dict:
    """What the harness says of a task: `value`, `stderr` and `n_shot`; or `error`, its last line."""
    output = folder / f"{name}.json"
    output.unlink(missing_ok=True)  # the harness overwrites nothing
    words = [*command, "--tasks", name, "--output_path", str(output)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode or not output.is_file():
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found, metric = json.loads(output.read_text(encoding="utf-8")), TASKS[name][0]
    figures = {key.removesuffix(",all"): value for key, value in found["results"][name].items()}  # others: one exam
    shots = found.get("config_general", {}).get("n-shot") or found.get("n-shot", {})
    return {"value": figures[metric], "stderr": figures.get(f"{metric}_stderr"), "n_shot": shots.get(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a FlexQwen checkpoint")
    parser.add_argument("--lm_eval", required=True, help="the command of the leaderboard's harness")
    parser.add_argument("--limit", type=int, help="items of each task, at most; all by default")
    parser.add_argument("--work_folder", help="where the harness runs; a temporary folder by default")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_folder or temporary).resolve()
        export(args.model, Path(temporary) / "qwen3")
        write_assin2(folder / "assin2")
        command = [os.path.abspath(args.lm_eval), "--model", "hf", "--batch_size", "8"]
        command += ["--device", "cuda" if torch.cuda.is_available() else "cpu"]
        command += ["--model_args", f"pretrained={temporary}/qwen3,dtype=float32"]
        command += ["--limit", str(args.limit)] if args.limit else []
        found = {}
        for name in TASKS:
            print(f"{name} ...", flush=True)
            found[name] = run_task(name, command, folder)
    rows = []
    for name, figures in found.items():
        if "error" in figures:
            told = [f"not run: {figures['error']}", "", ""]
        else:
            error = figures["stderr"]
            spread = f"{100 * error:.1f}" if isinstance(error, float) else "–"  # "N/A" of a single item
            told = [f"{100 * figures['value']:.1f}", spread, figures["n_shot"]]
        rows.append([name, TASKS[name][0], *told, TASKS[name][1]])
    print(markdown_table(["task", "metric", "value", "±", "examples", "chance"], rows, text_columns=3))
    if args.output:
        write_json(args.output, {"model": args.model, "limit": args.limit, "tasks": found})


if __name__ == "__main__":
    main()
