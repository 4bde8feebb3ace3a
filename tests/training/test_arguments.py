"""Configs: what stands in YAML and on the command line, and what is wrong with it, in one line."""

from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from flexqwen.cli import InputError, redact
from flexqwen.training.arguments import TrainingArguments, as_dict, check, fix_training_arguments, parse
from flexqwen.training.runs import describe_run, write_description

CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if "study" not in path.stem)


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_command_line_wins_over_the_file(tmp_path):
    config = write(tmp_path, f"output_dir: {tmp_path}\nlearning_rate: 1e-3\nmax_steps: 7\nbf16: false\n")
    arguments = parse([config, "--max_steps", "9", "--strategy", "baseline-masked"])
    assert arguments.training.max_steps == 9
    assert arguments.training.learning_rate == 1e-3
    assert arguments.objective.strategy == "baseline-masked"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_read(config):
    settings = as_dict(parse([str(config), "--use_cpu", "true"]))
    assert settings["strategy"] in ("hybrid-shift", "baseline-causal", "baseline-masked")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 1", "config .*config.yaml: unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        ("max_steps: many", "config .*config.yaml: argument --max_steps.*invalid int value: 'many'"),
        ("strategy: hybrid", "strategy is 'hybrid'; allowed: baseline-causal"),
        ("- a\n- b", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("seed: 1\nmax_steps: 2\nseed: 3", "not valid YAML: the key 'seed' stands there twice"),
        ("bf16: maybe", "config .*config.yaml: argument --bf16"),
        ("phases: " + "[" * 5000, "values within values"),
        ("seed: 1" + " " * 300_000, "more than 262,144 characters"),
        ("seed: &a 1\nmax_steps: *a", "it has an alias"),
    ],
)
def test_a_bad_config_is_named_with_its_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse([write(tmp_path, text), "--output_dir", str(tmp_path)])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_config_for_a_gpu_is_refused_where_torch_finds_none():
    with pytest.raises(InputError, match="finds none; look at nvidia-smi and the driver, or pass --use_cpu true"):
        check(parse(["--attn_implementation", "varlen"]))
    check(parse(["--attn_implementation", "varlen", "--use_cpu", "true"]))


@pytest.mark.parametrize("is_gpu", [True, False])
def test_batches_go_to_a_gpu_while_it_computes(is_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: is_gpu)
    training = TrainingArguments("unused", use_cpu=True, report_to="none")
    training.dataloader_pin_memory = True  # the default where a GPU is used
    fix_training_arguments(training, tmp_path)
    assert training.dataloader_pin_memory == training.accelerator_config.non_blocking == is_gpu


def test_bf16_without_a_gpu_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="bf16 needs a CUDA GPU"):
        parse(["--bf16", "true"])


def test_fsdp_is_refused_where_torch_has_it_but_in_part(monkeypatch):
    args = parse(["--use_cpu", "true", "--fsdp"])
    monkeypatch.setattr("torch.__version__", TorchVersion("2.13.0"))
    check(args)
    monkeypatch.setattr("torch.__version__", TorchVersion("2.11.0+cu130"))
    with pytest.raises(InputError, match=r"--fsdp needs torch 2\.13, and this is 2\.11\.0\+cu130; leave it out"):
        check(args)


def test_bad_options_are_named(tmp_path):
    with pytest.raises(InputError, match="--max_stepz; did you mean 'max_steps'"):
        parse(["--max_stepz", "5"])
    with pytest.raises(InputError, match="--hub_tokn; did you mean 'hub_token'"):
        parse(["--hub-tokn=hf_secret"])
    with pytest.raises(InputError, match="unknown option <hidden>"):
        parse(["--hub_token", "secret", "hf_secret"])
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        parse([str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize(
    ("option", "value"),
    [("auto_find_batch_size", "true"), ("label_smoothing_factor", "0.1"), ("save_only_model", "true")],
)
def test_options_that_cannot_be_kept_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} is set"):
        check(parse([f"--{option}", value, "--use_cpu", "true"]))


def test_options_with_dashes_are_the_same_options(tmp_path):
    """The config.yaml of a run makes it again, whichever way its options were written."""
    command = ["--max-steps", "9", "--learning-rate=1e-3", "--no-tie-word-embeddings", "--output-dir", str(tmp_path)]
    arguments = parse([*command, "--report-to", "none"])
    assert arguments.given == ["max_steps", "learning_rate", "tie_word_embeddings", "output_dir", "report_to"]
    write_description(tmp_path, {"settings": as_dict(arguments), "given": arguments.given})
    assert as_dict(parse([str(tmp_path / "config.yaml")])) == as_dict(arguments)


@pytest.mark.parametrize("option", ["--hub_token", "--hub-token"])
@pytest.mark.parametrize("token", ["hf_secret", "secret"])
@pytest.mark.parametrize("joined", [False, True])
def test_no_token_is_recorded(built, tokenizer_folder, tmp_path, option, token, joined):
    command = [
        "--tokenizer",
        str(tokenizer_folder),
        "--output_dir",
        str(tmp_path),
        *([f"{option}={token}"] if joined else [option, token]),
        "--seed",
        "3",
    ]
    arguments = parse(command)
    assert arguments.training.hub_token == token
    write_description(tmp_path, describe_run(arguments, str(built), command))
    assert not [path for path in tmp_path.iterdir() if "secret" in path.read_text()]
    assert redact(command)[:4] == command[:4] and redact(command)[-2:] == ["--seed", "3"]
    assert redact(["--dataset", "https://hf_secret@hub"]) == ["--dataset", "https://<hidden>@hub"]
    assert redact(["https://me:secret@hub/org/x"]) == ["https://<hidden>@hub/org/x"]
    assert redact(["hf://datasets/org/x@main"]) == ["hf://datasets/org/x@main"]
    assert redact(["/data/hf_models/bert is not there"]) == ["/data/hf_models/bert is not there"]
