"""Which defaults of the recipe earn their place: the quickstart model trained with one thing changed at a time.

    python benchmarks/recipe.py [--dataset carolina_originality] [--seeds 4] [--steps 150] [--output result.json]

Every variant sees the same number of tokens, with each seed. The figure is the held-out loss at the end (nats per
predicted token, mean of causal and masked) less the default's of the same seed: above 0, the variant is worse. The
interval is Student's, over seeds. Runs that are finished are not run again. Each run has one thread.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

from flexqwen.files import versions, write_json

ROOT = Path(__file__).parents[1]
DEFAULT = "default"
VARIANTS = {  # the default is configs/quickstart.yaml: AdamW, cosine to 10 %, warm-up, clipping, mask rate 30 -> 15 %
    DEFAULT: [],
    "muon": ["--muon", "true"],
    "muon, half the learning rate": ["--muon", "true", "--learning_rate", "3e-3"],
    "muon, twice the learning rate": ["--muon", "true", "--learning_rate", "1.2e-2"],
    "half the learning rate": ["--learning_rate", "3e-3"],
    "twice the learning rate": ["--learning_rate", "1.2e-2"],
    "warmup_stable_decay": [
        *("--lr_scheduler_type", "warmup_stable_decay"),
        *("--lr_scheduler_kwargs", '{"num_decay_steps": 40, "min_lr_ratio": 0.1}'),
    ],
    "no warm-up": ["--warmup_steps", "0"],
    "no clipping": ["--max_grad_norm", "0"],
    "loss_weighting token": ["--loss_weighting", "token"],
    "mask rate 15 % throughout": ["--mask_probability_start", "0.15"],
    "spans of one token": ["--mask_span_max", "1"],
    "rows of 64, 128, 256": [
        "--phases",
        '{"until": 0.7, "sequence_length": 64}',
        '{"until": 0.9, "sequence_length": 128}',
        '{"until": 1.0, "sequence_length": 256}',
    ],
    "adam_beta2 0.999": ["--adam_beta2", "0.999"],
    "EMA": [],
    "z-loss": [],
}
TRIALS = {"EMA": "ema", "z-loss": "z_loss"}  # of recipe_trials.py


def run(args, variant: str, seed: int) -> float:
    """Trains one variant with one seed, if that was not done; its held-out loss at the end."""
    name = "".join(letter if letter.isalnum() else "-" for letter in variant)
    output = Path(args.runs).resolve() / f"{name}-{seed}"
    script = ["benchmarks/recipe_trials.py", TRIALS[variant]] if variant in TRIALS else ["train.py"]
    command = [sys.executable, *script, "configs/quickstart.yaml", "--output_dir", str(output)]
    command += ["--dataset", str(Path(args.dataset).resolve()), "--dataset_config", args.dataset_config]
    command += ["--tokenizer", str(Path(args.tokenizer).resolve()), "--seed", str(seed)]
    command += ["--token_stores", str(output.parent / "tokens"), "--max_steps", str(args.steps)]
    command += ["--eval_steps", str(args.steps), "--save_steps", str(args.steps), "--eval_documents", "200"]
    command += ["--bf16", "true", "--use_cpu", "true", "--disable_tqdm", "true", *VARIANTS[variant]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant}, seed {seed}: {done.stderr.strip()}")
    lines = (output / "hybrid-shift-256" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["eval_loss"] for line in map(json.loads, lines) if "eval_loss" in line][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="carolina_originality")
    parser.add_argument("--dataset_config", default="gold")
    parser.add_argument("--tokenizer", default="runs/quickstart/tokenizer")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--runs", default="runs/recipe", help="folder of the runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    cells = [(variant, seed) for variant in VARIANTS for seed in range(args.seeds)]
    run(args, *cells[0])  # which makes the token store that the others read
    with ThreadPoolExecutor(args.workers) as pool:
        found = list(tqdm(pool.map(lambda cell: run(args, *cell), cells), total=len(cells), unit="run"))
    losses = {variant: [] for variant in VARIANTS}
    for (variant, _), loss in zip(cells, found, strict=True):
        losses[variant].append(loss)
    print("| variant | held-out loss | minus default | 95 % interval |\n|---|---:|---:|---:|")
    for variant, values in losses.items():
        difference = np.subtract(values, losses[DEFAULT])
        low, high = float("nan"), float("nan")
        if args.seeds > 1 and variant != DEFAULT:
            low, high = stats.t.interval(0.95, args.seeds - 1, difference.mean(), stats.sem(difference))
        print(f"| {variant} | {np.mean(values):.3f} | {difference.mean():+.3f} | [{low:+.3f}, {high:+.3f}] |")
    if args.output:
        made_by = {"versions": versions("torch", "transformers", "numpy"), "steps": args.steps, "seeds": args.seeds}
        variants = {
            name: {"options": options, "trial": TRIALS.get(name), "held_out_loss": losses[name]}
            for name, options in VARIANTS.items()
        }
        write_json(args.output, {"made_by": made_by | {"dataset_config": args.dataset_config}, "variants": variants})


if __name__ == "__main__":
    main()
