"""What each token sees, in each attention mode, layout and implementation."""

import itertools

import pytest
import torch

from configuration_flexqwen import FlexQwenConfig
from modeling_flexqwen import FlexQwenForMaskedLM, FlexQwenModel
from tests.tiny import (
    DOCUMENT_STARTS,
    IMPLEMENTATIONS,
    LENGTH,
    VOCABULARY,
    make_ids,
    make_model,
    packed_positions,
)


def visible_from_outputs(model, ids, **inputs):
    """`[i, j]`: does the output at i change, in any bit, when the token at j does? Row 0 of the batch."""
    base = model.model if hasattr(model, "model") else model
    with torch.no_grad():
        before = base(ids, **inputs).last_hidden_state[0]
        seen = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
        for place in range(LENGTH):
            changed = ids.clone()
            changed[0, place] = (changed[0, place] - 4 + 7) % (VOCABULARY - 4) + 4
            seen[:, place] = (base(changed, **inputs).last_hidden_state[0] != before).any(-1)
    return seen


def expected_visibility(mode, layout):
    rows, columns = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    seen = columns <= rows if mode == "causal" else torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    if layout == "packed":
        owner = packed_positions(1)[1]
        seen = seen & (owner[:, None] == owner)
    return seen


CASES = [
    (mode, layout, batch)
    for mode, layout in itertools.product(
        ("causal", "bidirectional", "row-wise causal", "row-wise bidirectional"),
        ("plain", "packed", "packed and masked", "left padded", "right padded"),
    )
    for batch in (1, 3)
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("mode", "layout", "batch"), CASES)
def test_outputs_depend_on_exactly_the_tokens_they_should(implementation, mode, layout, batch):
    model = make_model(implementation=implementation)
    ids, inputs = make_ids(batch), {}
    if mode.startswith("row-wise"):
        inputs["is_causal"] = torch.tensor([mode == "row-wise causal", True, False][:batch])
        mode = mode.removeprefix("row-wise ")
    else:
        inputs["is_causal"] = mode == "causal"
    real = torch.ones(LENGTH, dtype=torch.bool)
    if layout.startswith("packed"):
        inputs["position_ids"] = packed_positions(batch)[0]
    if layout == "packed and masked":
        inputs["attention_mask"] = torch.ones_like(ids)
        layout = "packed"
    if layout.endswith("padded"):
        real[:3] = False
        real = real if layout == "left padded" else real.flip(0)
        inputs["attention_mask"] = real.long().expand(batch, -1)
    seen = visible_from_outputs(model, ids, **inputs)
    expected = expected_visibility(mode, layout) & real
    assert torch.equal(seen[real], expected[real])


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_packed_documents_score_as_if_alone(mode):
    model, ids = make_model(), make_ids(batch=2)
    options = {"is_causal": mode == "causal", "use_cache": False}
    packed = model(ids, position_ids=packed_positions(2)[0], **options).logits
    for start, end in zip(DOCUMENT_STARTS, (*DOCUMENT_STARTS[1:], LENGTH), strict=True):
        alone = model(ids[:, start:end], **options).logits
        torch.testing.assert_close(packed[:, start:end], alone, rtol=1e-5, atol=1e-5)


def test_rows_of_both_modes_in_one_batch_equal_batches_of_one_mode():
    model, ids = make_model(), make_ids(batch=4)
    positions, is_causal = packed_positions(4)[0], torch.tensor([True, False, False, True])
    both = model(ids, position_ids=positions, is_causal=is_causal).logits
    for mode in (True, False):
        one = model(ids, position_ids=positions, is_causal=mode, use_cache=False).logits
        torch.testing.assert_close(both[is_causal == mode], one[is_causal == mode], rtol=1e-5, atol=1e-5)


def test_the_calls_mode_wins_over_the_configs_and_the_configs_over_the_classes():
    ids = make_ids()
    causal = make_model(FlexQwenModel)
    bidirectional = make_model(FlexQwenModel, is_causal=False)
    as_causal, as_bidirectional = causal(ids)[0], bidirectional(ids)[0]
    assert not torch.equal(as_causal, as_bidirectional)
    assert torch.equal(causal(ids, is_causal=False)[0], as_bidirectional)
    assert torch.equal(bidirectional(ids, is_causal=True)[0], as_causal)
    masked_lm = make_model(FlexQwenForMaskedLM)
    assert torch.equal(masked_lm(ids).logits, masked_lm(ids, is_causal=False).logits)


def test_masked_lm_logits_are_aligned_with_the_mask():
    ids = make_ids()
    for masked_prediction, shift in (("next_token", 1), ("in_place", 0)):
        causal_lm = make_model(masked_prediction=masked_prediction)
        masked_lm = FlexQwenForMaskedLM(causal_lm.config).eval()
        masked_lm.load_state_dict(causal_lm.state_dict())
        unshifted = causal_lm(ids, is_causal=False).logits
        torch.testing.assert_close(masked_lm(ids).logits[:, 1:], unshifted[:, 1 - shift : LENGTH - shift])


def test_bad_input_is_refused():
    model, ids = make_model(), make_ids()
    with pytest.raises(ValueError, match="use_cache=False"):
        model(ids, is_causal=False, use_cache=True)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(ids, is_causal=False, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        model(ids, is_causal=torch.tensor([True]))
    with pytest.raises(ValueError, match="mask_token_id"):
        make_model(FlexQwenForMaskedLM, mask_token_id=None)
    with pytest.raises(ValueError, match="next_token, in_place"):
        FlexQwenConfig(masked_prediction="somewhere")
