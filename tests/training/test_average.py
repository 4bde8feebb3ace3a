"""An average of the weights: what it is, and that it leaves training as it was."""

import pytest
import torch

from flexqwen.cli import InputError
from flexqwen.training.average import WeightAverage, averaged
from flexqwen.training.optimizer import MuonWithAdamW
from tests.helpers.tiny import make_ids, make_model


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("decay", [0.1, 0.999])  # above what the first steps allow, and below
def test_an_average_is_of_all_steps_and_leaves_the_weights_as_they_are(muon, decay):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if muon:
        optimizer = MuonWithAdamW(model, 0.1, 0.1, (0.9, 0.95), 1e-8)
    average, expected, ids = WeightAverage(decay), {}, make_ids(2, 8)
    for step in range(1, 4):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(optimizer, step)
        share = min(decay, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            before = expected.get(name, weight.detach().clone())
            expected[name] = share * before + (1 - share) * weight.detach()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), averaged(optimizer):
        torch.testing.assert_close(dict(model.named_parameters()), expected)
        assert not torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    with averaged(optimizer):  # nor has it moved itself
        torch.testing.assert_close(dict(model.named_parameters()), expected)


def test_an_optimizer_that_keeps_nothing_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(make_ids(2, 8), labels=make_ids(2, 8)).loss.backward()
    optimizer.step()
    with pytest.raises(InputError, match="this optim keeps nothing"):
        WeightAverage(0.9).update(optimizer, 1)


def test_without_an_average_the_weights_are_evaluated():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with averaged(optimizer):
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
