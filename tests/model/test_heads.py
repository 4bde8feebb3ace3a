"""Generation, masked prediction and the encoder heads, through transformers' own interfaces."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForQuestionAnswering,
    Qwen3ForTokenClassification,
    Qwen3Model,
    StaticCache,
)

from flexqwen.cli import InputError
from flexqwen.files import read_json
from flexqwen.hub.export import export
from modeling_flexqwen import (
    FlexQwenForCausalLM,
    FlexQwenForMaskedLM,
    FlexQwenForQuestionAnswering,
    FlexQwenForSequenceClassification,
    FlexQwenForTokenClassification,
    FlexQwenModel,
)
from tests.helpers.tiny import LENGTH, MASK, PAD, make_ids, make_model, make_qwen3

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        {**GREEDY, "num_beams": 3},
        {**GREEDY, "use_cache": False},
        {**GREEDY, "cache_implementation": "static"},
        {"max_new_tokens": 8, "do_sample": True, "top_k": 20},
    ],
    ids=["greedy", "beam", "no cache", "static cache", "sampled"],
)
def test_generate_equals_qwen3(options, padding):
    model = make_model()
    ids, mask = make_ids(length=5), torch.ones(2, 5, dtype=torch.long)
    if padding == "left":
        ids[0, :2], mask[0, :2] = PAD, 0
    written = []
    for one in (model, make_qwen3(model)):
        torch.manual_seed(1)
        written.append(one.generate(ids, attention_mask=mask, disable_compile=True, **options))
    assert torch.equal(*written)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}])
def test_generate_after_a_prefix_equals_a_plain_loop(padding, options):
    model, prefix_length = make_model(), torch.tensor([5, 5])
    ids, mask = make_ids(length=5), torch.ones(2, 5, dtype=torch.long)
    if padding == "left":
        ids[0, :2], mask[0, :2] = PAD, 0
        prefix_length = mask.sum(-1)
    written = model.generate(
        ids, attention_mask=mask, prefix_length=prefix_length, disable_compile=True, **GREEDY, **options
    )
    for row in range(2):
        expected = ids[row : row + 1, -int(prefix_length[row]) :]
        plain = model.generate(expected, prefix_length=prefix_length[row : row + 1], **GREEDY, **options)
        if "num_beams" not in options:
            for _ in range(GREEDY["max_new_tokens"]):
                logits = model(expected, prefix_length=prefix_length[row : row + 1], use_cache=False).logits
                expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
            assert torch.equal(plain, expected)
        assert torch.equal(written[row, -GREEDY["max_new_tokens"] :], plain[0, -GREEDY["max_new_tokens"] :])
    causal = model.generate(ids, attention_mask=mask, disable_compile=True, **GREEDY, **options)
    assert not torch.equal(causal, written)


def test_a_static_cache_and_logits_to_keep():
    model, ids = make_model(), make_ids(length=6)
    whole = model(ids).logits
    cache = StaticCache(config=model.config, max_cache_len=10)
    model(ids[:, :4], past_key_values=cache)
    torch.testing.assert_close(model(ids[:, 4:], past_key_values=cache).logits, whole[:, 4:], rtol=1e-5, atol=1e-5)
    assert torch.equal(model(ids, logits_to_keep=2).logits, whole[:, -2:])


@pytest.mark.parametrize("is_causal", [True, False])
def test_inputs_embeds_hidden_states_and_attentions(is_causal):
    model, ids = make_model(implementation="eager"), make_ids()
    options = {"is_causal": is_causal, "use_cache": False, "output_hidden_states": True, "output_attentions": True}
    output = model(ids, **options)
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids), **options)
    assert torch.equal(output.logits, embedded.logits)
    assert [state.shape for state in output.hidden_states] == [(2, LENGTH, 32)] * 3
    assert [attention.shape for attention in output.attentions] == [(2, 4, LENGTH, LENGTH)] * 2
    ahead = output.attentions[0].triu(1).abs().sum()
    assert (ahead == 0) if is_causal else (ahead > 0)


def test_masked_lm_logits_are_aligned_with_the_mask():
    ids = make_ids()
    for masked_prediction, shift in (("next_token", 1), ("in_place", 0)):
        causal_lm = make_model(masked_prediction=masked_prediction)
        masked_lm = FlexQwenForMaskedLM(causal_lm.config).eval()
        masked_lm.load_state_dict(causal_lm.state_dict())
        unshifted = causal_lm(ids, is_causal=False).logits
        torch.testing.assert_close(masked_lm(ids).logits[:, 1:], unshifted[:, 1 - shift : LENGTH - shift])
        labels = torch.full_like(ids, -100)
        labels[:, 3], labels[0, 7] = ids[:, 3], ids[0, 7]
        expected = torch.nn.functional.cross_entropy(masked_lm(ids).logits.flatten(0, 1), labels.flatten())
        assert masked_lm.train()(ids, labels=labels).logits is None
        for model in (masked_lm, masked_lm.eval()):
            torch.testing.assert_close(model(ids, labels=labels).loss, expected)


HEADS = {
    FlexQwenForMaskedLM: {},
    FlexQwenForSequenceClassification: {"num_labels": 3},
    FlexQwenForTokenClassification: {"num_labels": 3},
    FlexQwenForQuestionAnswering: {},
}


def logits_of(output):
    return output.logits if "logits" in output else torch.stack([output.start_logits, output.end_logits], dim=-1)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_heads_are_bidirectional_and_blind_to_padding_on_either_side(head, side, implementation):
    model, ids = make_model(head, implementation, **HEADS[head]), make_ids(batch=2, length=8)
    alone = logits_of(model(ids))
    changed = ids.clone()
    changed[:, -1] = 4 + (changed[:, -1] - 4 + 1) % 60
    place = (slice(None),) if head is FlexQwenForSequenceClassification else (slice(None), 2)
    assert not torch.equal(logits_of(model(changed))[place], alone[place])
    causal = logits_of(model(ids, is_causal=True))
    assert not torch.equal(causal[place], alone[place])
    padding = torch.full((2, 3), PAD)
    parts = [padding, ids] if side == "left" else [ids, padding]
    padded = torch.cat(parts, dim=1)
    outputs = logits_of(model(padded, attention_mask=(padded != PAD).long()))
    if head is FlexQwenForSequenceClassification:
        torch.testing.assert_close(outputs, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits_of(model(padded)), alone, rtol=1e-4, atol=1e-5)
        return
    outputs = outputs[:, 3:] if side == "left" else outputs[:, :8]
    # Position 0 of next-token masked prediction has nothing before it but padding, and means nothing.
    torch.testing.assert_close(outputs[:, 1:], alone[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "labels", "loss"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2]), torch.nn.functional.cross_entropy),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0]), lambda x, y: ((x.squeeze(-1) - y) ** 2).mean()),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
            torch.nn.functional.binary_cross_entropy_with_logits,
        ),
    ],
    ids=["one label", "regression", "several labels"],
)
def test_sequence_classification_of_each_kind(changes, labels, loss):
    model, ids = make_model(FlexQwenForSequenceClassification, **changes), make_ids()
    output = model(ids, labels=labels)
    assert output.logits.shape == (2, changes["num_labels"])
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert model.score.weight.grad.any() and model.model.embed_tokens.weight.grad.any()


def test_token_classification_and_question_answering_losses():
    ids = make_ids()
    tokens = make_model(FlexQwenForTokenClassification, num_labels=4)
    labels = ids % 4
    output = tokens(ids, labels=labels)
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    )
    answers = make_model(FlexQwenForQuestionAnswering)
    starts, ends = torch.tensor([1, 2]), torch.tensor([3, 2])
    output = answers(ids, start_positions=starts, end_positions=ends)
    expected = torch.nn.functional.cross_entropy(output.start_logits, starts)
    expected = (expected + torch.nn.functional.cross_entropy(output.end_logits, ends)) / 2
    torch.testing.assert_close(output.loss, expected)


def test_every_head_takes_the_base_models_weights(tmp_path):
    make_model().save_pretrained(tmp_path)
    base = FlexQwenModel.from_pretrained(tmp_path)
    for head in HEADS:
        loaded = head.from_pretrained(tmp_path)
        assert torch.equal(loaded.model.layers[1].mlp.up_proj.weight, base.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qwen3_folders_load_as_they_are_and_exports_are_qwen3(tmp_path, tied, dtype):
    model, ids = make_model(tie_word_embeddings=tied, dtype=dtype), make_ids()
    model.save_pretrained(tmp_path / "flexqwen")
    model = FlexQwenForCausalLM.from_pretrained(tmp_path / "flexqwen", dtype="auto").eval()
    export(tmp_path / "flexqwen", tmp_path / "qwen3")
    assert not list((tmp_path / "qwen3").glob("*.py"))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen3", dtype="auto").eval()
    assert type(exported) is Qwen3ForCausalLM and exported.dtype == dtype
    assert torch.equal(exported(ids).logits, model(ids).logits)
    back = FlexQwenForCausalLM.from_pretrained(tmp_path / "qwen3", dtype="auto").eval()
    assert torch.equal(back(ids).logits, model(ids).logits)
    assert torch.equal(back(ids, is_causal=False).logits, model(ids, is_causal=False).logits)
    with pytest.raises(InputError, match="exists"):
        export(tmp_path / "flexqwen", tmp_path / "qwen3")
    with pytest.raises(InputError, match="not a FlexQwen checkpoint"):
        export(tmp_path / "qwen3", tmp_path / "other")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        export(tmp_path, tmp_path / "other")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_bidirectional_export_is_an_encoder_that_stock_transformers_run(tmp_path, tied, implementation):
    model, ids = make_model(tie_word_embeddings=tied, use_cache=False), make_ids()
    model.save_pretrained(tmp_path / "flexqwen")
    export(tmp_path / "flexqwen", tmp_path / "encoder", "bidirectional")
    config = AutoConfig.from_pretrained(tmp_path / "encoder")
    assert type(config) is Qwen3Config and config.architectures == ["Qwen3Model"] and config.use_cache
    assert config.is_causal is False and config.use_bidirectional_attention is True
    pooling = read_json(tmp_path / "encoder" / "1_Pooling" / "config.json")
    assert pooling["pooling_mode_mean_tokens"] and (tmp_path / "encoder" / "modules.json").is_file()
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"attn_implementation": implementation}
    flexqwen = FlexQwenModel.from_pretrained(tmp_path / "flexqwen", is_causal=False, **options).eval()
    stock = AutoModel.from_pretrained(tmp_path / "encoder", **options).eval()
    assert type(stock) is Qwen3Model
    for inputs in ({}, {"attention_mask": mask}, {"attention_mask": mask.flip(-1)}):
        expected = flexqwen(ids, **inputs)[0]
        assert torch.equal(stock(ids, **inputs)[0], expected)
        assert not torch.equal(flexqwen(ids, is_causal=True, **inputs)[0], expected)
    for theirs, ours in (
        (Qwen3ForTokenClassification, FlexQwenForTokenClassification),
        (Qwen3ForQuestionAnswering, FlexQwenForQuestionAnswering),
    ):
        theirs, ours = (cls.from_pretrained(tmp_path / "encoder", **options).eval() for cls in (theirs, ours))
        head = {name: value for name, value in theirs.state_dict().items() if name.startswith(("score", "qa_outputs"))}
        assert not ours.load_state_dict(head, strict=False).unexpected_keys and len(head) == 2
        found, expected = (tuple(model(ids, return_dict=False)) for model in (ours, theirs))
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_sharded_checkpoints_reload(tmp_path):
    model, ids = make_model(), make_ids()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(FlexQwenForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, model(ids).logits)


def test_generation_config_is_saved(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == 2


@pytest.mark.parametrize("masked_prediction", ["next_token", "in_place"])
def test_masked_lm_keeps_the_logits_that_are_asked_for(masked_prediction):
    model, ids = make_model(FlexQwenForMaskedLM, masked_prediction=masked_prediction), make_ids()
    whole = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=3).logits, whole[:, -3:])
    places = torch.tensor([5, 2])
    assert torch.equal(model(ids, logits_to_keep=places).logits, whole[:, places])
    model.config.return_dict = False
    assert torch.equal(model(ids)[0], whole)


@pytest.mark.parametrize("masked_prediction", ["next_token", "in_place"])
@pytest.mark.parametrize("left_to_right", [True, False])
def test_masks_are_filled_as_by_brute_force(masked_prediction, left_to_right):
    model, ids = make_model(FlexQwenForMaskedLM, masked_prediction=masked_prediction), make_ids(batch=2, length=8)
    ids[:, [2, 5]], ids[0, 6] = MASK, MASK
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = PAD, 0
    filled = model.fill(ids, mask, left_to_right=left_to_right)
    kept = ids != MASK
    assert torch.equal(filled[kept], ids[kept]) and (filled[~kept] > MASK).all()
    for row in range(2):
        expected = ids[row : row + 1, : int(mask[row].sum())].clone()
        while len(places := (expected[0] == MASK).nonzero()[:, 0]):
            chances = model(expected).logits[0].index_fill(-1, torch.arange(MASK + 1), -torch.inf).softmax(-1)[places]
            at = 0 if left_to_right else chances.amax(-1).argmax()
            expected[0, places[at]] = chances[at].argmax()
        assert torch.equal(filled[row : row + 1, : expected.shape[1]], expected)


def test_beams_that_hold_every_filling_find_the_likeliest():
    model, greedy = make_model(FlexQwenForMaskedLM, vocab_size=9), []
    for seed in (16, 17):
        ids = make_ids(batch=1, length=6, seed=seed) % 5 + 4
        ids[0, [2, 4]] = MASK
        scores = {}
        first = model(ids).logits[0, 2, 4:].log_softmax(-1)
        for one in range(4, 9):
            half = ids.clone()
            half[0, 2] = one
            second = model(half).logits[0, 4, 4:].log_softmax(-1)
            scores |= {(one, two): first[one - 4] + second[two - 4] for two in range(4, 9)}
        likeliest = max(scores, key=scores.get)
        assert tuple(model.fill(ids, left_to_right=True, num_beams=25)[0, [2, 4]].tolist()) == likeliest
        greedy.append(tuple(model.fill(ids, left_to_right=True)[0, [2, 4]].tolist()) == likeliest)
    assert greedy == [True, False]
