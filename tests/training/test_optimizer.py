"""Muon against torch's own, and the optimizer that joins it with AdamW."""

import copy
import platform
from pathlib import Path

import pytest
import torch

from flexqwen.training.cpu import has_bfloat16
from flexqwen.training.optimizer import BatchedMuon, MuonWithAdamW, orthogonalize
from tests.helpers.tiny import make_model

SHAPES = [(16, 16), (48, 16), (16, 16), (16, 48), (16, 48)]


def train(cls, weight_decay=0.1, steps=3):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in SHAPES]
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = cls(parameters, lr=0.02, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return start, [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_batched_muon_is_torchs_within_the_rounding_of_bfloat16(weight_decay):
    start, expected = train(torch.optim.Muon, weight_decay)
    _, found = train(BatchedMuon, weight_decay)
    for before, one, other in zip(start, expected, found, strict=True):
        assert (one - other).norm() < 0.02 * (one - before).norm()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_orthogonal_factors_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factors = orthogonalize(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    values = torch.linalg.svdvals(factors)
    assert factors.shape == matrices.shape and values.min() > 0.5 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert (factors * (u @ v)).sum() > 0.95 * factors.norm() * (u @ v).norm()  # the same directions


def test_bfloat16_that_a_library_emulates_is_not_the_processors():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.is_file():
        pytest.skip("needs Linux's list of what an x86 processor has")
    assert has_bfloat16() == ("avx512_bf16" in flags.read_text().split())


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_matrices_are_made_orthogonal_in_bfloat16_where_the_processor_has_it(has, dtype, monkeypatch):
    monkeypatch.setattr("flexqwen.training.optimizer.has_bfloat16", lambda: has)
    assert orthogonalize(torch.eye(4)[None], (3.4445, -4.7750, 2.0315), 5, 1e-7).dtype == dtype


def test_matrices_of_the_layers_go_to_muon_and_a_state_resumes_exactly():
    model = make_model()
    optimizer = MuonWithAdamW(model, 0.01, 0.1, (0.9, 0.95), 1e-8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, others, vectors = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert muon and all(".layers." in name and "norm" not in name for name in muon)
    assert "model.embed_tokens.weight" in others and all("norm" in name for name in vectors)

    def step(model, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    step(model, optimizer, 1)
    other = copy.deepcopy(model)
    resumed = MuonWithAdamW(other, 0.01, 0.1, (0.9, 0.95), 1e-8)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (2, 3):
        step(model, optimizer, seed)
        step(other, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
