"""A run that is killed, stopped or changed, and goes on."""

import json
import os
import random
import signal
import time

import pytest

from flexqwen.training.objectives import STRATEGIES
from flexqwen.training.runs import differences
from tests.helpers.runs import logged, options, run, same_weights, start, wait_for_step


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(built, tokenizer_folder, place):
    """The folder of an uninterrupted run of a strategy."""
    finished = {}

    def make(strategy):
        if strategy not in finished:
            root = place / f"whole-{strategy}"
            assert run(options(built, tokenizer_folder, root, strategy=strategy), place / "log") == 0
            finished[strategy] = root / f"{strategy}-64"
        return finished[strategy]

    return make


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_killed_three_times_ends_as_if_it_had_not_been(strategy, built, tokenizer_folder, place, whole):
    expected = whole(strategy)
    root = place / f"killed-{strategy}"
    arguments, folder = options(built, tokenizer_folder, root, strategy=strategy), root / f"{strategy}-64"
    rng, kills = random.Random(strategy), 0
    for step in sorted(rng.sample(range(2, 12), 3)):
        process = start(arguments, place / "log")
        wait_for_step(folder, step, process)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        for checkpoint in folder.glob("step_*"):
            assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(os.listdir(checkpoint))
    assert kills >= 2
    assert run(arguments, place / "log") == 0
    assert same_weights(folder / "step_000012", expected / "step_000012")
    assert same_weights(folder / "best", expected / "best")
    assert logged(folder) == logged(expected)
    assert not [path for path in folder.iterdir() if "checkpoint-" in path.name or "partial" in path.name]


def test_ctrl_c_saves_and_exits(built, tokenizer_folder, place, whole):
    root, output = place / "stopped", place / "stopped-log"
    arguments, folder = options(built, tokenizer_folder, root), root / "hybrid-shift-64"
    process = start(arguments, output)
    wait_for_step(folder, 4, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    (last,) = (line for line in output.read_text().splitlines() if line.startswith("stopped at step"))
    assert "the same command goes on" in last and "Traceback" not in output.read_text()
    saved = max(folder.glob("step_*"))
    assert str(saved) in last and int(last.split()[3].rstrip(":")) == int(saved.name[5:]) < 12
    assert run(arguments, output) == 0
    assert same_weights(folder / "step_000012", whole("hybrid-shift") / "step_000012")
    assert logged(folder) == logged(whole("hybrid-shift"))


def test_changed_settings_are_refused_unless_told(built, tokenizer_folder, place):
    root, output = place / "changed", place / "changed-log"
    folder = root / "hybrid-shift-64"
    process = start(options(built, tokenizer_folder, root), output)
    wait_for_step(folder, 6, process)
    process.kill()
    process.join()
    changed = options(built, tokenizer_folder, root, learning_rate=0.02)
    assert run(changed, output) == 2
    assert "learning_rate: 0.01 -> 0.02" in output.read_text() and "--resume_changed" in output.read_text()
    assert run([*changed, "--resume_changed"], output) == 0
    assert "going on from step_" in output.read_text()
    assert json.loads((folder / "run.json").read_text())["settings"]["learning_rate"] == 0.02
    steps = [entry["step"] for entry in logged(folder)]
    assert steps == sorted(steps) and steps[-1] == 12


def test_phases_muon_and_accumulation_go_on_exactly(built, tokenizer_folder, place):
    phases = ['{"until": 0.5, "sequence_length": 16, "batch_fraction": 0.5}', '{"sequence_length": 64}']
    changes = {"phases": phases, "muon": True, "gradient_accumulation_steps": 2, "save_total_limit": 2}
    root = place / "phases"
    arguments = options(built, tokenizer_folder, root / "a", **changes, token_stores=place / "tokens")
    assert run(arguments, place / "log") == 0
    expected = root / "a" / "hybrid-shift-64"
    assert sorted(path.name for path in expected.glob("step_*")) == ["step_000009", "step_000012"]
    tokens = {entry["step"]: entry["tokens_seen"] for entry in logged(expected)}
    assert tokens[6] == 6 * 512 and tokens[12] == 6 * 512 + 6 * 1024
    arguments = options(built, tokenizer_folder, root / "b", **changes, token_stores=place / "tokens")
    for step in (4, 8):
        process = start(arguments, place / "log")
        wait_for_step(root / "b" / "hybrid-shift-64", step, process)
        process.kill()
        process.join()
    assert run(arguments, place / "log") == 0
    assert same_weights(root / "b" / "hybrid-shift-64" / "step_000012", expected / "step_000012")
    assert logged(root / "b" / "hybrid-shift-64") == logged(expected)


def test_a_run_killed_before_its_first_log_goes_on(built, tokenizer_folder, place):
    root, output = place / "early", place / "early-log"
    arguments = options(built, tokenizer_folder, root, save_steps=1, logging_steps=10, eval_steps=100)
    process = start(arguments, output)
    while process.is_alive() and not (root / "hybrid-shift-64" / "step_000002").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert run(arguments, output) == 0 and "going on from step_" in output.read_text()


def test_the_config_of_a_run_makes_it_again(built, tokenizer_folder, place, whole):
    expected = whole("hybrid-shift")
    output = place / "again-log"
    arguments = [str(expected / "config.yaml"), "--output_dir", str(place / "again")]
    assert run(arguments, output) == 0, output.read_text()
    assert same_weights(place / "again" / "hybrid-shift-64" / "step_000012", expected / "step_000012")
    before, after = (
        json.loads((folder / "run.json").read_text()) for folder in (expected, place / "again" / "hybrid-shift-64")
    )
    assert differences(before, after) == []
