"""Scores equal a slow, plain re-implementation: one sentence at a time, no batch, no padding, all logits."""

import copy

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, BloomConfig, BloomForCausalLM

from flexqwen.cli import InputError
from flexqwen.evaluation import likelihood
from flexqwen.evaluation.bidirectional import Encoder
from flexqwen.evaluation.heldout import tokenize_texts
from flexqwen.evaluation.likelihood import Request, Scorer
from tests.helpers.tiny import make_ids, make_model, make_qwen3

TEXTS = [
    "A cidade fica no Brasil.",
    "Os meninos, que não vieram ontem, ficaram; a professora perguntou por eles.",
    "Sim",
    "O governo anunciou «medidas» <mask> novas, e a economia cresceu 3,5% em 2019.",
    "Água é vida! " * 9,
    " começa com espaço",
]


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    """A model of each kind, small and far from initialisation."""
    flexqwen = make_model(vocab_size=len(tokenizer), max_position_embeddings=48)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz0123456789.,;!",
        "##a",
        "##o",
        "##s",
    ]
    words += [f"##{letter}" for letter in "bcdefghijklmnpqrtuvwxyz"] + ["a", "os", "medidas", "cidade"]
    file = tmp_path_factory.mktemp("bert") / "vocab.txt"
    file.write_text("\n".join(dict.fromkeys(words)))
    bert_tokenizer = BertTokenizerFast(str(file), model_max_length=48)
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=len(bert_tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=48,
        )
    ).eval()
    for parameter in bert.parameters():
        parameter.data.normal_(0, 0.2)
    in_place = make_model(vocab_size=len(tokenizer), max_position_embeddings=48, masked_prediction="in_place")
    qwen3 = make_qwen3(flexqwen)
    qwen3.config.max_position_embeddings = 48
    for one in (tokenizer, bert_tokenizer):
        one.backend_tokenizer.encode_special_tokens = True  # as a scorer has it: "<mask>" in a text is text
    return {
        "flexqwen": (flexqwen, tokenizer, "flexqwen"),
        "in_place": (in_place, tokenizer, "flexqwen"),
        "qwen3": (qwen3, tokenizer, "causal"),
        "bert": (bert, bert_tokenizer, "masked"),
    }


def plain(model, tokenizer, request, masked, within_word, length=48):
    """The definition, spelled out for one text. Returns the log-probability in nats."""
    encoding = tokenizer.backend_tokenizer.encode(request.text, add_special_tokens=False)
    is_bert = model.config.model_type == "bert"
    before, after = ([tokenizer.cls_token_id], [tokenizer.sep_token_id]) if is_bert else ([tokenizer.bos_token_id], [])
    room, total, done, start = length - len(before) - len(after), 0.0, 0, 0
    last = len(request.text) if request.end is None or not masked else request.end

    def word(number):
        begin, end = encoding.offsets[number]
        first = next((place for place in range(begin, end) if not request.text[place].isspace()), begin)
        if not (request.text[first : first + 1].isalnum()):
            return first, None
        while first > 0 and (request.text[first - 1].isalnum() or request.text[first - 1] == "_"):
            first -= 1
        return first, True

    while done < len(encoding.ids):
        window = list(range(start, min(start + room, len(encoding.ids))))
        for number in window:
            begin, end = encoding.offsets[number]
            if number < done or end <= request.start or begin >= last:
                continue
            place = number - start + len(before)
            ids = torch.tensor([before + [encoding.ids[n] for n in window] + after])
            target = ids[0, place].item()
            with torch.no_grad():
                if not masked:
                    logits = model(ids[:, :place]).logits[0, place - 1]
                else:
                    for other in window:
                        scored = encoding.offsets[other][1] > request.start and encoding.offsets[other][0] < last
                        together = within_word and word(other) == word(number) and other >= done and scored
                        if other == number or together:
                            ids[0, other - start + len(before)] = tokenizer.mask_token_id
                    options = {} if is_bert else {"is_causal": False}
                    shift = int(not is_bert and model.config.masked_prediction == "next_token")
                    logits = model(ids, **options).logits[0, place - shift]
            total += logits.double().log_softmax(-1)[target].item()
        done, start = window[-1] + 1, start + room // 2
    return total


CASES = [
    ("flexqwen", "causal", False),
    ("flexqwen", "masked", False),
    ("flexqwen", "masked", True),
    ("in_place", "masked", False),
    ("in_place", "masked", True),
    ("qwen3", "causal", False),
    ("bert", "masked", False),
    ("bert", "masked", True),
]


@pytest.mark.parametrize("name, mode, within_word", CASES)
def test_scores_equal_the_plain_loop(models, name, mode, within_word):
    model, tokenizer, kind = models[name]
    scorer = Scorer(model, tokenizer, kind)
    requests = [
        *(Request(text) for text in TEXTS),
        Request(TEXTS[1], 12, 40),
        Request(TEXTS[3], 30),
        Request(TEXTS[4], 60),
    ]
    scores = scorer.score(requests, mode, within_word)
    expected = [plain(model, tokenizer, request, mode == "masked", within_word) for request in requests]
    assert scores.dtype == np.float64 and (scores < 0).all()
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name, mode", [("flexqwen", "causal"), ("flexqwen", "masked"), ("bert", "masked")])
def test_neither_batch_size_nor_order_matters(models, name, mode):
    model, tokenizer, kind = models[name]
    texts = TEXTS[:4] * 2
    order = np.random.default_rng(0).permutation(len(texts))
    expected = Scorer(model, tokenizer, kind, batch_tokens=100_000).score(texts, mode)
    for batch_tokens in (1, 90):
        scores = Scorer(model, tokenizer, kind, batch_tokens).score([texts[number] for number in order], mode)
        np.testing.assert_allclose(scores, expected[order], atol=1e-4, rtol=0)


def test_fused_is_the_sum_and_the_mask_is_seen(models):
    scorer = Scorer(*models["flexqwen"])
    causal, masked, fused = (scorer.score(TEXTS, mode) for mode in likelihood.MODES)
    np.testing.assert_allclose(fused, causal + masked)
    assert np.abs(causal - masked).min() > 0.01


def test_a_word_masked_together_is_something_else_than_its_tokens_one_by_one(models):
    scorer = Scorer(*models["flexqwen"])
    one, together = scorer.score(TEXTS, "masked"), scorer.score(TEXTS, "masked", within_word=True)
    assert np.abs(one - together).max() > 0.1


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("options", [{}, {"attention_bias": True}, {"num_key_value_heads": 1}])
def test_the_bidirectional_pass_is_the_models_own(layers, options):
    model = make_model(num_hidden_layers=layers, max_position_embeddings=48, **options)
    for layer in model.model.layers if options.get("attention_bias") else []:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    texts = [
        (make_ids(5, 12), torch.tensor([[0, 11], [3, 3], [5, 0], [1, 2], [11, 10]])),
        (make_ids(1, 12).repeat(2, 1), torch.tensor([[4], [4]])),  # rows that are alike
    ]
    with torch.inference_mode():
        logits = [model(ids, is_causal=False).logits for ids, _ in texts]
        expected = [
            own[torch.arange(len(own))[:, None], columns] for own, (_, columns) in zip(logits, texts, strict=True)
        ]
        expected = torch.cat([part.flatten(0, 1) for part in expected])
        torch.testing.assert_close(Encoder(model).find_logits(texts), expected, atol=1e-5, rtol=1e-5)


def test_a_linear_layer_that_is_not_torchs_own_is_called_as_it_is():
    class Doubled(torch.nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) * 2

    model, ids, columns = make_model(max_position_embeddings=48), make_ids(3, 12), torch.tensor([[1], [2], [3]])
    projection = model.model.layers[0].self_attn.o_proj
    projection.__class__ = Doubled
    with torch.inference_mode():
        expected = model(ids, is_causal=False).logits[torch.arange(3), columns[:, 0]]
        torch.testing.assert_close(Encoder(model).find_logits([(ids, columns)]), expected, atol=1e-5, rtol=1e-5)


def test_grouped_masks_cover_each_token_once_and_lie_alike_in_both_sentences_of_a_pair(models):
    scorer = Scorer(*models["flexqwen"])
    texts = ["Os meninos da rua chegaram ontem cedo.", "Os meninos da rua chegou ontem cedo."]
    places = []
    for text in texts:
        rows = scorer.make_rows(Request(text), True, False, 4)
        tokens = len(rows[0].tokens)
        assert len(rows) == 4 and sorted(np.concatenate([row.positions for row in rows])) == list(range(1, tokens))
        ends = [end for _, end in scorer.backend.encode(text, add_special_tokens=False).offsets]
        places.append([{text[: ends[place - 1]] for place in row.positions} for row in rows])
    before = "Os meninos da rua"
    for one, other in zip(*places, strict=True):
        assert {start for start in one if len(start) <= len(before)} == {s for s in other if len(s) <= len(before)}
    assert scorer.score(texts, "masked", mask_groups=4).max() < 0
    words = ["a e o", "o que a"]  # a group of its own for each token: the full score
    assert scorer.score(words, "masked", mask_groups=9) == pytest.approx(scorer.score(words, "masked"), abs=1e-4)


def test_interrupted_scoring_goes_on_after_the_last_block(models, tmp_path, monkeypatch):
    monkeypatch.setattr(likelihood, "BLOCK_TOKENS", 200)
    expected, scorer = Scorer(*models["flexqwen"]).score(TEXTS, "fused"), Scorer(*models["flexqwen"])
    scorer.folder, run_rows, done = tmp_path, Scorer.run_rows, []

    def run_two(self, *args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(run_rows(self, *args))
        return done[-1]

    monkeypatch.setattr(Scorer, "run_rows", run_two)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(TEXTS, "fused")
    monkeypatch.setattr(Scorer, "run_rows", run_rows)
    again, kept = Scorer(*models["flexqwen"]), {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again.folder = tmp_path
    assert again.score(TEXTS, "fused").tolist() == expected.tolist()
    assert len(kept) == 2 and all(file.stat().st_mtime_ns == time for file, time in kept.items())


@pytest.mark.parametrize("threads", [1, 3])
def test_scores_are_the_same_whatever_the_threads(models, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        scores = Scorer(*models["flexqwen"], batch_tokens=100).score(TEXTS, "masked")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert scores.tolist() == Scorer(*models["flexqwen"], batch_tokens=100).score(TEXTS, "masked").tolist()


def test_greedy_is_what_the_model_would_write(models):
    model, tokenizer, _ = models["flexqwen"]
    scorer = Scorer(*models["flexqwen"])
    start = "A cidade"
    ids = tokenizer(start, return_tensors="pt").input_ids
    with torch.no_grad():
        written = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
    text = start + tokenizer.decode(written)
    assert tokenizer(text).input_ids[ids.shape[1] :] == written.tolist()  # it comes back as the same tokens
    _, greedy = scorer.run((Request(text, len(start)), Request("A cidade fica", len(start))), masked=False)
    assert greedy.tolist() == [True, False]


def test_logits_are_computed_only_where_they_are_needed(models):
    model, tokenizer, kind = models["flexqwen"]
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:2].numel()))
    scorer = Scorer(model, tokenizer, kind)
    scorer.encoder.head = lambda hidden: seen.append(len(hidden)) or model.lm_head(hidden)
    request = Request(TEXTS[1], len(TEXTS[1]) - 6)
    scorer.score([request], "causal")
    hook.remove()
    scorer.score([request], "masked")
    tokens = len(tokenizer(TEXTS[1]).input_ids)
    assert seen[0] == seen[1] < tokens / 3


def test_other_modes_and_unknown_models_are_one_line(models, tmp_path):
    with pytest.raises(InputError, match="has: masked"):
        Scorer(*models["bert"]).score(["a"], "causal")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        likelihood.load(str(tmp_path))


@pytest.mark.parametrize("name", ["flexqwen", "qwen3", "bert"])
def test_loads_every_kind_from_a_folder(models, name, tmp_path):
    model, tokenizer, kind = models[name]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if name == "flexqwen":
        from flexqwen.training.model import save_code

        save_code(tmp_path)
    scorer = likelihood.load(str(tmp_path))
    assert scorer.kind == kind
    mode = scorer.modes[-1]
    np.testing.assert_allclose(scorer.score(TEXTS, mode), Scorer(model, tokenizer, kind).score(TEXTS, mode), atol=1e-4)


def test_a_model_without_a_last_position_is_scored(tokenizer):
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)
    model = BloomForCausalLM(config).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXTS[0], add_special_tokens=False).input_ids]])
    expected = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).sum().item()
    assert Scorer(model, tokenizer, "causal").score(TEXTS[:1], "causal")[0] == pytest.approx(expected, rel=1e-4)


def test_a_flexqwen_whose_tokenizer_has_no_mask_is_scored_causally(tokenizer):
    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=48)
    scorer = Scorer(model, without, "flexqwen")
    assert scorer.modes == ("causal",)
    assert np.array_equal(scorer.score(TEXTS, "causal"), Scorer(model, tokenizer, "flexqwen").score(TEXTS, "causal"))


@pytest.mark.parametrize("mode", ["causal", "masked", "fused"])
def test_scores_that_are_not_finite_are_refused(mode, tokenizer):
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=48)
    rare = tokenizer(TEXTS[2], add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[rare] = torch.nan
    message = f"wsc_pt, {'masked' if mode == 'masked' else 'causal'}: the log-probability of .* is nan"
    with pytest.raises(InputError, match=message):
        Scorer(model, tokenizer, "flexqwen").score(TEXTS, mode, progress="wsc_pt")


@pytest.mark.parametrize("kind", ["flexqwen", "bert"])
def test_what_is_set_on_the_tokenizer_later_changes_no_score(models, kind):
    model, tokenizer, kind = models[kind]
    theirs = copy.deepcopy(tokenizer)
    theirs.backend_tokenizer.encode_special_tokens = False
    scorer = Scorer(model, theirs, kind)
    assert not theirs.backend_tokenizer.encode_special_tokens  # nor does the scorer change theirs
    theirs.backend_tokenizer.enable_padding(length=40)
    assert np.array_equal(scorer.score(TEXTS, "masked"), Scorer(model, tokenizer, kind).score(TEXTS, "masked"))
    tokens = (
        [tokenize_texts(TEXTS, one, 48).tokens for one in (scorer.tokenizer, tokenizer)] if kind == "flexqwen" else []
    )
    assert not tokens or np.array_equal(*tokens)


def test_a_model_with_sliding_windows_is_scored_causally_only(tokenizer):
    windowed = make_model(vocab_size=len(tokenizer), use_sliding_window=True, sliding_window=4, max_window_layers=1)
    scorer = Scorer(windowed, tokenizer, "flexqwen")
    with pytest.raises(InputError, match="'masked'; it has: causal"):
        scorer.score(TEXTS, "masked")
