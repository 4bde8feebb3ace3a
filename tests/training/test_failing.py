"""What a training run says when it cannot go on, and what it leaves."""

import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch

import train
from flexqwen.data.packing import PackedRows
from flexqwen.files import read_json
from flexqwen.training import trainer
from tests.helpers.runs import ROOT, logged, options, run, same_weights, start, wait_for_step


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("failing")


@pytest.fixture(scope="module")
def whole(built, tokenizer_folder, place):
    assert run(options(built, tokenizer_folder, place / "whole"), place / "log") == 0
    return place / "whole" / "hybrid-shift-64"


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_documents(whole, built, tokenizer_folder, place):
    output = place / "nan-log"
    arguments = options(built, tokenizer_folder, place / "nan", learning_rate=1e30, max_grad_norm=0, warmup_steps=0)
    assert run(arguments, output) == 2
    (line,) = (line for line in output.read_text().splitlines() if line.startswith("error: "))
    step, named = re.search(r"the loss of step (\d+) is not a number; its batch has documents (.+);", line).groups()
    store = PackedRows(next((place / "tokens").glob("gold-64-*")))
    known = (store.folder / "documents.txt").read_text().split("\n")
    assert 1 < int(step) <= 4 and named.split(", ")[0] in known
    assert "the last good checkpoint is none" in line
    assert not list((place / "nan" / "hybrid-shift-64").glob("step_000003"))


def test_a_held_out_loss_that_is_not_a_number_stops_the_run(whole, built, tokenizer_folder, place, monkeypatch, capsys):
    score, scored = trainer.score, []

    def score_wrong(*args):
        scored.append(args[2])
        return score(*args) * (float("nan") if len(scored) == 4 else 1)  # the second evaluation's masked mode

    monkeypatch.setattr(trainer, "score", score_wrong)
    with pytest.raises(SystemExit) as stopped:
        train.main(options(built, tokenizer_folder, place / "held-out"))
    folder = place / "held-out" / "hybrid-shift-64"
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("error: eval_loss_masked after step 10 is nan")
    assert f"the last good checkpoint is {folder / 'step_000009'}" in error
    assert "NaN" not in (folder / "metrics.jsonl").read_text() and max(e["step"] for e in logged(folder)) == 10


def test_a_full_disk_leaves_the_last_checkpoint_whole(whole, built, tokenizer_folder, place):
    output, folder = place / "disk-log", place / "disk" / "hybrid-shift-64"
    shutil.copytree(whole, folder)
    for name in ("finished.json", "step_000006", "step_000009", "step_000012"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    arguments = options(built, tokenizer_folder, place / "disk")
    largest = (folder / "step_000003" / "optimizer.pt").stat().st_size - 1000
    assert run(arguments, output, largest_file=largest) == 2
    (line,) = (line for line in output.read_text().splitlines() if line.startswith("error: "))
    assert f"the last complete checkpoint is {folder / 'step_000003'}" in line and "mend that" in line
    assert not [path for path in folder.iterdir() if "checkpoint-" in path.name or "partial" in path.name]
    assert run(arguments, output) == 0
    assert same_weights(folder / "step_000012", whole / "step_000012")
    assert logged(folder) == logged(whole)


def test_out_of_memory_names_the_settings_to_lower(whole, built, tokenizer_folder, place, monkeypatch, capsys):
    def compute_loss(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(trainer.FlexQwenTrainer, "compute_loss", compute_loss)
    with pytest.raises(SystemExit) as stopped:
        train.main(options(built, tokenizer_folder, place / "memory"))
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith("error: out of memory at step 1")
    assert all(name in error for name in ("per_device_train_batch_size", "gradient_checkpointing", "sequence_length"))


def test_a_start_that_failed_does_not_stand_in_the_way(whole, built, tokenizer_folder, place):
    output = place / "start-log"
    wrong = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr_rat": 0.1}'}
    assert run(options(built, tokenizer_folder, place / "start", **wrong), output) == 2
    assert output.read_text().splitlines()[-1].startswith("error: the learning rate's schedule cannot be made")
    assert run(options(built, tokenizer_folder, place / "start", adam_beta1=1.5), output) == 2
    assert output.read_text().splitlines()[-1].startswith("error: the optimizer cannot be made")
    for name, value in (("learning_rate", -1), ("max_steps", 0), ("save_strategy", "epoch")):
        assert run(options(built, tokenizer_folder, place / "start", **{name: value}), output) == 2
        assert output.read_text().splitlines()[-1].startswith(f"error: {name} is {value}")
    assert not [path for path in (place / "start").rglob("*") if path.is_file()]
    assert run(options(built, tokenizer_folder, place / "start"), output) == 0


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (['{"until": 0.5}'], "until must rise to 1"),
        (['{"until": 0.5}', '{"until": 0.4}', "{}"], "until must rise to 1"),
        (['{"sequence_length": 32}'], "the last must have the run's sequence_length"),
        (['{"until": 0.5, "batch_fraction": 0.3}', "{}"], "whole number"),
        (['{"until": 0.5, "length": 32}', "{}"], "cannot be read"),
        (['{"until": 2}'], "needs until"),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, message, built, tokenizer_folder, place, capsys):
    with pytest.raises(SystemExit):
        train.main(options(built, tokenizer_folder, place / "phases", phases=phases))
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: phases: ") and message in error
    assert not (place / "phases").exists()


BARE = """
import json, sys
for name in ("datasets", "pyarrow"):
    sys.modules[name] = None  # importing it fails
import train
for arguments in json.loads(sys.argv[1]):
    try:
        train.main(arguments)
    except SystemExit as stopped:
        assert stopped.code == 2
    print("end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"muon": True, "optim": "adafactor"}, "muon and optim: adafactor are both set"),
        ({"ema_decay": 1}, r"ema_decay is 1\.0; it must be from 0 to below 1"),
        ({"ema_decay": 0.9, "fsdp": "full_shard"}, "ema_decay is set, and fsdp and deepspeed"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"learning_rate": -1}, r"learning_rate is -1\.0; it must be at least 0"),
        ({"eval_strategy": "epoch"}, "eval_strategy is epoch"),
        ({"strategy": "alternating"}, "no masked row would be trained"),
        ({"save_only_model": True}, "save_only_model is set"),
        ({"sequence_length": 10**20}, "sequence_length is 10+; no whole number may be above"),
        ({"sequence_length": 2**21}, "sequence_length is 2097152; it must be at most 1,048,576"),
        ({"max_steps": -(10**20)}, "max_steps is -10+; no whole number may be above 281,474,976,710,656"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message, built, tokenizer_folder, place, capsys):
    with pytest.raises(SystemExit):
        train.main(options(built, tokenizer_folder, place / "wrong", **wrong))
    assert re.search(message, capsys.readouterr().err)
    assert not (place / "wrong").exists()


def test_workers_of_batches_that_cannot_work_are_one_line(built, tokenizer_folder, place, capsys, monkeypatch):
    arguments = options(built, tokenizer_folder, place / "workers-failing", dataloader_num_workers=2)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100 if kind == resource.RLIMIT_NOFILE else -1, -1))
    with pytest.raises(SystemExit):
        train.main(arguments)
    expected = "error: 100 files may be open, and 128 are needed; raise that (ulimit -n), or set dataloader_num_workers"
    assert capsys.readouterr().err.startswith(expected)
    monkeypatch.undo()

    def train_and_die(*args, **kwargs):
        raise RuntimeError("DataLoader worker (pid(s) 77) exited unexpectedly")

    monkeypatch.setattr(trainer.FlexQwenTrainer, "train", train_and_die)
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert "error: a process that makes batches was killed at step 1" in capsys.readouterr().err


def test_two_processes_do_not_train_in_one_folder(whole, built, tokenizer_folder, place, capsys):
    arguments = options(built, tokenizer_folder, place / "twice", max_steps=2000, save_steps=2000, eval_steps=2000)
    process = start(arguments, place / "twice-log")
    try:
        wait_for_step(place / "twice" / "hybrid-shift-64", 2, process)
        with pytest.raises(SystemExit):
            train.main(arguments)
        assert "another process is training in" in capsys.readouterr().err
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def test_a_lock_is_no_link_to_another_file(built, tokenizer_folder, tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "hybrid-shift-64.lock").symlink_to("precious")
    with pytest.raises(SystemExit):
        train.main(options(built, tokenizer_folder, tmp_path))
    assert "hybrid-shift-64.lock cannot be made" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "hybrid-shift-64").exists()


def test_a_machine_with_the_token_store_alone_trains_the_same_run_where_it_is_named(
    whole, built, tokenizer_folder, place, tmp_path
):
    shutil.copytree(place / "tokens", tmp_path / "tokens")
    arguments = options("no_such_dataset", tokenizer_folder, tmp_path / "runs")
    (store,) = (tmp_path / "tokens").glob("gold-64-*")
    named = [*arguments, "--token_store", str(store.rename(tmp_path / "tokens" / "mine"))]
    others = [*named, "--dataset_config", "matched", "--output_dir", str(tmp_path / "m")]
    fewer = [*named, "--unique_tokens", "500", "--output_dir", str(tmp_path / "u")]
    words = [sys.executable, "-c", BARE, json.dumps([arguments, named, others, fewer])]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    without, trained, other, sample, _ = done.stderr.split("end\n")
    assert "no dataset in no_such_dataset" in without and without.count("\n") == 1
    assert "error: " not in trained
    assert same_weights(tmp_path / "runs" / "hybrid-shift-64" / "step_000012", whole / "step_000012")
    assert "has dataset_config gold, and this run needs matched" in other
    assert "has unique_tokens None, and this run needs 500" in sample
    of_store, of_dataset = (read_json(root / "run.json") for root in (tmp_path / "runs" / "hybrid-shift-64", whole))
    assert of_store["data"] == of_dataset["data"]  # which the store knows, as the dataset is not there


def test_batches_do_not_depend_on_the_number_of_workers(whole, built, tokenizer_folder, place):
    root = place / "workers"
    assert run(options(built, tokenizer_folder, root, dataloader_num_workers=2), place / "log") == 0
    assert same_weights(root / "hybrid-shift-64" / "step_000012", whole / "step_000012")
