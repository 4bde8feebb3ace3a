"""A run that is killed, stopped or changed, and goes on."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

import train
from flexqwen.files import file_digest
from flexqwen.training import callbacks
from flexqwen.training.checkpoints import find_defect, link_best
from flexqwen.training.objectives import STRATEGIES
from flexqwen.training.runs import differences
from tests.helpers.runs import logged, options, run, same_weights, start, wait_for_step


def strategy_options(strategy):
    """What a run of a strategy is told; alternating needs more than one pass over the data."""
    return {"strategy": strategy, **({"per_device_train_batch_size": 128} if strategy == "alternating" else {})}


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
            assert run(options(built, tokenizer_folder, root, **strategy_options(strategy)), place / "log") == 0
            finished[strategy] = root / f"{strategy}-64"
        return finished[strategy]

    return make


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_killed_three_times_ends_as_if_it_had_not_been(strategy, built, tokenizer_folder, place, whole):
    expected = whole(strategy)
    root = place / f"killed-{strategy}"
    arguments = options(built, tokenizer_folder, root, **strategy_options(strategy))
    folder = root / f"{strategy}-64"
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
    for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal and torchrun do; a person's second comes later
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    (last,) = (line for line in output.read_text().splitlines() if line.startswith("stopped at step"))
    assert "the same command resumes it" in last and "Traceback" not in output.read_text()
    saved = max(folder.glob("step_*"))
    assert str(saved) in last and int(last.split()[3].rstrip(":")) == int(saved.name[5:]) < 12
    assert run(arguments, output) == 0
    assert same_weights(folder / "step_000012", whole("hybrid-shift") / "step_000012")
    assert logged(folder) == logged(whole("hybrid-shift"))


def test_a_tee_that_ctrl_c_ends_or_a_closed_terminal_stops_nothing(built, tokenizer_folder, place):
    """The trainer's words go nowhere then; it saves all the same."""
    root = place / "closed"
    arguments, folder = options(built, tokenizer_folder, root, max_steps=120), root / "hybrid-shift-64"
    os.mkfifo(place / "pipe")
    process = start(arguments, place / "pipe")
    read = os.open(place / "pipe", os.O_RDONLY)
    wait_for_step(folder, 4, process)
    os.close(read)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup, under which a run goes on
    os.kill(process.pid, signal.SIGTERM if ignored else signal.SIGHUP)
    process.join()
    last = max(folder.glob("step_*"))
    assert process.exitcode == 130 and last.name not in ("step_000003", "step_000120") and find_defect(last) is None


def interrupted(whole, root):
    """A copy of a finished run's folder that is to go on from its last checkpoint."""
    folder = root / whole.name
    shutil.copytree(whole, folder)
    (folder / "finished.json").unlink()
    return folder


DAMAGES = {
    "optimizer.pt": (None, r"optimizer\* is missing"),
    "model.safetensors": (100, "model.safetensors is not as it was saved"),
    "rng_state.pth": (0, "rng_state.pth is not as it was saved"),
    "config.json": (None, "config.json is missing"),
    "files.json": (5, "files.json is malformed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_lists_its_files(name, whole, tmp_path):
    checkpoint = tmp_path / "step_000012"
    shutil.copytree(whole("hybrid-shift") / checkpoint.name, checkpoint)
    listed = json.loads((checkpoint / "files.json").read_text())
    files = {file.relative_to(checkpoint).as_posix(): file for file in checkpoint.rglob("*") if file.is_file()}
    left = {"files.json", "training_args.bin"}
    assert listed == {name: file_digest(file) for name, file in files.items() if name not in left}
    assert find_defect(checkpoint) is None
    if name != "files.json":  # an older list has sizes
        sizes = {file: (checkpoint / file).stat().st_size for file in listed}
        (checkpoint / "files.json").write_text(json.dumps(sizes))
        assert find_defect(checkpoint) is None
    kept, message = DAMAGES[name]
    if kept is None:
        (checkpoint / name).unlink()
    else:
        os.truncate(checkpoint / name, kept)
    assert re.match(message, find_defect(checkpoint))


@pytest.mark.parametrize("name", ["trainer_state.json", "sums.json"])
@pytest.mark.parametrize("content", ["[", "[]", "null", '{"step": 10}', '{"global_step": "12"}', '{"loss": NaN}', "5"])
def test_malformed_json_is_a_defect(name, content, whole, tmp_path):
    checkpoint = tmp_path / "step_000012"
    shutil.copytree(whole("hybrid-shift") / checkpoint.name, checkpoint)
    (checkpoint / "files.json").unlink()
    assert find_defect(checkpoint) is None
    (checkpoint / name).write_text(content)
    assert re.match(rf"{name} is malformed", find_defect(checkpoint))


@pytest.mark.parametrize("damage", [{"base_lrs": ["../x"] * 2}, {"base_lrs": [0.5] * 2}, {"last_epoch": 3}, None])
def test_an_old_checkpoint_has_the_learning_rates_of_its_optimizer(damage, whole, tmp_path):
    checkpoint = tmp_path / "step_000012"
    shutil.copytree(whole("hybrid-shift") / checkpoint.name, checkpoint)
    (checkpoint / "files.json").unlink()
    state = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    assert find_defect(checkpoint) is None and len(state["base_lrs"]) == 2
    torch.save(state | damage if damage else [], checkpoint / "scheduler.pt")
    assert find_defect(checkpoint).startswith("scheduler.pt ")
    torch.save(state, checkpoint / "scheduler.pt")
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    optimizer["state"][0]["exp_avg"] = 10**20
    torch.save(optimizer, checkpoint / "optimizer.pt")
    assert find_defect(checkpoint) == "optimizer.pt is damaged"


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_hostile_pickle_is_not_run(name, built, tokenizer_folder, place, whole, tmp_path, capsys):
    """Nor where the list of the checkpoint's files was made to fit it, and the remedy is not to run it either."""
    checkpoint = interrupted(whole("hybrid-shift"), tmp_path) / "step_000012"
    torch.save({"state": Hostile(tmp_path / "executed"), "param_groups": []}, checkpoint / name)
    listed = json.loads((checkpoint / "files.json").read_text())
    listed |= {name: file_digest(checkpoint / name)} if name in listed else {}
    (checkpoint / "files.json").write_text(json.dumps(listed))
    arguments = options(built, tokenizer_folder, tmp_path, max_steps=13, token_stores=place / "tokens")
    with contextlib.suppress(SystemExit):
        train.main([*arguments, "--resume_changed"])
    error = capsys.readouterr().err
    expected = "step_000012 is damaged (a file of it is no pickle of tensors alone, and is not loaded); remove it"
    assert (expected in error) == (name != "training_args.bin") and "weights_only" not in error
    assert not (tmp_path / "executed").exists()


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(built, tokenizer_folder, place, whole):
    expected, root, output = whole("hybrid-shift"), place / "damaged", place / "damaged-log"
    folder = interrupted(expected, root)
    (folder / "step_000012" / "optimizer.pt").unlink()
    sums = folder / "step_000009" / "sums.json"
    sums.write_text(sums.read_text().replace("{", "[", 1))  # of the same size
    (folder / "step_000006" / "files.json").unlink()  # an older one, whole
    assert run(options(built, tokenizer_folder, root), output) == 0
    said = [line for line in output.read_text().splitlines() if line.startswith("run: ")]
    assert [line.split("step_")[1][:6] for line in said[:2]] == ["000009", "000012"]
    assert "(sums.json is not as it was saved); resuming from step_000006" in said[0]
    assert "(optimizer* is missing); resuming from step_000006" in said[1]
    assert said[2].endswith("resuming from step_000006") and len(said) == 3
    assert same_weights(folder / "step_000012", expected / "step_000012")
    assert same_weights(folder / "best", expected / "best")
    assert logged(folder) == logged(expected)


def test_a_run_without_a_whole_checkpoint_stays_as_it_is_unless_told(built, tokenizer_folder, place, whole):
    expected, root, output = whole("hybrid-shift"), place / "none", place / "none-log"
    folder = interrupted(expected, root)
    for checkpoint in folder.glob("step_*"):
        (checkpoint / "scheduler.pt").unlink()
    arguments = options(built, tokenizer_folder, root)
    before = sorted(folder.rglob("*"))
    assert run(arguments, output) == 2
    (line,) = output.read_text().splitlines()
    assert line.startswith(f"error: {folder} cannot resume from any") and "step_000012: scheduler.pt is missing" in line
    assert "--overwrite" in line and sorted(folder.rglob("*")) == before
    assert run([*arguments, "--resume_changed"], output) == 2 and sorted(folder.rglob("*")) == before
    assert run([*arguments, "--overwrite"], output) == 0
    assert same_weights(folder / "step_000012", expected / "step_000012") and logged(folder) == logged(expected)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(built, tokenizer_folder, place, monkeypatch):
    folder, synced, fsync = place / "synced" / "hybrid-shift-64", [], os.fsync

    def sync(descriptor):
        synced.append((os.fstat(descriptor).st_ino, (folder / "step_000003").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    train.main(options(built, tokenizer_folder, place / "synced", max_steps=3))
    checkpoint = folder / "step_000003"
    assert {(path.stat().st_ino, False) for path in (checkpoint, *checkpoint.iterdir())} <= set(synced)
    assert (folder.stat().st_ino, True) in synced


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
    another = options(built, tokenizer_folder, root, muon=True)
    assert run([*another, "--resume_changed"], output) == 2
    assert "the state of another optimizer (muon: False -> True)" in output.read_text()
    assert run([*changed, "--resume_changed"], output) == 0
    assert "resuming from step_" in output.read_text()
    assert json.loads((folder / "run.json").read_text())["settings"]["learning_rate"] == 0.02
    steps = [entry["step"] for entry in logged(folder)]
    assert steps == sorted(steps) and steps[-1] == 12


def test_phases_muon_averages_and_accumulation_go_on_exactly(built, tokenizer_folder, place):
    phases = ['{"until": 0.5, "sequence_length": 16, "batch_fraction": 0.5}', '{"sequence_length": 64}']
    changes = {"phases": phases, "muon": True, "gradient_accumulation_steps": 2, "save_total_limit": 2}
    changes |= {"ema_decay": 0.9, "eval_steps": 4}
    root = place / "phases"
    arguments = options(built, tokenizer_folder, root / "a", **changes, token_stores=place / "tokens")
    assert run(arguments, place / "log") == 0
    assert "(their average is evaluated and saved)" in (place / "log").read_text()
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
    for folder in ("step_000012", "best"):
        assert same_weights(root / "b" / "hybrid-shift-64" / folder, expected / folder)
    assert same_weights(expected / "best", expected / "step_000012")  # both are the average
    plain = options(built, tokenizer_folder, root / "c", **{**changes, "ema_decay": 0}, token_stores=place / "tokens")
    assert run(plain, place / "log") == 0
    assert not same_weights(root / "c" / "hybrid-shift-64" / "best", expected / "best")
    losses = [[e["loss"] for e in logged(path) if "loss" in e] for path in (root / "c" / "hybrid-shift-64", expected)]
    assert losses[0] == losses[1]  # training itself is the same
    assert logged(root / "b" / "hybrid-shift-64") == logged(expected)


def test_an_average_begun_or_left_off_on_resuming_goes_on_from_the_weights(built, tokenizer_folder, place):
    """A constant rate, since the schedule of a shorter run would be another."""
    shared = {"lr_scheduler_type": "constant", "warmup_steps": 0, "token_stores": place / "tokens"}

    def train(root, steps, decay):
        changes = shared | {"max_steps": steps, "ema_decay": decay}
        arguments = options(built, tokenizer_folder, place / root, **changes)
        assert run([*arguments, "--resume_changed"], place / "log") == 0, (place / "log").read_text()
        return place / root / "hybrid-shift-64" / f"step_{steps:06d}"

    plain = {steps: train("plain", steps, 0) for steps in (3, 6, 9)}
    for steps, decay in ((3, 0.9), (6, 0), (9, 0.9)):
        step = train("turned", steps, decay)
        assert same_weights(step, plain[steps]) == (decay == 0)
    state = torch.load(step / "optimizer.pt", weights_only=True)["state"]
    weights, kept = load_file(plain[9] / "model.safetensors"), [values["average"] for values in state.values()]
    assert all(any(torch.equal(weight, own) for own in kept) for weight in weights.values())


def test_a_run_killed_before_its_first_log_goes_on(built, tokenizer_folder, place):
    root, output = place / "early", place / "early-log"
    arguments = options(built, tokenizer_folder, root, save_steps=1, logging_steps=10, eval_steps=100)
    process = start(arguments, output)
    while process.is_alive() and not (root / "hybrid-shift-64" / "step_000002").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert run(arguments, output) == 0 and "resuming from step_" in output.read_text()


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


def test_a_run_s_folder_loads_as_its_best_even_where_files_have_the_place_of_links(tmp_path):
    best = tmp_path / "best"
    (best / "1_Pooling").mkdir(parents=True)
    (tmp_path / "run.json").write_text("{}")
    for name in ("model.safetensors", "modules.json", "1_Pooling/config.json"):
        (best / name).write_text("new")
    shutil.copytree(best / "1_Pooling", tmp_path / "1_Pooling")
    (tmp_path / "model.safetensors").write_text("old")  # as in a copy that followed links
    (tmp_path / "modules.json").symlink_to("step_000001/modules.json")
    link_best(tmp_path)
    link_best(tmp_path)
    links = {path.name: os.readlink(path) for path in tmp_path.iterdir() if path.is_symlink()}
    assert links == {name: f"best/{name}" for name in ("model.safetensors", "modules.json", "1_Pooling")}
    shutil.rmtree(best)
    link_best(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_same_signal_passed_on_at_once_is_no_second_one(monkeypatch):
    times = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(times))
    callback = callbacks.SaveOnSignal()
    for _ in range(2):
        callback._receive(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        callback._receive(signal.SIGINT, None)
