"""Two processes train as one does."""

import datetime
import os
import shutil
import socket
import time

import pytest
import torch

from flexqwen.training.arguments import Arguments, TrainingArguments
from flexqwen.training.compat import main_process_first
from flexqwen.training.objectives import ObjectiveArguments
from flexqwen.training.schedule import Phase
from flexqwen.training.trainer import FlexQwenTrainer
from modeling_flexqwen import FlexQwenForCausalLM
from tests.helpers.runs import forked_context, logged, options, run, same_weights, start
from tests.helpers.tiny import Rows, Tokenizer, make_ids, make_model

CURVE = ("loss", "loss_causal", "loss_masked", "grad_norm", "eval_loss", "masked_share", "learning_rate", "tokens_seen")


def start_two(make_process):
    """What torchrun does, but the processes are forked from one that has imported everything. The worst exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{**address, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    processes = [make_process(rank) for rank in ranks]
    for process in processes:
        process.join(300)
        process.kill()  # which does nothing where it has ended
        process.join()
    return max(abs(process.exitcode) for process in processes)


def train_two(arguments, output):
    status = start_two(lambda environment: start(arguments, output, **environment))
    return status, output.read_text()


AVERAGED = {"row": 0, "token": 0.9}  # FSDP has no averages


@pytest.fixture(scope="module")
def one(request, built, tokenizer_folder, tmp_path_factory):
    """The weighting of the losses, and the folder of a run of one process."""
    root = tmp_path_factory.mktemp("one") / "runs"
    changes = {"loss_weighting": request.param, "ema_decay": AVERAGED[request.param]}
    arguments = options(built, tokenizer_folder, root, **changes)
    assert run(arguments, root.parent / "log") == 0
    return request.param, root / "hybrid-shift-64"


FSDP2 = pytest.param("row", "fsdp2", marks=pytest.mark.skipif(torch.__version__ < (2, 13), reason="needs torch 2.13"))


@pytest.mark.parametrize(("one", "how"), [FSDP2, ("token", "ddp")], indirect=["one"])
def test_two_processes_follow_the_curve_of_one_and_go_on(how, one, built, tokenizer_folder, tmp_path):
    loss_weighting, expected = one
    changes = {"loss_weighting": loss_weighting, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    changes |= {"ema_decay": AVERAGED[loss_weighting]}
    arguments = options(built, tokenizer_folder, tmp_path / "runs", **changes) + ["--fsdp"] * (how == "fsdp2")
    folder = tmp_path / "runs" / "hybrid-shift-64"
    status, printed = train_two(arguments, tmp_path / "first.log")
    assert status == 0, printed
    ours, theirs = logged(folder), logged(expected)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for entry, other in zip(ours, theirs, strict=True):
        for name in CURVE:
            assert (name in entry) == (name in other)
            if name in other:
                assert entry[name] == pytest.approx(other[name], rel=1e-3), (entry["step"], name)

    loaded = FlexQwenForCausalLM.from_pretrained(folder / "best").eval()
    alone = FlexQwenForCausalLM.from_pretrained(expected / "best").eval()
    ids = make_ids()
    assert loaded(ids).logits.sub(alone(ids).logits).abs().max() < 1e-2 < loaded(ids).logits.std()
    assert sorted(path.name for path in (folder / "best").glob("*.py")) == [
        "configuration_flexqwen.py",
        "modeling_flexqwen.py",
    ]

    before = tmp_path / "before"
    shutil.copytree(folder / "step_000012", before)
    (folder / "step_000012" / "rng_state_1.pth").unlink()
    (folder / "finished.json").unlink()
    status, printed = train_two(arguments, tmp_path / "second.log")
    assert status == 0 and printed.count("(rng_state_1.pth is missing); resuming from step_000009") == 1, printed
    assert same_weights(folder / "step_000012", before)


def wait_for_the_first(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=3))  # as ddp_timeout
    training = TrainingArguments("unused", use_cpu=True, report_to="none")
    with main_process_first(training):
        time.sleep(0 if training.process_index else 8)


def test_others_wait_for_the_first_longer_than_the_timeout():
    def make_process(environment):
        process = forked_context().Process(target=wait_for_the_first, args=(environment,))
        process.start()
        return process

    assert start_two(make_process) == 0


def test_only_the_first_process_writes_a_model(tmp_path, monkeypatch):
    """The Trainer's save_model has every process call `_save`."""
    monkeypatch.setattr(TrainingArguments, "should_save", False)
    training = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1)
    phases = [Phase(Rows(16), range(2), 8)]
    arguments = Arguments(None, None, ObjectiveArguments(), training, [])
    trainer = FlexQwenTrainer(arguments, tmp_path, make_model(), Tokenizer, phases, None)
    trainer.save_model(str(tmp_path / "best"), _internal_call=True)
    assert list(tmp_path.iterdir()) == []
