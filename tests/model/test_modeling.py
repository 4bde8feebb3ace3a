"""In causal mode FlexQwen is Qwen3; its loss is Qwen3's, computed where the labels are."""

import pytest
import torch

from modeling_flexqwen import FlexQwenForMaskedLM
from tests.helpers.tiny import (
    IMPLEMENTATIONS,
    LENGTH,
    PAD,
    VOCABULARY,
    make_ids,
    make_model,
    make_qwen3,
    packed_positions,
)

pytestmark = pytest.mark.usefixtures("uncompiled_flex")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["plain", "left padded", "right padded", "packed"])
def test_causal_logits_equal_qwen3_bit_for_bit(implementation, dtype, layout):
    model = make_model(implementation=implementation, dtype=dtype)
    qwen3 = make_qwen3(model, implementation)
    ids, inputs = make_ids(), {"use_cache": False}
    if layout.endswith("padded"):
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        inputs["attention_mask"] = mask if layout == "left padded" else mask.flip(-1)
    if layout == "packed":
        inputs["position_ids"] = packed_positions(len(ids))[0]
    with torch.no_grad():
        assert torch.equal(model(ids, **inputs).logits, qwen3(ids, **inputs).logits)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": False}, {"num_key_value_heads": 4}])
def test_causal_logits_equal_qwen3_for_other_shapes(changes):
    model = make_model(**changes)
    assert torch.equal(model(make_ids()).logits, make_qwen3(model)(make_ids()).logits)


def some_labels(ids):
    labels = ids.clone()
    labels[:, ::3] = -100
    return labels


def test_loss_and_gradients_equal_qwen3s():
    model = make_model().train()
    qwen3, ids = make_qwen3(model).train(), make_ids(batch=3)
    ours, theirs = (m(ids, labels=some_labels(ids), use_cache=False) for m in (model, qwen3))
    assert ours.logits is None and theirs.logits is not None
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    ours.loss.backward(), theirs.loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), qwen3.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_hidden_states_are_whole_where_they_are_asked_for():
    model, ids = make_model().train(), make_ids()
    output = model(ids, labels=some_labels(ids), output_hidden_states=True)
    assert {states.shape[:2] for states in output.hidden_states} == {ids.shape}
    torch.testing.assert_close(output.loss, model(ids, labels=some_labels(ids)).loss)


def test_a_compiled_model_has_the_same_loss():
    model, ids = make_model().train(), make_ids()
    labels = some_labels(ids)
    loss = torch.compile(model, backend="eager")(ids, labels=labels, use_cache=False).loss
    torch.testing.assert_close(loss, model(ids, labels=labels).loss)


def test_a_model_without_its_last_layers_has_the_same_loss_in_training():
    for depth in (1, 0):
        model, ids = make_model(), make_ids()
        model.model.layers = model.model.layers[:depth]
        model.config.num_hidden_layers = depth
        labels = some_labels(ids)
        torch.testing.assert_close(model.train()(ids, labels=labels).loss, model.eval()(ids, labels=labels).loss)


def test_loss_in_chunks_equals_loss_at_once(monkeypatch):
    model, ids = make_model().train(), make_ids(batch=3)
    whole = model(ids, labels=ids).loss
    whole.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr("modeling_flexqwen.CHUNK_TOKENS", 2)
    chunked = model(ids, labels=ids).loss
    chunked.backward()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient)


@pytest.mark.parametrize("masked_prediction", ["next_token", "in_place"])
def test_a_mixed_batchs_loss_is_that_of_its_rows(masked_prediction):
    model = make_model(masked_prediction=masked_prediction)
    ids, is_causal = make_ids(batch=4), torch.tensor([True, False, True, False])
    labels, weights = some_labels(ids), torch.tensor([1.0, 2.0, 0.5, 0.0])
    output = model(ids, labels=labels, is_causal=is_causal, row_weights=weights, num_items_in_batch=7)
    expected = []
    for row in range(4):
        logits = model(ids[row : row + 1], is_causal=bool(is_causal[row]), use_cache=False).logits[0]
        shift = 0 if masked_prediction == "in_place" and not is_causal[row] else 1
        places = [place for place in range(shift, LENGTH) if labels[row, place] != -100]
        nats = [-logits[place - shift].log_softmax(-1)[labels[row, place]] for place in places]
        assert output.row_labels[row] == len(places)
        expected.append(torch.stack(nats).sum())
    torch.testing.assert_close(output.row_losses, torch.stack(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, (torch.stack(expected) * weights).sum() / 7, rtol=1e-5, atol=1e-5)


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    model, ids = make_model().train(), make_ids()
    output = model(ids, labels=torch.full_like(ids, -100))
    output.loss.backward()
    assert output.loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("padding", [0, 3])
def test_labels_within_a_prefix_are_left_out(padding):
    model, ids = make_model(masked_prediction="in_place", is_causal=False), make_ids()
    prefix_length = torch.tensor([4, 6])
    mask = torch.ones_like(ids)
    if padding:
        ids, mask = (torch.nn.functional.pad(x, (padding, 0), value=v) for x, v in ((ids, PAD), (mask, 0)))
    output = model(ids, attention_mask=mask, labels=ids, prefix_length=prefix_length, use_cache=False)
    for row in range(2):
        first = padding + int(prefix_length[row])
        expected = -output.logits[row, first - 1 : -1].log_softmax(-1).gather(-1, ids[row, first:, None]).sum()
        torch.testing.assert_close(output.row_losses[row], expected)
        assert output.row_labels[row] == LENGTH - prefix_length[row]


@pytest.mark.parametrize("label", [-1, VOCABULARY])
def test_labels_beyond_the_vocabulary_are_refused(label):
    model, ids = make_model().train(), make_ids()
    labels = ids.clone()
    labels[1, 3] = label
    with pytest.raises(ValueError, match=f"labels must lie between 0 and {VOCABULARY - 1}"):
        model(ids, labels=labels)


def test_next_token_prediction_of_masks_leaves_out_a_label_with_nothing_before_it():
    model, ids = make_model(FlexQwenForMaskedLM), make_ids()
    labels = torch.full_like(ids, -100)
    labels[0, 5] = ids[0, 5]
    expected = model(ids, labels=labels).loss
    labels[:, 0] = ids[:, 0]
    torch.testing.assert_close(model(ids, labels=labels).loss, expected)


class Adapted(torch.nn.Linear):
    """A head that is more than its matrix, as with LoRA."""

    def forward(self, hidden):
        return super().forward(hidden) + 3 * hidden.sum(-1, keepdim=True) * torch.linspace(-1, 1, VOCABULARY)


@pytest.mark.parametrize("masked_prediction", ["next_token", "in_place"])
def test_a_head_that_is_more_than_its_matrix_is_called_for_the_loss(masked_prediction):
    model, ids = make_model(FlexQwenForMaskedLM, masked_prediction=masked_prediction), make_ids()
    labels = torch.full_like(ids, -100)
    labels[:, 3], labels[0, 7] = ids[:, 3], ids[0, 7]
    plain = model(ids, labels=labels)
    model.lm_head.__class__ = Adapted
    adapted = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(adapted.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(adapted.loss, expected)
    assert (adapted.loss - plain.loss).abs() > 0.1
    adapted.loss.backward()
    assert model.lm_head.weight.grad.any()


def test_the_loss_is_differentiated_once():
    model, ids = make_model().train(), make_ids()
    loss = model(ids, labels=ids).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss.backward()


def test_evaluation_makes_no_gradient(monkeypatch):
    model, ids = make_model(), make_ids()
    wanted = model(ids, labels=ids).row_losses
    monkeypatch.setattr(torch, "zeros_like", lambda *_: pytest.fail("the head's gradient is made"))
    with torch.no_grad():
        assert torch.equal(model(ids, labels=ids).row_losses, wanted)


def test_layers_say_the_configs_mode_to_who_attends_in_their_place():
    modes = [make_model(**given).model.layers[0].self_attn.is_causal for given in ({}, {"is_causal": False})]
    assert modes == [True, False]
