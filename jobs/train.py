# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0", "huggingface_hub==2.4.0",
#   "tokenizers==0.23.3", "safetensors==0.8.0", "numpy==2.4.6", "pyarrow==26.0.1", "lxml==6.1.3", "matplotlib==3.11.2",
#   "tensorboard==2.21.0", "PyYAML==6.0.3", "jinja2==3.1.6", "tqdm==4.70.1", "scipy==1.17.1", "scikit-learn==1.9.1",
#   "seqeval==1.2.2", "conllu==6.0.0", "evaluate==0.4.6", "requests==2.34.2", "pytest==9.2.0", "hypothesis==6.170.15",
# ]
# ///
"""Trains on a rented GPU, from an empty machine to a published model; started again, it resumes.

    hf jobs uv run --flavor h200 --timeout 3h -s HF_TOKEN jobs/train.py --code <git address of FlexQwen> \
        --dataset me/carolina_originality --repo me/flexqwen-small configs/small.yaml [options of train.py]

The GPU's tests come first, then the doctor. The fastest attention that agrees with sdpa is kept for the whole run.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from huggingface_hub import HfApi, hf_hub_download, snapshot_download


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--code", required=True, help="git address, or folder, of FlexQwen")
    parser.add_argument("--dataset", required=True, help="the originality dataset on the Hub")
    parser.add_argument("--repo", required=True, help="where the model is published")
    parser.add_argument("--vocab_size", default="8192")
    args, (config, *options) = parser.parse_known_args()
    code = Path(args.code if Path(args.code).is_dir() else "flexqwen-code").absolute()
    if not code.is_dir():
        subprocess.run(["git", "clone", "--depth", "1", args.code, str(code)], check=True)

    def run(*words: str | Path, **settings) -> subprocess.CompletedProcess:
        print("+", *words, flush=True)
        environment = {**os.environ, "PYTHONPATH": str(code)}
        return subprocess.run([sys.executable, *map(str, words)], check=True, env=environment, **settings)

    if torch.cuda.is_available():
        run("-m", "pytest", "-m", "gpu", code / "tests", "-p", "no:cacheprovider")
    config = str(code / config)
    api, kept = HfApi(), ("attn_implementation", "torch_compile")
    files = api.list_repo_files(args.repo) if api.repo_exists(args.repo) else []
    before = [file for file in files if file.endswith("/config.yaml")]
    if before:  # a run that is resumed goes on as it began
        given = yaml.safe_load(Path(hf_hub_download(args.repo, before[0])).read_text())
        fastest = [word for name in kept if name in given for word in (f"--{name}", str(given[name]).lower())]
    else:
        said = run("-m", "flexqwen", "doctor", config, *options, stdout=subprocess.PIPE, text=True).stdout
        print(said, flush=True)
        fastest = re.search("fastest here: (.*)", said)[1].split()
    dataset = snapshot_download(args.dataset, repo_type="dataset")
    run("-m", "flexqwen", "tokenizer", "--dataset", dataset, "--vocab_size", args.vocab_size, "--output", "tokenizer")
    place = ["--dataset", args.dataset, "--tokenizer", "tokenizer", "--output_dir", "runs", "--token_stores", "tokens"]
    run(code / "train.py", config, *fastest, *options, *place, "--push_to_hub", "true", "--hub_model_id", args.repo)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(error.returncode)
