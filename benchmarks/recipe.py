"""Which defaults of the recipe earn their place: the quickstart model trained with one thing changed at a time.

    python benchmarks/recipe.py [--dataset carolina_originality] [--seeds 2] [--steps 200] [--output result.json]

Every variant sees the same number of tokens, with each seed. The figure is the held-out loss at the end (nats per
predicted token, mean of causal and masked) less the default's of the same seed: above 0, the variant is worse. The
interval is Student's, over seeds. Runs that are finished are not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flexqwen.outputs import versions, write_json  # noqa: E402

DEFAULT = "default"
VARIANTS = {  # the default is configs/quickstart.yaml: AdamW, cosine to 10 %, warm-up, clipping, mask rate 30 -> 15 %
    DEFAULT: [],
    "muon": ["--muon", "true"],
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
    "twice the learning rate": ["--learning_rate", "1.2e-2"],
    "half the learning rate": ["--learning_rate", "3e-3"],
}


def held_out_loss(folder: Path) -> float:
    """Of the last evaluation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["eval_loss"] for line in lines if "eval_loss" in line][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="carolina_originality")
    parser.add_argument("--tokenizer", default="runs/quickstart/tokenizer")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", default="runs/recipe", help="folder of the runs")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()
    losses = {}
    print("| variant | held-out loss | minus default | 95 % interval |\n|---|---:|---:|---:|")
    for variant, options in VARIANTS.items():
        losses[variant] = []
        for seed in range(args.seeds):
            output = Path(args.runs) / f"{variant.replace(' ', '-').replace(',', '')}-{seed}"
            command = [sys.executable, "train.py", "configs/quickstart.yaml", "--output_dir", str(output)]
            command += ["--dataset", args.dataset, "--tokenizer", args.tokenizer, "--seed", str(seed)]
            command += ["--token_stores", str(Path(args.runs) / "tokens"), "--max_steps", str(args.steps)]
            command += ["--eval_steps", str(args.steps), "--save_steps", str(args.steps), "--eval_documents", "200"]
            subprocess.run([*command, "--disable_tqdm", "true", *options], check=True, cwd=ROOT, capture_output=True)
            losses[variant].append(held_out_loss(ROOT / output / "hybrid-shift-256"))
        difference = np.subtract(losses[variant], losses[DEFAULT])
        low, high = float("nan"), float("nan")
        if args.seeds > 1 and variant != DEFAULT:
            low, high = stats.t.interval(0.95, args.seeds - 1, difference.mean(), stats.sem(difference))
        print(
            f"| {variant} | {np.mean(losses[variant]):.3f} | {difference.mean():+.3f} | [{low:+.3f}, {high:+.3f}] |",
            flush=True,
        )
    if args.output:
        made_by = {"versions": versions("torch", "transformers", "numpy"), **vars(args)}
        write_json(args.output, {"made_by": made_by, "variants": VARIANTS, "held_out_loss": losses})


if __name__ == "__main__":
    main()
