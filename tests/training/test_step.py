"""A training step as a GPU would run it: nothing that the host waits for, and one graph a layer."""

import pytest
import torch

import modeling_flexqwen
from flexqwen.training.arguments import Arguments, TrainingArguments
from flexqwen.training.compat import compile_layers, fuse_norms
from flexqwen.training.cpu import fuse_layers
from flexqwen.training.objectives import ObjectiveArguments, TrainingRows, collate
from flexqwen.training.schedule import Phase
from flexqwen.training.trainer import FlexQwenTrainer
from tests.helpers.tiny import Rows, Tokenizer, make_model


def to_meta(value):
    """A batch whose numbers nobody can look at."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {name: to_meta(item) for name, item in value.items()}
    return type(value)(map(to_meta, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("implementation", ["sdpa", "varlen"])
@pytest.mark.parametrize(
    "objective",
    [{}, {"strategy": "hybrid-inplace"}, {"strategy": "baseline-causal"}, {"loss_weighting": "token"}],
    ids=str,
)
def test_a_step_waits_for_nothing(implementation, objective, tmp_path, monkeypatch):
    """torch's meta device refuses whatever needs a number of a tensor, which is what a host waits for a GPU for."""
    monkeypatch.setattr(modeling_flexqwen, "VARLEN", {"meta": (torch.float32,)})
    objective = ObjectiveArguments(**objective)
    options = {"use_cpu": True, "report_to": "none", "max_steps": 2, "muon": True, "learning_rate": 0.1}
    training = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, **options)
    model = make_model(implementation=implementation, masked_prediction=objective.masked_prediction)
    phases = [Phase(Rows(16), range(2), 8)]
    trainer = FlexQwenTrainer(Arguments(None, None, objective, training, []), tmp_path, model, Tokenizer, phases, None)
    batches = iter(trainer.get_train_dataloader())
    model.to("meta")
    trainer._prepare_inputs = to_meta
    trainer.create_optimizer_and_scheduler(2)
    trainer._batch_of_step, trainer.current_gradient_accumulation_steps = 0, 1  # which the loop sets
    for _ in range(2):
        batch = next(batches)
        loss = trainer.training_step(model, batch, to_meta((batch["labels"] != -100).sum()))
        norm = trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()
        assert loss.device.type == norm.device.type == trainer.metrics.sums.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):  # the proof is worth something
        del batch["target_positions"]
        trainer.training_step(model, batch)


@pytest.mark.parametrize("implementation", ["sdpa", "varlen"])
def test_layers_are_compiled_once_for_each_length_of_rows(implementation, monkeypatch):
    monkeypatch.setattr(modeling_flexqwen, "VARLEN", {"meta": (torch.float32,)})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model(implementation=implementation).train()
    names = list(model.state_dict())
    training = TrainingArguments("unused", use_cpu=True, report_to="none", torch_compile_backend="eager")
    compile_layers(model, training)
    assert not training.torch_compile and list(model.state_dict()) == names
    model.to("meta")
    graphs = []
    for length in (8, 16):
        rows = TrainingRows([Phase(Rows(length), range(8), 8)], ObjectiveArguments(causal_fraction=0.45), 0)
        for step in range(8):
            batch = to_meta(collate([rows[item] for item in range(8 * step, 8 * step + 8)]))
            model(**batch).loss.backward()
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not torch._dynamo.utils.counters["graph_break"]
    assert graphs == [2] * 8 + [4] * 8  # of a layer, and of the last


def test_compiled_layers_learn_what_others_do():
    torch._dynamo.reset()
    rows = TrainingRows([Phase(Rows(16), range(2), 8)], ObjectiveArguments(), 0)
    batch = collate([rows[item] for item in range(8)])
    plain, compiled = make_model().train(), make_model().train()
    training = TrainingArguments("unused", use_cpu=True, report_to="none", torch_compile_backend="aot_eager")
    compile_layers(compiled, training)
    losses = [model(**batch).loss for model in (plain, compiled)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, parameter), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fuse", [fuse_norms, fuse_layers])
@pytest.mark.parametrize("objective", [{}, {"strategy": "baseline-causal"}], ids=str)
def test_fused_layers_learn_what_others_do(objective, fuse, half):
    """To the rounding of float32, or of bfloat16 under autocast, where the kernel gets a rounded weight."""
    rows = TrainingRows([Phase(Rows(16), range(2), 8)], ObjectiveArguments(**objective), 0)
    batch = collate([rows[item] for item in range(8)])
    plain, fused = make_model().train(), make_model().train()
    fuse(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    gradients = []
    for model in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(**batch).loss
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    off = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    assert off < (0.1 if half else 1e-5)


def test_what_the_collator_makes_changes_no_bit():
    rows = TrainingRows([Phase(Rows(16), range(2), 8)], ObjectiveArguments(), 0)
    batch = collate([rows[item] for item in range(8)])
    bare = {name: value for name, value in batch.items() if name not in ("segments", "target_positions")}
    models = [make_model().train() for _ in range(2)]
    for model, inputs in zip(models, (batch, bare), strict=True):
        model(**inputs).loss.backward()
    assert all(
        torch.equal(one.grad, two.grad) for one, two in zip(*(model.parameters() for model in models), strict=True)
    )


def test_half_precision_losses_and_gradients_are_those_of_float32_within_rounding():
    torch.manual_seed(0)
    logits, target = 4 * torch.randn(32, 1000), torch.randint(1000, (32, 1))
    logits[torch.arange(8), target[:8, 0]] += 20  # some are certain
    weights = torch.rand(32, 1)
    half = logits.bfloat16()
    expected, *gradient = modeling_flexqwen.losses_and_gradient(half.float(), target, weights)
    losses, *found = modeling_flexqwen.losses_and_gradient(half, target, weights)
    assert losses.dtype == torch.float32 and found[0].dtype == torch.bfloat16
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(found[0] * found[1], gradient[0] * gradient[1], rtol=0.05, atol=1e-3)
