"""train.py and eval.py on the sample dataset, as their user runs them, and what comes out."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import eval as evaluation
import train
from flexqwen.data import tokenizer as tokenizer_module
from flexqwen.data.tokenizer import QWEN3_ROLES
from flexqwen.training import trainer
from modeling_flexqwen import FlexQwenForMaskedLM
from tests.helpers.figures import rendered_figures
from tests.helpers.runs import options as tiny_options
from tests.helpers.tiny import SHAPE

STEPS = 60
CONFIG = """
hidden_size: 64
intermediate_size: 128
num_hidden_layers: 2
num_attention_heads: 2
num_key_value_heads: 1
head_dim: 32
sequence_length: 64
eval_documents: 10
per_device_train_batch_size: 16
learning_rate: 1.0e-2
max_steps: {steps}
warmup_steps: 5
logging_steps: 5
eval_strategy: steps
eval_steps: 20
save_steps: 20
use_cpu: true
"""


@pytest.fixture(scope="module")
def run(built, tokenizer_folder, tmp_path_factory):
    """Trains, with the given options, and returns the run's folder."""

    def make(*options, root=None):
        root = root or tmp_path_factory.mktemp("runs")
        (root / "config.yaml").write_text(CONFIG.format(steps=STEPS))
        places = ["--dataset", str(built), "--tokenizer", str(tokenizer_folder), "--output_dir", str(root)]
        train.main([str(root / "config.yaml"), *places, "--token_stores", str(root / "tokens"), *options])
        return next(path.parent for path in root.glob("*/run.json"))

    return make


@pytest.fixture(scope="module")
def finished(run):
    with rendered_figures():
        return run()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, two: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_what_its_page_says(finished):
    assert finished.name == "hybrid-shift-64"
    names = {path.name for path in finished.iterdir()}
    assert {"run.json", "config.yaml", "metrics.jsonl", "logs", "loss.png", "best", "finished.json"} <= names
    assert {f"step_{step:06d}" for step in (20, 40, 60)} <= names
    assert min((finished / f"loss.{kind}").stat().st_size for kind in ("png", "pdf")) > 5000
    assert not [name for name in names if "checkpoint" in name or "partial" in name]
    assert not list(finished.joinpath("best").glob("*.bin"))
    assert json.loads((finished / "best" / "config.json").read_text())["use_cache"]  # which the Trainer sets False
    assert list(finished.joinpath("logs").glob("events*"))
    description = json.loads((finished / "run.json").read_text())
    assert description["settings"]["max_steps"] == STEPS and description["versions"]["torch"]
    assert {"dataset", "tokenizer"} <= description["digests"].keys()


def test_both_losses_fall_below_the_unigram_baseline(finished, built, capsys, rendered):
    evaluation.main(["--model", str(finished / "best"), "--dataset", str(built)])
    printed = capsys.readouterr().out
    results = json.loads((finished / "eval-best" / "results.json").read_text())["results"]
    assert [(row["mode"], row["metric"]) for row in results] == [
        (mode, metric) for mode in ("causal", "masked") for metric in ("loss", "bits_per_byte")
    ]
    for row in results:
        assert row["baseline_name"] == "unigram"
        assert row["interval"][0] < row["value"] < row["interval"][1] and row["value"] < row["baseline"]
        assert row["metric"] != "loss" or row["interval"][1] < row["baseline"]
        assert f"{row['value']:.3f}" in printed and f"{row['baseline']:.3f}" in printed
    assert (finished / "eval-best" / "bits_per_byte.png").stat().st_size > 1000
    evaluation.main(["--model", str(finished / "best"), "--dataset", str(built)])
    assert "reused" in capsys.readouterr().out


def test_best_is_the_checkpoint_with_the_lowest_held_out_loss(finished):
    losses = {entry["step"]: entry["eval_loss"] for entry in metrics(finished) if "eval_loss" in entry}
    assert list(losses) == [20, 40, 60]
    best = min(losses, key=losses.get)
    assert same_weights(finished / "best", finished / f"step_{best:06d}")
    assert json.loads((finished / "finished.json").read_text())["best_loss"] == losses[best]


def test_running_again_changes_nothing_and_says_so(finished, run, capsys):
    before = (finished / "best" / "model.safetensors").stat().st_mtime_ns
    run(root=finished.parent)
    assert "already finished" in capsys.readouterr().out
    assert (finished / "best" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused_by_name_and_leave_the_run_alone(finished, run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--learning_rate", "0.02", root=finished.parent)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "learning_rate: 0.01 -> 0.02" in error and "--overwrite" in error and error.count("\n") == 1
    assert (finished / "finished.json").is_file()


def test_an_interrupted_run_goes_on_to_the_same_weights(finished, run, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    save = trainer.FlexQwenTrainer._save_checkpoint

    def save_and_stop(self, *args):
        save(self, *args)
        if self.state.global_step == 20:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(trainer.FlexQwenTrainer, "_save_checkpoint", save_and_stop)
        with pytest.raises(Interrupted):
            run(root=tmp_path)
    folder = run(root=tmp_path)
    assert same_weights(folder / "step_000060", finished / "step_000060")
    assert same_weights(folder / "best", finished / "best")


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, built, tokenizer_folder, capsys):
    def fails(*options):
        with pytest.raises(SystemExit) as stopped:
            train.main([*options, "--output_dir", str(tmp_path / "runs"), "--max_steps", "1"])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "runs").exists()
        return error

    tokenizer = ("--tokenizer", str(tokenizer_folder))
    assert "flexqwen tokenizer" in fails("--dataset", str(built), "--tokenizer", str(tmp_path))
    assert "carolina_originality.py build" in fails("--dataset", str(tmp_path), *tokenizer)
    assert "causal_fraction is 2" in fails("--causal_fraction", "2", "--dataset", str(built), *tokenizer)
    heads = ("--num_attention_heads", "4", "--num_key_value_heads", "3", "--token_stores", str(tmp_path / "tokens"))
    assert "must be a multiple" in fails("--dataset", str(built), *tokenizer, *heads)
    with pytest.raises(SystemExit) as stopped:
        evaluation.main(["--model", str(tmp_path)])
    assert stopped.value.code == 2 and "model.safetensors" in capsys.readouterr().err


PIPELINES = """
import json, sys
from transformers import pipeline
fill = pipeline("fill-mask", sys.argv[1], trust_remote_code=True)
write = pipeline("text-generation", sys.argv[1], trust_remote_code=True)
guesses = fill("A cidade de <mask> fica no Brasil.", top_k=3)
print(json.dumps([[guess["score"] for guess in guesses], write("A cidade", max_new_tokens=5)[0]["generated_text"]]))
"""


def test_pipelines_work_on_the_checkpoint_alone(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PIPELINES, str(finished / "best")],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    scores, written = json.loads(done.stdout.splitlines()[-1])
    assert 1 >= scores[0] >= scores[1] >= scores[2] > 0
    assert written.startswith("A cidade") and len(written) > len("A cidade")


def test_training_goes_on_from_a_qwen3_checkpoint(built, tmp_path, capsys, caplog, monkeypatch):
    """With the tokenizer that was adapted from it."""
    vocabulary = [*QWEN3_ROLES.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({token: number for number, token in enumerate(vocabulary)}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    plain.add_special_tokens(list(QWEN3_ROLES.values()))
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(tmp_path / "qwen3")
    config = Qwen3Config(**{**SHAPE, "vocab_size": 300, "max_position_embeddings": 64})
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "qwen3")

    adapt = ["--adapt", str(tmp_path / "qwen3"), "--output", str(tmp_path / "tokenizer")]
    tokenizer_module.main(adapt)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert {role: getattr(tokenizer, f"{role}_token") for role in QWEN3_ROLES} == QWEN3_ROLES
    assert tokenizer("ab").input_ids == [1, vocabulary.index("a"), vocabulary.index("b")]
    options = tiny_options(built, tmp_path / "tokenizer", tmp_path / "runs", max_steps=3)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    train.main([*options, "--model_name_or_path", str(tmp_path / "qwen3")])
    assert "of type" not in caplog.text  # transformers warns of a Qwen3 that becomes a FlexQwen
    best = tmp_path / "runs" / "hybrid-shift-64" / "best"
    trained = FlexQwenForMaskedLM.from_pretrained(best)
    assert trained.config.mask_token_id == 3 and trained.dtype == torch.float32
    with pytest.raises(SystemExit):
        train.main([*options, "--model_name_or_path", str(best), "--tokenizer", str(built)])
    assert "no tokenizer" in capsys.readouterr().err
