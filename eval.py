"""Evaluates a checkpoint: results.json, a table, a figure.

python eval.py --model runs/quickstart/hybrid-shift-256/best [--modes causal,masked]
"""

import json
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from flexqwen import plots
from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.outputs import file_digest, versions, write_json
from flexqwen.tasks import bits_per_byte
from flexqwen.texts import dataset_digest


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="eval.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a FlexQwen checkpoint")
    parser.add_argument("--dataset", default="carolina_originality", help="folder made by carolina_originality.py")
    parser.add_argument("--split", default="test", help="split of its heldout config")
    parser.add_argument("--modes", default=",".join(bits_per_byte.MODES), help="comma-separated")
    parser.add_argument("--documents", type=int, default=500, help="documents scored, at most")
    parser.add_argument("--output", help="folder to write; by default eval-<checkpoint> beside the checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace results made otherwise")
    args = parser.parse_args(argv)
    model_folder = Path(args.model)
    if not (model_folder / "model.safetensors").is_file():
        raise InputError(f"no checkpoint in {model_folder}: model.safetensors is missing")
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "flexqwen":
        raise InputError(f"{model_folder} holds a {config.get('model_type')} model; only FlexQwen is scored so far")
    if args.documents < 1:
        raise InputError(f"--documents is {args.documents}; it must be at least 1")
    modes = args.modes.split(",")
    if unknown := set(modes) - set(bits_per_byte.MODES):
        raise InputError(f"unknown mode {unknown.pop()!r}; allowed: {', '.join(bits_per_byte.MODES)}")
    output = Path(args.output) if args.output else model_folder.parent / f"eval-{model_folder.name}"
    made_by = {
        "model_digest": file_digest(model_folder / "model.safetensors"),
        "dataset_digest": dataset_digest(args.dataset),
        "split": args.split,
        "modes": modes,
        "documents": args.documents,
        "versions": versions("torch", "transformers", "tokenizers", "numpy"),
    }
    results_file = output / "results.json"
    if results_file.is_file():
        results = json.loads(results_file.read_text(encoding="utf-8"))
        if results["made_by"] == made_by:
            print(f"evaluation: {results_file} is already there, of the same checkpoint, data and settings; reused")
        elif not args.overwrite:
            raise InputError(f"{output} holds results made otherwise; pass --overwrite or another --output")
        else:
            results = None
    else:
        results = None
    if results is None:
        results = {"model": str(model_folder), "made_by": made_by, "results": evaluate(args, modes)}
        write_json(results_file, results)
        plots.bits_per_byte(results, output / "bits_per_byte.png")
    print(table(results["results"]))
    print(f"results: {results_file}\nfigure:  {output / 'bits_per_byte.png'}")


def evaluate(args, modes: list[str]) -> list[dict]:
    """One row a mode, as it stands in results.json."""
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)  # what training made rows of
    text = bits_per_byte.held_out(args.dataset, args.split, tokenizer, length, args.documents)
    baseline = bits_per_byte.summarize(bits_per_byte.unigram(args.dataset, tokenizer, text), text)
    rows = []
    for mode in tqdm(modes, desc="modes"):
        summary = bits_per_byte.summarize(bits_per_byte.score(model, text, mode, progress=True), text)
        rows.append(
            {
                "task": "bits_per_byte",
                "split": args.split,
                "mode": mode,
                **summary,
                "unigram_loss": baseline["loss"],
                "unigram_bits_per_byte": baseline["bits_per_byte"],
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| held-out text | documents | tokens | loss (nats/token) | unigram | bits per byte | unigram |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        loss, bits = (
            f"{row[name]:.3f} [{row[name + '_interval'][0]:.3f}, {row[name + '_interval'][1]:.3f}]"
            for name in ("loss", "bits_per_byte")
        )
        lines.append(
            f"| {row['split']}, {row['mode']} | {row['documents']:,} | {row['tokens']:,} | {loss} | "
            f"{row['unigram_loss']:.3f} | {bits} | {row['unigram_bits_per_byte']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
