"""What only a GPU can show, within minutes on one: `pytest -m gpu`. A CPU rehearses what it can of it."""

import os
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from flexqwen.evaluation.heldout import MODES, score, tokenize_texts
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.training import doctor
from flexqwen.training.arguments import Arguments, TrainingArguments
from flexqwen.training.compat import compile_layers, fuse_norms
from flexqwen.training.objectives import ObjectiveArguments, TrainingRows, collate
from flexqwen.training.optimizer import orthogonalize
from flexqwen.training.schedule import Phase
from flexqwen.training.trainer import FlexQwenTrainer
from tests.helpers.runs import ROOT, logged, options, run
from tests.helpers.tiny import PAD, VOCABULARY, make_model

HAS_GPU = torch.cuda.is_available()
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")])
BOTH = pytest.mark.parametrize("device", ["cpu", CUDA])
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 1}


class Tokenizer:
    pad_token_id = PAD


def make(device, implementation="sdpa", **changes):
    """A small model in training, its weights as those of a new one are, in the shape that GPU kernels want."""
    model = make_model(implementation=implementation, **{**SHAPE, **changes})
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.ones_like(parameter) if parameter.ndim < 2 else torch.randn_like(parameter) * 0.1
    return model.train().to(device)


def make_batch(device, length=128, rows=4, **objective):
    """Packed rows of a document or several."""
    phase = Phase(doctor.RandomRows(length, VOCABULARY, 64), range(1), rows)
    drawn = TrainingRows([phase], ObjectiveArguments(**objective), 0)
    batch = collate([drawn[item] for item in range(rows)])
    batch["segments"] = [(starts.to(device), mode) for starts, mode in batch["segments"]]
    return {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}


def learn(model, batch, half):
    """The loss of a batch and all gradients, on the CPU."""
    model.zero_grad()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        loss = model(**batch).loss
    loss.backward()
    return float(loss.detach()), torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).cpu()


def far(found, expected) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("causal_fraction", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("device", "implementation"),
    [("cpu", "sdpa"), ("cpu", "eager")]
    + [pytest.param("cuda", name, marks=CUDA.marks) for name in ("sdpa", "eager", "flex_attention", "varlen")],
)
def test_every_attention_learns_in_bf16_what_sdpa_does_in_float32_on_a_cpu(device, implementation, causal_fraction):
    objective = {"causal_fraction": causal_fraction}
    loss, gradient = learn(make("cpu"), make_batch("cpu", **objective), half=False)
    found = learn(make(device, implementation), make_batch(device, **objective), half=True)
    assert found[0] == pytest.approx(loss, rel=0.01) and far(found[1], gradient) < 0.05
    other = learn(make("cpu"), make_batch("cpu", causal_fraction=0.25), half=False)
    assert far(other[1], gradient) > 0.5  # the measure tells modes apart


@BOTH
def test_in_float32_varlen_is_sdpa(device):
    expected = learn(make(device), make_batch(device), half=False)
    found = learn(make(device, "varlen"), make_batch(device), half=False)
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and far(found[1], expected[1]) < 1e-4


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("implementation", ["sdpa", "varlen"])
def test_compiled_layers_are_two_graphs_a_length_and_learn_the_same(device, implementation):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, plain = make(device, implementation), make(device, implementation)
    compile_layers(compiled, SimpleNamespace(torch_compile_backend="inductor", torch_compile_mode=None))
    for number, length in enumerate((128, 256)):
        for causal_fraction in (0.5, 0.25):
            batch = make_batch(device, length, rows=8, causal_fraction=causal_fraction)
            found, expected = learn(compiled, batch, half=True), learn(plain, batch, half=True)
            assert found[0] == pytest.approx(expected[0], rel=0.01) and far(found[1], expected[1]) < 0.05
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * (number + 1)
    assert not torch._dynamo.utils.counters["graph_break"]


@BOTH
def test_norms_are_made_by_one_kernel(device):
    model, fused = make(device), make(device)
    fuse_norms(fused)
    batch = make_batch(device)
    for half in (False, True):
        assert far(learn(fused, batch, half)[1], learn(model, batch, half)[1]) < (0.05 if half else 1e-4)
    if device == "cuda":
        with torch.profiler.profile() as seen, torch.autocast(device, torch.bfloat16):
            fused(**batch)
        names = {event.key for event in seen.key_averages()}
        assert "aten::_fused_rms_norm" in names and "aten::rsqrt" not in names


@BOTH
def test_matrices_are_made_orthogonal(device):
    matrices = torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(0)).to(device)
    values = torch.linalg.svdvals(orthogonalize(matrices, (3.4445, -4.775, 2.0315), 5, 1e-7).float())
    assert values.min() > 0.6 and values.max() < 1.3


@BOTH
def test_a_step_waits_for_the_gpu_once_at_most(device, tmp_path):
    """What the meta device cannot show: what kernels and the optimizers themselves wait for."""
    training = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=4, muon=True, bf16=device == "cuda", report_to="none",
        use_cpu=device == "cpu", save_strategy="no", logging_steps=100, disable_tqdm=True,
    )  # fmt: skip
    phases = [Phase(doctor.RandomRows(128, VOCABULARY, 64), range(4), 8)]
    model = make(device, "varlen")
    settings = Arguments(None, None, ObjectiveArguments(), training, [])
    trainer = FlexQwenTrainer(settings, tmp_path, model, Tokenizer, phases, None)
    trainer.log, step = lambda *_: None, trainer.training_step

    def watched(*args, **kwargs):  # two whole steps: at the first, kernels are chosen; after the last, losses are read
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn" if 0 < trainer.state.global_step < 3 else "default")
        return step(*args, **kwargs)

    trainer.training_step = watched
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert trainer.state.global_step == 4 and len(waits) <= 2, waits


@BOTH
def test_scores_are_those_of_a_cpu(device, tokenizer):
    texts = ["O menino viu as casas.", "As meninas leram um livro antigo na praça.", "Sim."] * 3
    changes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    here, there = (make(name, **changes).eval() for name in ("cpu", device))
    for mode in ("causal", "masked"):
        expected, found = (Scorer(model, tokenizer, "flexqwen").score(texts, mode) for model in (here, there))
        assert found == pytest.approx(expected, rel=1e-3)
    held_out = tokenize_texts(texts, tokenizer, 64)
    for mode in MODES:
        assert score(there, held_out, mode) == pytest.approx(score(here, held_out, mode), rel=1e-3)


GPU_RUN = {"bf16": True, "use_cpu": False, "attn_implementation": "varlen", "muon": True, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def finished(built, tokenizer_folder, tmp_path_factory):
    """Options of a compiled run in bfloat16, and its folder when it is done."""
    root = tmp_path_factory.mktemp("gpu") / "runs"
    words = options(built, tokenizer_folder, root, **GPU_RUN, torch_compile=True)
    assert run(words, root.parent / "log") == 0, (root.parent / "log").read_text()
    return words, root / "hybrid-shift-64"


def losses(folder):
    return {entry["step"]: entry["loss"] for entry in logged(folder) if "loss" in entry}


@pytest.mark.parametrize("device", [CUDA])
def test_a_compiled_run_in_bf16_resumes(device, finished, tmp_path):
    words, folder = finished
    whole = losses(folder)
    assert " × NVIDIA" in (folder.parent.parent / "log").read_text()
    shutil.rmtree(folder / "step_000012")
    (folder / "finished.json").unlink()
    assert run(words, tmp_path / "log") == 0 and "resuming from step_000009" in (tmp_path / "log").read_text()
    assert losses(folder) == pytest.approx(whole, rel=0.01)  # kernels of attention add in any order


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="FSDP2 needs torch 2.13")
@pytest.mark.parametrize("device", [CUDA])
def test_fsdp2_on_one_gpu_follows_the_same_curve(device, finished, built, tokenizer_folder, tmp_path):
    words = options(built, tokenizer_folder, tmp_path / "runs", **GPU_RUN, torch_compile=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "train.py"]
    done = subprocess.run([*command, *words, "--fsdp"], cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = losses(tmp_path / "runs" / "hybrid-shift-64")
    assert found == pytest.approx(losses(finished[1]), rel=0.02)
    assert any(float(torch.tensor(loss).bfloat16()) != loss for loss in found.values())  # they are not rounded
