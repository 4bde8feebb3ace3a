"""What the doctor counts without a GPU is what runs take, and what it says of this machine is so."""

import importlib.metadata
import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from flexqwen import __main__ as flexqwen
from flexqwen.training import doctor
from flexqwen.training.arguments import parse
from flexqwen.training.flops import Count, model_flops
from flexqwen.training.metrics import attended_length
from flexqwen.training.objectives import TrainingRows, collate
from flexqwen.training.schedule import Phase
from tests.helpers.runs import ROOT

SHAPE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 1, "sequence_length": 64, "per_device_train_batch_size": 32, "use_cpu": True}
MEASURE = """
import sys
import torch
from flexqwen.training import doctor
from tests.training.test_doctor import make
args, config, phase, batch = make(*sys.argv[1:])
doctor.FlexQwenForCausalLM(config)(**batch).loss.backward()  # what is loaded once is loaded now
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * 4096
open("/proc/self/clear_refs", "w").write("5")
model = doctor.FlexQwenForCausalLM(config).train()
optimizer = doctor.make_optimizer(model, args.training.muon)
for parameter in model.parameters():
    parameter.grad = torch.zeros_like(parameter)
optimizer.step()
optimizer.zero_grad()
model(**batch).loss.backward()
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak * 1024 - before)
"""


def make(*words, **changes):
    """Settings, config, one phase of one step and its batch."""
    args = parse([*(f"--{name}={value}" for name, value in {**SHAPE, **changes}.items()), *words])
    phase = Phase(doctor.RandomRows(args.data.sequence_length, 1024), range(1), args.training.train_batch_size)
    rows = TrainingRows([phase], args.objective, 0)
    return args, doctor.find_config(args, 1024), phase, collate([rows[item] for item in range(phase.rows_per_step)])


def test_bytes_are_those_that_operations_read_and_write():
    """On tensors without memory too, of which torch itself asks many questions."""
    with FakeTensorMode(), Count() as count:
        one, two = torch.empty(8, 4), torch.empty(8, 4, dtype=torch.bfloat16)
        total = one.t().reshape(8, 4) + two  # a copy, since a view would not do
        total.mul_(2)
    assert count.bytes == 8 * 4 * ((4 + 4) + (4 + 2 + 4) + (4 + 4)) and count.peak == 8 * 4 * (4 + 2 + 4 + 4)


def test_counted_memory_is_that_of_a_run():
    """Within a tenth, with an allocator that gives back at once what is freed."""
    words = ("--muon=true", "--num_hidden_layers=4", "--sequence_length=128")
    args, config, phase, _ = make(*words)
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert doctor.count_step(config, args, phase, is_gpu=False).peak == pytest.approx(int(done.stdout), rel=0.1)


def test_counted_flops_are_those_of_torchs_counter():
    args, config, phase, _ = make(causal_fraction=1, attn_implementation="eager")
    phase.rows.input_ids[:, 1:] = 5  # one document a row: eager attention computes what it masks, too
    model = doctor.FlexQwenForCausalLM(config).train()
    rows = TrainingRows([phase], args.objective, 0)

    def add_product(total, one, two, **_):
        return 2 * one[0] * one[1] * two[1]

    # The counter of torch knows a product added to a sum, but not in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: add_product}) as counter:
        model(**collate([rows[item] for item in range(phase.rows_per_step)])).loss.backward()
    assert doctor.count_step(config, args, phase).flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_attention_is_counted_within_documents():
    _, config, phase, _ = make(causal_fraction=1)
    phase.rows.input_ids[:] = 5
    phase.rows.input_ids[:, ::16] = doctor.SPECIAL["bos_token_id"]
    assert attended_length(phase) == 16
    attention = model_flops(config, 1, 0, 16) - model_flops(config, 1, 0, 0)
    assert attention == 12 * 16 * config.num_hidden_layers * config.num_attention_heads * config.head_dim


def test_more_rows_and_batches_move_more_bytes():
    args, config, phase, _ = make()
    one = doctor.count_step(config, args, phase)
    args, config, phase, _ = make(per_device_train_batch_size=64)
    two = doctor.count_step(config, args, phase)
    assert (
        1.8 < two.bytes / one.bytes < 2
        and 1.8 < two.peak / one.peak < 2
        and two.flops == pytest.approx(2 * one.flops, 0.01)
    )
    args, config, phase, _ = make(ema_decay=0.9)
    weights = 4 * doctor.FlexQwenForCausalLM(config).num_parameters()  # in float32
    assert doctor.count_step(config, args, phase).peak - one.peak == pytest.approx(weights, 0.01)


def test_a_config_gets_an_estimate(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "count_saved", lambda *_: 0.0)
    words = ["--seconds", "0", "--price", "90", "--gpu", "A100", "--vocab_size", "4096"]
    flexqwen.main(["doctor", "configs/quickstart.yaml", *words])
    printed = capsys.readouterr().out
    assert importlib.metadata.version("torch") in printed and "one A100, counted, not measured" in printed
    assert re.search(r"parameters +2,5\d\d,\d\d\d, with a vocabulary of 4,096\n", printed)
    assert re.search(r"hours +under 0\.1\ncost +0\.\d\d to 0\.\d\d, at 90", printed)


def test_the_estimate_in_the_docs_is_what_the_doctor_says(monkeypatch):
    """All but what compiled layers save, which takes a compiler a minute: that is taken from the table itself."""
    rows = [line.strip("| \n").split(" | ") for line in (ROOT / "docs/gpu.md").read_text().splitlines()]
    start = next(place for place, row in enumerate(rows) if row[0] == "parameters")
    args = parse([str(ROOT / "configs/small.yaml"), "--use_cpu"])
    moved, compiled = (
        int(part.split()[0].replace(",", ""))
        for part in dict(rows[start : start + 10])["bytes moved a token, last phase"].split(";")
    )
    monkeypatch.setattr(doctor, "count_saved", lambda config, _: (moved - compiled) / config.num_hidden_layers)
    assert doctor.estimate(args, 8192, "H100", 2.5) == rows[start : start + 10]


@pytest.mark.slow
def test_a_compiled_layer_moves_fewer_bytes():
    args, config, phase, _ = make()
    moved = []
    for config.num_hidden_layers in (1, 2):
        moved.append(doctor.count_step(config, args, phase).bytes / phase.tokens_per_step)
    layer = moved[1] - moved[0]
    assert 0.3 * layer < doctor.count_saved(config, bf16=True) < 0.7 * layer


def test_implementations_that_agree_are_timed(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "compile_layers", lambda *_: None)
    flexqwen.main(["doctor", "--seconds", "0.01", *(f"--{name}={value}" for name, value in SHAPE.items())])
    printed = capsys.readouterr().out
    for name in ("sdpa", "sdpa, compiled", "eager"):
        assert re.search(rf"^{name} +agrees .* \d[\d,]*$", printed, re.MULTILINE)
    assert re.search("^flex_attention +does not run: .* CPU", printed, re.MULTILINE)
    assert re.search("^varlen +needs bf16 on a GPU", printed, re.MULTILINE)
    assert "fastest here: --attn_implementation" in printed


def test_the_driver_is_named_though_torch_finds_no_gpu(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 580.65.06\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert ["driver", "580.65.06"] in doctor.describe_machine()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "H10"], "did you mean 'H100'"),
        (["--hidden_size", "7x"], "hidden_size"),
        (["--sequence_length", "1000000"], "a row has 1,000,000 tokens"),
        (["--intermediate_size", "-2"], "the model cannot be made"),
        (["--num_attention_heads", "3", "--num_key_value_heads", "2"], "must be a multiple"),
        (["configs/nope.yaml"], "nope.yaml"),
        (["configs/quickstart.yaml", "--max_steps", str(10**20)], "no whole number may be above"),
        (
            ["configs/quickstart.yaml", "--per_device_train_batch_size", "1000000"],
            "a batch has 256,000,000 tokens, more",
        ),
    ],
)
def test_wrong_words_end_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        flexqwen.main(["doctor", *words])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_vocabulary_is_that_of_the_tokenizer_which_the_config_names(tokenizer_folder, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "count_saved", lambda *_: 0.0)
    flexqwen.main(["doctor", "configs/quickstart.yaml", "--seconds", "0", "--tokenizer", str(tokenizer_folder)])
    assert f"vocabulary of {len(AutoTokenizer.from_pretrained(tokenizer_folder)):,}\n" in capsys.readouterr().out
