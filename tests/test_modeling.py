"""FlexQwen against Qwen3, and what each token can see in each mode."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from configuration_flexqwen import FlexQwenConfig
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM, FlexQwenModel

PAD, BOS, EOS, MASK = 0, 1, 2, 3
VOCABULARY = 64
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
LENGTH = 12
DOCUMENT_STARTS = (0, 5, 9)  # of a packed row


def make_model(cls=FlexQwenForCausalLM, implementation="sdpa", dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = FlexQwenConfig(**{**SHAPE, "mask_token_id": MASK, **changes}, attn_implementation=implementation)
    model = cls(config)
    for parameter in model.parameters():  # far from initialisation, so that leaks are visible
        parameter.data.normal_(0, 0.2)
    return model.to(dtype).eval()


def make_qwen3(model, implementation="sdpa"):
    config = {key: getattr(model.config, key) for key in SHAPE}
    qwen3 = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation=implementation)).to(model.dtype).eval()
    qwen3.load_state_dict(model.state_dict())
    return qwen3


def make_ids(batch=2, length=LENGTH, seed=0):
    return torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def packed_positions(batch):
    starts = torch.tensor(DOCUMENT_STARTS)
    columns = torch.arange(LENGTH)
    owner = (columns[:, None] >= starts).sum(-1) - 1
    return (columns - starts[owner]).expand(batch, -1), owner


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


def test_generate_equals_qwen3():
    model = make_model()
    qwen3, ids = make_qwen3(model), make_ids(length=4)
    for options in ({}, {"num_beams": 3}, {"use_cache": False}):
        ours, theirs = (m.generate(ids, max_new_tokens=8, do_sample=False, **options) for m in (model, qwen3))
        assert torch.equal(ours, theirs)


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


def test_loss_in_chunks_equals_loss_at_once(monkeypatch):
    model, ids = make_model().train(), make_ids(batch=3)
    whole = model(ids, labels=ids).loss
    whole.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr("modeling_flexqwen.CHUNK_ELEMENTS", 5 * VOCABULARY)
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


IN_A_NEW_PROCESS = """
import json, sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
where = json.loads(sys.argv[1])
found = {}
for auto in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
    loaded = auto.from_pretrained(**where, trust_remote_code=True)
    found[auto.__name__] = type(loaded).__name__
found["logits"] = AutoModelForCausalLM.from_pretrained(**where, trust_remote_code=True)(
    torch.arange(4, 16)[None]).logits.sum().item()
print(json.dumps(found))
"""


@pytest.mark.parametrize("as_subfolder", [False, True])
def test_a_saved_model_loads_in_a_new_process_in_another_folder(tmp_path, as_subfolder):
    model = make_model()
    checkpoint = tmp_path / "repo" / "run" / "best"
    model.save_pretrained(checkpoint)
    where = {"pretrained_model_name_or_path": str(checkpoint)}
    if as_subfolder:
        model.config.save_pretrained(tmp_path / "repo")  # brings the code along
        (tmp_path / "repo" / "modeling_flexqwen.py").write_bytes((checkpoint / "modeling_flexqwen.py").read_bytes())
        where = {"pretrained_model_name_or_path": str(tmp_path / "repo"), "subfolder": "run/best"}
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, json.dumps(where)],
        cwd=tmp_path / "elsewhere",
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("logits") == pytest.approx(model(torch.arange(4, 16)[None]).logits.sum().item(), rel=1e-4)
    assert found == {
        "AutoConfig": "FlexQwenConfig",
        "AutoModel": "FlexQwenModel",
        "AutoModelForCausalLM": "FlexQwenForCausalLM",
        "AutoModelForMaskedLM": "FlexQwenForMaskedLM",
    }
