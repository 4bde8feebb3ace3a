# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0", "numpy==2.4.6",
#   "numba==0.68.1", "tokenizers==0.23.3", "safetensors==0.8.0", "huggingface_hub==2.4.0", "pyarrow==26.0.1",
#   "lxml==6.1.3", "tensorboard==2.21.0", "PyYAML==6.0.3", "jinja2==3.1.6", "tqdm==4.70.1", "scipy==1.17.1",
#   "scikit-learn==1.9.1", "matplotlib==3.11.2", "seqeval==1.2.2", "conllu==6.0.0", "evaluate==0.4.6",
#   "requests==2.34.2", "pytest==9.2.0", "hypothesis==6.170.15"]
# ///
"""Trains on a rented GPU: its tests, the doctor, then the fastest attention that agrees with sdpa; publishes, resumes.

    hf jobs uv run --flavor h200 --timeout 3h -s HF_TOKEN jobs/train.py --code <git address of FlexQwen> \
        --dataset me/carolina_originality --repo me/flexqwen-small configs/small.yaml [options of train.py]
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

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for name in ("--code", "--dataset", "--repo"):
    parser.add_argument(name, required=True)
parser.add_argument("--vocab_size", default="8192")
parser.add_argument("--hub_token", "--hub-token", type=lambda _: sys.exit("give the token as a secret: -s HF_TOKEN"))
args, (config, *options) = parser.parse_known_args()
code = Path(args.code if Path(args.code).is_dir() else "flexqwen-code").absolute()
if not code.is_dir() and subprocess.run(["git", "clone", "--depth", "1", args.code, str(code)]).returncode:
    sys.exit("git could not fetch the code that --code names")  # not its address, which may hold a password
config, os.environ["PYTHONPATH"] = str(code / config), str(code)


def run(*words: str | Path) -> list[str]:  # what the doctor, if it is run, calls the fastest
    print("+", *words[:3], flush=True)  # options may hold a token
    done = subprocess.run([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return sys.exit(done.returncode) if done.returncode else done.stdout.partition("fastest here: ")[2].split()


if torch.cuda.is_available():
    run("-m", "pytest", code / "tests/training/test_gpu.py", "-m", "gpu", "-k", "not flex", "-p", "no:cacheprovider")
given = yaml.safe_load(Path(config).read_text())
given |= {name.replace("-", "_"): value for name, value in re.findall(r"--([\w-]+)[= ]([^\s-]\S*)", " ".join(options))}
before = f"{given.get('strategy', 'hybrid-shift')}-{given.get('sequence_length', 512)}/config.yaml"
if HfApi().file_exists(args.repo, before):  # a run that is resumed goes on as it began
    earlier = yaml.safe_load(Path(hf_hub_download(args.repo, before)).read_text())
    fastest = [f"--{k}={v}".lower() for k, v in earlier.items() if k in ("attn_implementation", "torch_compile")]
else:
    fastest = run("-m", "flexqwen", "doctor", config, "--vocab_size", args.vocab_size, "--seconds", "2", *options)
dataset, checkpoint = snapshot_download(args.dataset, repo_type="dataset"), given.get("model_name_or_path")
how = ["--adapt", checkpoint] if checkpoint else ["--dataset", dataset, "--vocab_size", args.vocab_size]
run("-m", "flexqwen", "tokenizer", *how, "--output", "tokenizer")
place = f"--dataset {args.dataset} --tokenizer tokenizer --output_dir runs --token_stores tokens --push_to_hub true"
words = [code / "train.py", config, *fastest, *options, *place.split(), "--hub_model_id", args.repo]
os.execv(sys.executable, [sys.executable, *map(str, words)])  # so that it hears SIGTERM
