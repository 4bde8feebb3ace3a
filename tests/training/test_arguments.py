"""Configs: what stands in YAML and on the command line, and what is wrong with it, in one line."""

from pathlib import Path

import pytest

from flexqwen.cli import InputError
from flexqwen.training.arguments import as_dict, parse

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
    ],
)
def test_a_bad_config_is_named_with_its_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse([write(tmp_path, text), "--output_dir", str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_bad_options_are_named(tmp_path):
    with pytest.raises(InputError, match="--max_stepz; did you mean 'max_steps'"):
        parse(["--max_stepz", "5"])
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        parse([str(tmp_path / "nowhere.yaml")])
