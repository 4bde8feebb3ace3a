"""What each token sees, in each attention mode, layout and implementation."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from configuration_flexqwen import FlexQwenConfig
from modeling_flexqwen import FlexQwenForMaskedLM, FlexQwenModel
from tests.helpers.tiny import (
    DOCUMENT_STARTS,
    IMPLEMENTATIONS,
    LENGTH,
    VOCABULARY,
    make_ids,
    make_model,
    packed_positions,
)

pytestmark = pytest.mark.usefixtures("uncompiled_flex")


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


# FlexAttention, whose plain implementation is slow, in one batch of each case
@pytest.mark.parametrize(
    ("mode", "layout", "batch", "implementation"),
    [
        (mode, layout, batch, implementation)
        for implementation in IMPLEMENTATIONS
        for mode, layout, batch in CASES
        if implementation != "flex_attention" or batch == (3 if mode.startswith("row-wise") else 1)
    ],
)
def test_outputs_depend_on_exactly_the_tokens_they_should(implementation, mode, layout, batch):
    model = make_model(implementation=implementation, num_hidden_layers=1 + (implementation == "sdpa"))
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


PREFIX = 5


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["plain", "left padded", "right padded"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_prefix_sees_itself_whole_and_the_rest_is_causal(implementation, layout, batch):
    model = make_model(implementation=implementation, num_hidden_layers=1)
    ids, inputs = make_ids(batch), {"prefix_length": torch.tensor([PREFIX, 0, 9][:batch])}
    real = torch.ones(LENGTH, dtype=torch.bool)
    if layout != "plain":
        real[:3] = False
        real = real if layout == "left padded" else real.flip(0)
        inputs["attention_mask"] = real.long().expand(batch, -1)
    seen = visible_from_outputs(model, ids, **inputs)
    place = real.long().cumsum(0) - 1
    expected = (place <= place[:, None]) | (place < PREFIX)
    assert torch.equal(seen[real], (expected & real)[real])


def test_prefixes_of_nothing_and_of_everything_are_the_other_two_modes():
    model, ids = make_model(), make_ids()
    for length, is_causal in ((0, True), (LENGTH, False)):
        prefix = model(ids, prefix_length=torch.full((2,), length)).logits
        torch.testing.assert_close(
            prefix, model(ids, is_causal=is_causal, use_cache=False).logits, rtol=1e-5, atol=1e-5
        )


def reference_varlen(query, key, value, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa=False):
    """What torch's CUDA kernel computes, a document at a time."""
    assert starts.dtype == torch.int32 and torch.equal(starts, starts_k) and longest == longest_k
    assert longest >= starts.diff().max() and starts[-1] == len(query) and key.shape == value.shape
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for start, end in itertools.pairwise(starts.tolist()):
        if start == end:
            continue
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        is_causal = window_size == (-1, 0)
        outputs.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=is_causal))
    return torch.cat(outputs, dim=1).transpose(0, 1)


@pytest.mark.parametrize("rows", [True, False, [True, True, False], [False, True, False]], ids=str)
@pytest.mark.parametrize("packed", [True, False])
def test_variable_length_attention_needs_no_mask_and_equals_sdpa(monkeypatch, rows, packed):
    ids = make_ids(batch=3)
    inputs = {"is_causal": torch.tensor(rows) if isinstance(rows, list) else rows, "use_cache": False}
    if packed:
        inputs["position_ids"] = packed_positions(3)[0]
    expected = make_model().train()
    expected_loss = expected(ids, labels=ids, **inputs).loss
    expected_loss.backward()

    def refuse(*args, **kwargs):
        raise AssertionError("a mask was built")

    monkeypatch.setattr("modeling_flexqwen.varlen_attn", reference_varlen)
    monkeypatch.setattr("modeling_flexqwen.VARLEN", {"cpu": (torch.float32,)})
    monkeypatch.setattr("modeling_flexqwen.create_bidirectional_mask", refuse)
    model = make_model(implementation="varlen").train()
    loss = model(ids, labels=ids, **inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_variable_length_attention_is_sdpa_where_there_is_no_kernel_for_it(monkeypatch):
    ids, inputs = make_ids(), {"position_ids": packed_positions(2)[0], "is_causal": False, "use_cache": False}
    assert torch.equal(make_model(implementation="varlen")(ids, **inputs).logits, make_model()(ids, **inputs).logits)
    monkeypatch.setattr("modeling_flexqwen.VARLEN", {"cpu": (torch.float32,)})
    model, sdpa, ids = make_model(implementation="varlen"), make_model(), make_ids(length=6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for inputs in ({"attention_mask": mask}, {"attention_mask": mask, "is_causal": False, "use_cache": False}):
        assert torch.equal(model(ids, **inputs).logits, sdpa(ids, **inputs).logits)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), sdpa.generate(ids, **options))


def test_the_variable_length_kernel_gets_half_precision_only(monkeypatch):
    seen = []

    def kernel(query, key, value, *args, **kwargs):
        seen.append({query.dtype, key.dtype, value.dtype})
        return query

    monkeypatch.setattr("modeling_flexqwen.varlen_attn", kernel)
    monkeypatch.setattr("modeling_flexqwen.VARLEN", {"cpu": (torch.bfloat16,)})
    model, inputs = make_model(implementation="varlen"), {"is_causal": False, "use_cache": False}
    model(make_ids(), **inputs)
    assert not seen
    with torch.autocast("cpu", torch.bfloat16):
        model(make_ids(), **inputs)
    assert seen == [{torch.bfloat16}] * model.config.num_hidden_layers


@pytest.mark.parametrize("is_causal", [True, False])
def test_flash_attention_is_told_where_documents_begin_at_any_batch_size(is_causal):
    def flash(module, query, key, value, mask, scaling, is_causal, cu_seq_lens_q, max_length_q, **kwargs):
        assert mask is None and kwargs["cu_seq_lens_k"] is cu_seq_lens_q and kwargs["max_length_k"] == max_length_q
        groups, shape = module.num_key_value_groups, query.shape
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        starts, window = cu_seq_lens_q, (-1, 0) if is_causal else (-1, -1)
        out = reference_varlen(*flat, starts, starts, max_length_q, max_length_q, scale=scaling, window_size=window)
        return out.view(shape[0], shape[2], shape[1], shape[3]), None

    AttentionInterface.register("reference_flash", flash)
    AttentionMaskInterface.register("reference_flash", flash_attention_mask)
    model, sdpa, ids = make_model(), make_model(), make_ids(batch=3)
    model.config._attn_implementation = "reference_flash"  # asked for by name, transformers looks for a kernel
    inputs = {"position_ids": packed_positions(3)[0], "is_causal": is_causal, "use_cache": False}
    torch.testing.assert_close(model(ids, **inputs).logits, sdpa(ids, **inputs).logits, rtol=1e-5, atol=1e-5)
    ones = torch.ones_like(ids)
    torch.testing.assert_close(
        model(ids, attention_mask=ones, **inputs).logits, sdpa(ids, **inputs).logits, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="varlen"):
        model(ids, is_causal=torch.tensor([True, False, True]))
    padded = ones.clone()
    padded[0, -1] = 0
    with pytest.raises(ValueError, match="packed rows or padded"):
        model(ids, attention_mask=padded, **inputs)


ALL_MODES = {
    "causal": {},
    "bidirectional": {"is_causal": False},
    "row-wise": {"is_causal": torch.tensor([True, False])},
    "prefix": {"prefix_length": torch.tensor([3, 7])},
}


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("layout", ["plain", "left padded", "right padded", "packed"])
def test_implementations_gradient_checkpointing_and_compile_agree(mode, layout):
    ids, inputs = make_ids(), {**ALL_MODES[mode], "use_cache": False}
    real = torch.ones_like(ids, dtype=torch.bool)
    if layout.endswith("padded"):
        real[1, :4] = False
        real = real if layout == "left padded" else real.flip(-1)
        inputs["attention_mask"] = real.long()
    if layout == "packed":
        if mode == "prefix":
            pytest.skip("a packed row has no one prefix; it is refused")
        inputs["position_ids"] = packed_positions(2)[0]
    labels = ids.masked_fill(~(real & real.roll(1, -1)), -100)  # nothing is predicted from padding
    make_one = partial(make_model, num_hidden_layers=1)  # layer, which compiles sooner
    plain = make_one().train()

    def logits_and_gradient(model):
        loss = model(ids, labels=labels, **inputs).loss
        loss.backward()
        with torch.no_grad():
            return model.eval()(ids, **inputs).logits[real], plain_parameter(model).grad

    def plain_parameter(model):
        return model.get_parameter("model.layers.0.self_attn.q_proj.weight")

    logits, gradient = logits_and_gradient(plain)
    eager = make_one(implementation="eager").train()
    checkpointed = make_one().train()
    checkpointed.gradient_checkpointing_enable()
    for other in (eager, checkpointed):
        other_logits, other_gradient = logits_and_gradient(other)
        torch.testing.assert_close(other_logits, logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        flex = make_one(implementation="flex_attention")(ids, **inputs).logits[real]
        torch.testing.assert_close(flex, logits, rtol=1e-4, atol=1e-5)
        if layout != "right padded":  # which is what left padded is, to a compiler
            compiled = torch.compile(make_one(), backend="aot_eager")(ids, **inputs).logits[real]
            torch.testing.assert_close(compiled, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "implementation"),
    [
        ("bidirectional", "sdpa"),
        ("prefix", "flex_attention"),
        pytest.param("prefix", "sdpa", marks=pytest.mark.slow),
        pytest.param("bidirectional", "flex_attention", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_sees_what_it_should(implementation, mode, monkeypatch):
    monkeypatch.undo()  # FlexAttention compiled as well
    torch._dynamo.reset()
    inputs = {"is_causal": False} if mode == "bidirectional" else {"prefix_length": torch.tensor([PREFIX])}
    compiled = torch.compile(make_model(FlexQwenModel, implementation, num_hidden_layers=1))
    seen = visible_from_outputs(compiled, make_ids(1), use_cache=False, **inputs)
    place = torch.arange(LENGTH)
    assert torch.equal(seen, (place <= place[:, None]) | (place < (LENGTH if mode == "bidirectional" else PREFIX)))


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


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("layout", ["plain", "left padded", "right padded", "packed", "cached"])
def test_a_causal_call_is_causal_though_the_config_says_otherwise(implementation, layout):
    causal, ids = make_model(implementation=implementation), make_ids()
    bidirectional = make_model(implementation=implementation, is_causal=False)
    inputs = {"is_causal": True, "use_cache": layout == "cached"}
    if layout.endswith("padded"):
        mask = torch.ones_like(ids)
        mask[1, :4] = 0
        inputs["attention_mask"] = mask if layout == "left padded" else mask.flip(-1)
    if layout == "packed":
        inputs["position_ids"] = packed_positions(len(ids))[0]
    found = []
    for model in (causal, bidirectional):
        output = model(ids, **inputs)
        if layout == "cached":
            output = model(ids[:, :3], past_key_values=output.past_key_values, is_causal=True)
        found.append(output.logits)
    assert torch.equal(*found)


def test_the_config_takes_a_mode_where_it_is_loaded(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert not hasattr(FlexQwenConfig.from_pretrained(tmp_path, is_causal=None), "is_causal")
    assert FlexQwenConfig.from_pretrained(tmp_path, is_causal=False).is_causal is False
    loaded, ids = FlexQwenModel.from_pretrained(tmp_path, is_causal=False), make_ids()
    expected = FlexQwenModel.from_pretrained(tmp_path)(ids, is_causal=False)[0]
    assert torch.equal(loaded(ids)[0], expected)
    loaded.save_pretrained(tmp_path / "bidirectional")
    assert torch.equal(FlexQwenModel.from_pretrained(tmp_path / "bidirectional")(ids)[0], expected)


def test_rows_past_the_last_position_are_said_once(monkeypatch):
    said = []
    monkeypatch.setattr("modeling_flexqwen.logger.warning_once", said.append)
    model, ids = make_model(max_position_embeddings=LENGTH), make_ids()
    cache = model(ids, use_cache=True).past_key_values
    assert not said
    model(ids[:, :1], past_key_values=cache)
    assert said == [f"rows of {LENGTH + 1} tokens and more are longer than the {LENGTH} positions of this model"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"is_causal": False, "use_cache": True}, "use_cache=False"),
        ({"position_ids": packed_positions(2)[0], "use_cache": True}, "use_cache=False"),
        ({"is_causal": torch.tensor([True])}, r"shape \(2,\), got torch.bool of shape \(1,\)"),
        ({"is_causal": torch.tensor([1, 0])}, "bool tensor"),
        ({"is_causal": 0}, "bool tensor of shape .*, got 0"),  # a mode that another program has as a number
        ({"is_causal": np.bool_(False)}, "must be a bool"),
        ({"prefix_length": torch.tensor([3, LENGTH + 1])}, r"\[3, 13\] must lie between 0 and the row's 12"),
        ({"prefix_length": torch.tensor([3, -1])}, "must lie between"),
        ({"prefix_length": torch.tensor(3)}, r"shape \(2,\), got torch.int64 of shape \(\)"),
        ({"prefix_length": torch.tensor([3.0, 2.0])}, "must be a tensor of integers"),
        ({"prefix_length": 3}, r"must be a tensor of integers of shape \(2,\), got 3"),
        ({"prefix_length": torch.tensor([3, 3]), "position_ids": packed_positions(2)[0]}, "one document each"),
        ({"prefix_length": torch.tensor([3, 3]), "is_causal": False}, "goes with causal attention"),
        ({"input_ids": torch.full((2, LENGTH), VOCABULARY)}, "between 0 and 63"),
        ({"input_ids": torch.full((2, LENGTH), -1)}, "between 0 and 63"),
        ({"inputs_embeds": torch.zeros(2, LENGTH, 32)}, "exactly one"),
        ({"labels": torch.zeros(2, LENGTH + 1, dtype=torch.long)}, r"labels must have shape \(2, 12\), got \(2, 13\)"),
    ],
)
def test_bad_input_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**{"input_ids": make_ids(), **inputs})


def test_bad_configurations_and_calls_are_refused():
    model, ids = make_model(), make_ids()
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(ids, is_causal=False, max_new_tokens=2)
    with pytest.raises(ValueError, match="mask_token_id"):
        make_model(FlexQwenForMaskedLM, mask_token_id=None)
    with pytest.raises(ValueError, match="next_token, in_place"):
        FlexQwenConfig(masked_prediction="somewhere")
    windowed = make_model(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match="use_sliding_window=False"):
        windowed(ids, is_causal=False)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    for name in ("past_key_values", "cache"):  # as transformers calls it from 5.24 on
        with pytest.raises(ValueError, match="passed whole"):
            model(ids[:, 4:], **{name: cache}, prefix_length=torch.tensor([6, 6]))
        with pytest.raises(ValueError, match="computed left to right"):
            model(ids[:, 4:], **{name: cache}, is_causal=False)


def test_a_compiled_model_takes_position_ids_with_a_cache_or_a_prefix():
    model, ids = make_model(num_hidden_layers=1), make_ids()
    positions = torch.arange(LENGTH).expand(len(ids), -1)
    compiled = torch.compile(model, backend="eager")
    for options in ({"use_cache": True}, {"prefix_length": torch.tensor([4, 5]), "use_cache": False}):
        expected = model(ids, **options).logits
        torch.testing.assert_close(compiled(ids, position_ids=positions, **options).logits, expected)


def test_a_call_changes_no_config_that_another_thread_reads():
    """transformers writes the mode into the config for as long as a forward pass lasts."""
    model, seen = make_model(), []
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(getattr(model.config, "is_causal", None)))
    for mode in (False, True, torch.tensor([True, False])):
        model(make_ids(batch=2), is_causal=mode, use_cache=False)
    assert seen == [None] * 3
