"""Checkpoints that are not to be trusted: their code is not run, their weights are looked at."""

import contextlib
import json
import os
import re
import resource
import shutil
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import eval as evaluation
from configuration_flexqwen import AUTO_MAP
from flexqwen import loading
from flexqwen.cli import InputError
from flexqwen.data.tokenizer import adapt_tokenizer
from flexqwen.evaluation import finetuning, likelihood
from flexqwen.evaluation.tasks import Context
from flexqwen.hub.export import export
from flexqwen.hub.export import main as export_main
from flexqwen.training.arguments import ModelArguments
from flexqwen.training.model import build_model
from flexqwen.training.objectives import ObjectiveArguments
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForSequenceClassification
from tests.helpers.tiny import make_model, make_qwen3

CODE = """
from pathlib import Path
from transformers import AutoModel, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Model
Path({marker!r}).touch()
class Config(Qwen3Config):
    model_type = "foreign"
class Model(Qwen3Model):
    config_class = Config
AutoModel.register(Config, Model)
class CausalLM(Qwen3ForCausalLM):
    config_class = Config
class Classifier(Qwen3ForSequenceClassification):
    config_class = Config
"""
FOREIGN_MAP = {
    "AutoConfig": "foreign.Config",
    "AutoModelForCausalLM": "foreign.CausalLM",
    "AutoModelForSequenceClassification": "foreign.Classifier",
}


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A FlexQwen, not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    make_model(vocab_size=len(tokenizer), max_position_embeddings=48).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What foreign code writes when it is run. No line of it, nor the network, is asked for here."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "was_run"
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def change_config(folder, file="config.json", **changes):
    config = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(config))


def spoil(folder, marker):
    """Every file of code in the folder, and some new ones, write the marker."""
    (folder / "foreign.py").write_text(CODE.format(marker=str(marker)))
    for file in folder.glob("*_flexqwen.py"):
        file.write_text(f"open({str(marker)!r}, 'w')\n" + file.read_text())
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(marker)!r}, 'w')\ndef generate(): pass\n")


def build(checkpoint):
    tokenizer = loading.load(AutoTokenizer, checkpoint, model_max_length=48)
    model = ModelArguments(model_name_or_path=str(checkpoint))
    return build_model(model, ObjectiveArguments(), tokenizer)


def fine_tuned(checkpoint, **changes):
    context = Context(max_length=32, **changes)
    tokenizer = finetuning.load_tokenizer(str(checkpoint), context)
    head = finetuning.Head(AutoModelForSequenceClassification, {"num_labels": 2})
    return finetuning.load_model(str(checkpoint), head, tokenizer, context.trust_remote_code)


def exported(checkpoint):
    export(checkpoint, checkpoint.parent / "exported")


def scored(checkpoint):
    return likelihood.load(str(checkpoint))


EVERY_WAY = [scored, fine_tuned, build, exported]


@pytest.mark.parametrize(
    "auto_map",
    [AUTO_MAP, FOREIGN_MAP, dict.fromkeys(AUTO_MAP, "other/repo--modeling.Class")],
    ids=["its own", "another's", "elsewhere"],
)
def test_a_flexqwen_is_loaded_without_its_code(checkpoint, marker, monkeypatch, capsys, auto_map):
    spoil(checkpoint, marker)
    change_config(checkpoint, auto_map=auto_map)
    asked = []
    monkeypatch.setattr("transformers.dynamic_module_utils.cached_file", lambda *args, **_: asked.append(args))
    monkeypatch.setattr("builtins.input", lambda *args: asked.append(args))
    assert type(likelihood.load(str(checkpoint), trust_remote_code=True).model) is FlexQwenForCausalLM
    assert type(scored(checkpoint).model) is FlexQwenForCausalLM
    assert type(fine_tuned(checkpoint)) is FlexQwenForSequenceClassification
    assert build(checkpoint).config.auto_map == AUTO_MAP  # so that what is trained from it is not spoilt either
    exported(checkpoint)
    with pytest.raises(InputError):
        adapt_tokenizer(str(checkpoint))  # which has other tokens
    assert not asked and not marker.exists() and "is run" not in capsys.readouterr().err


@pytest.mark.parametrize("load", [likelihood.load, lambda path, **trust: fine_tuned(path, **trust)])
def test_foreign_code_is_run_only_when_asked_for_and_that_is_said(checkpoint, marker, capsys, load):
    make_qwen3(make_model(vocab_size=len(AutoTokenizer.from_pretrained(checkpoint)))).save_pretrained(checkpoint)
    spoil(checkpoint, marker)
    change_config(checkpoint, model_type="foreign", auto_map=FOREIGN_MAP, max_position_embeddings=48)
    with pytest.raises(InputError, match="--trust_remote_code") as caught:
        load(str(checkpoint))
    assert "\n" not in str(caught.value) and "eval.py" not in str(caught.value) and not marker.exists()
    load(str(checkpoint), trust_remote_code=True)
    assert marker.exists() and capsys.readouterr().err.count("is run (--trust_remote_code)") == 1


def test_code_that_the_check_of_shapes_runs_is_said_too(checkpoint, marker, capsys):
    make_qwen3(make_model(vocab_size=len(AutoTokenizer.from_pretrained(checkpoint)))).save_pretrained(checkpoint)
    spoil(checkpoint, marker)
    change_config(checkpoint, model_type="qwen3", auto_map={"AutoModelForCausalLM": "foreign.CausalLM"})
    loading.check_shapes(AutoModelForCausalLM, checkpoint, trust_remote_code=True)
    assert marker.exists() and capsys.readouterr().err.count("is run (--trust_remote_code)") == 1


def test_eval_runs_foreign_code_only_with_its_option(checkpoint, marker, capsys):
    make_qwen3(make_model(vocab_size=len(AutoTokenizer.from_pretrained(checkpoint)))).save_pretrained(checkpoint)
    spoil(checkpoint, marker)
    change_config(checkpoint, model_type="foreign", auto_map=FOREIGN_MAP, max_position_embeddings=48)
    command = ["--model", str(checkpoint), "--dataset", str(checkpoint)]
    for options, was_run in ([], False), (["--trust_remote_code"], True):
        with pytest.raises(SystemExit):
            evaluation.main([*command, *options])
        error = capsys.readouterr().err.splitlines()[-1]
        assert ("--trust_remote_code" in error) == (not was_run) == (not marker.exists())


def test_a_tokenizer_with_code_is_refused(checkpoint, marker, monkeypatch):
    spoil(checkpoint, marker)
    change_config(
        checkpoint,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "foreign.X"]},
        tokenizer_class="X",
    )
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    for load in (scored, fine_tuned, lambda folder: loading.load(AutoTokenizer, folder)):
        with pytest.raises(InputError, match="--trust_remote_code"):
            load(checkpoint)
    with pytest.raises(InputError):
        adapt_tokenizer(str(checkpoint))
    assert not marker.exists()


def edit(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


DOWN = "model.layers.1.mlp.down_proj.weight"
DAMAGES = {
    "missing": (lambda weights: weights.pop(DOWN), f"lacks weights of .*: {DOWN};"),
    "shape": (
        lambda weights: weights.update({DOWN: torch.zeros(32, 63)}),
        f"other shapes than those of .*: {DOWN};",
    ),
    "unexpected": (
        lambda weights: weights.update({DOWN.replace("1", "7"): torch.zeros(3)}),
        f"has weights that do not exist in .*: {DOWN.replace('1', '7')}; bring",
    ),
    "nan": (lambda weights: weights[DOWN][0, :2].fill_(torch.nan), f"NaN or infinity in weights of .*: {DOWN};"),
    "infinity": (lambda weights: weights[DOWN][3].fill_(torch.inf), f"NaN or infinity in weights of .*: {DOWN};"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("load", EVERY_WAY)
def test_weights_that_are_not_the_models_are_refused_by_name(checkpoint, load, damage):
    change, message = DAMAGES[damage]
    edit(checkpoint, change)
    with pytest.raises(InputError, match=rf"{re.escape(str(checkpoint))}/model\.safetensors .*{message}"):
        load(checkpoint)
    assert not (checkpoint.parent / "exported").exists()


def test_only_files_of_weights_and_the_tokenizer_tell_a_checkpoint_from_another(checkpoint):
    digests = loading.digest_checkpoint(checkpoint)
    (checkpoint / "training_args.bin").write_bytes(b"a pickle that nobody reads")
    assert loading.digest_checkpoint(checkpoint) == digests
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin"):
        (checkpoint / name).write_bytes(b"weights")
    assert len(loading.digest_checkpoint(checkpoint)) == len(digests) + 2


def test_a_head_is_strange_only_where_no_new_one_is_made(checkpoint):
    edit(checkpoint, lambda weights: weights.update({"score.bias": torch.zeros(2)}))
    fine_tuned(checkpoint)
    for load in (scored, build, exported):
        with pytest.raises(InputError, match=r"weights that do not exist in .*: score\.bias"):
            load(checkpoint)


@pytest.mark.parametrize("load", EVERY_WAY)
@pytest.mark.parametrize("size", [0, 5, 1000, -100])
def test_a_damaged_file_is_one_line(checkpoint, load, size):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match=rf"{re.escape(str(file))} is damaged") as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "flexqwen", "hidden_size": "many"}'])
def test_a_damaged_config_is_one_line(checkpoint, config, capsys):
    (checkpoint / "config.json").write_text(config)
    commands = [(evaluation.main, ["--model", str(checkpoint)])]
    commands += [(export_main, [str(checkpoint), str(checkpoint.parent / "exported")])]
    for main, argv in commands:
        with pytest.raises(SystemExit):
            main(argv)
        assert str(checkpoint) in (error := capsys.readouterr().err) and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 1_000_000}, "has weights in other shapes than those of"),
        ({"vocab_size": 10**12}, "has weights in other shapes than those of"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; at most"),
        ({"num_hidden_layers": 900, "layer_types": None, "intermediate_size": 10**6}, "in other shapes"),
    ],
)
@pytest.mark.parametrize("load", EVERY_WAY)
def test_a_config_of_a_larger_model_is_refused_before_it_takes_memory(checkpoint, load, change, message):
    change_config(checkpoint, max_position_embeddings=48, **change)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message):
        load(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB
    assert time.monotonic() - start < 20


def test_weights_of_other_names_do_not_let_a_large_model_be_made(checkpoint):
    edit(checkpoint, lambda weights: [weights.update({f"x.{name}": weights.pop(name)}) for name in list(weights)])
    change_config(checkpoint, hidden_size=1_000_000)
    with pytest.raises(InputError, match=r"has \d[\d,]+ weights, and config\.json describes a model of [\d,]+"):
        scored(checkpoint)


@pytest.mark.parametrize("load", EVERY_WAY)
def test_no_default_stands_in_for_a_config_that_is_not_there(checkpoint, load):
    (checkpoint / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load(checkpoint)


@pytest.mark.parametrize("vocabulary", ["empty", "larger"])
@pytest.mark.parametrize("load", [scored, fine_tuned])
def test_a_tokenizer_of_no_tokens_or_too_many_is_refused(checkpoint, load, vocabulary):
    made = json.loads((checkpoint / "tokenizer.json").read_text())
    if vocabulary == "empty":
        made["model"] |= {"vocab": {}, "merges": []}
    else:
        made["model"]["vocab"]["São"] = 10**6
    (checkpoint / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(InputError):
        load(checkpoint)


def test_a_new_model_larger_than_the_machine_is_refused(tokenizer):
    for shape in ({"hidden_size": 10**6}, {"num_hidden_layers": 10**9}):
        with pytest.raises(InputError, match="the model cannot be made"):
            build_model(ModelArguments(**shape), ObjectiveArguments(), tokenizer)


def test_a_new_model_leaves_room_for_its_gradients(tokenizer, monkeypatch):
    shape = ModelArguments(hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    weights = build_model(shape, ObjectiveArguments(), tokenizer).num_parameters()
    for bytes_each in (8, 7):
        pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": bytes_each * weights}
        monkeypatch.setattr(os, "sysconf", pages.__getitem__)
        with contextlib.nullcontext() if bytes_each == 8 else pytest.raises(InputError, match="this machine has"):
            build_model(shape, ObjectiveArguments(), tokenizer)
