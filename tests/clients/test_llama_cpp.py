"""llama.cpp: ids, logits, greedy text and predictions of masks are the checkpoint's, of a GGUF export."""

import json
import random
import shutil
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch

from flexqwen.cli import InputError
from flexqwen.data.tokenizer import OLD_WORDS, WORDS
from flexqwen.evaluation.tasks.assin2 import read
from flexqwen.hub.export import export
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM

llama_cpp = pytest.importorskip("llama_cpp")
CLIENTS = ("gguf", "llama-cpp-python")

STRANGE = [
    "São Paulo, a 12ª cidade: R$ 1.234,56 em 2026!",
    "e\u0301 composto e decomposto: é, ã, a\u0303, c\u0327",
    "tab\taqui\tali,\r\nlinha\r\n\r\nnova\n\n\n  recuo  ",
    "😀 emoji 👩‍👩‍👧 e 🇧🇷; d'Santos, d'água, disse-lhe-ia",
    " espaço no começo e no fim ",
    "ΑΒΓ кириллица 漢字 العربية",
    "",
]


def load(path):
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # float16 unless told
    return llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False, n_threads=1, **cache)


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    """GGUF files of the checkpoint, by mode and kind of number."""
    folder, found = tmp_path_factory.mktemp("gguf"), {}
    for mode, outtype in (("causal", "f32"), ("causal", "f16"), ("causal", "q8_0"), ("bidirectional", "f32")):
        found[mode, outtype] = folder / f"{mode}-{outtype}.gguf"
        export(checkpoint, found[mode, outtype], mode, "gguf", outtype)
    return found


@pytest.fixture(scope="module")
def llama(files):
    return load(files["causal", "f32"])


def same_ids(llama, tokenizer, texts) -> None:
    for text in texts:
        expected = tokenizer(text).input_ids
        found = llama.tokenize(text.encode(), add_bos=True, special=False)
        assert found == expected, text


def test_strange_texts_have_the_same_ids(llama, tokenizer):
    same_ids(llama, tokenizer, STRANGE)
    drawn = random.Random(0)
    letters = "aeé\u0301 ão\t\r\n 12.,-'’\"A😀\u200dЯ漢"
    same_ids(llama, tokenizer, ["".join(drawn.choices(letters, k=40)) for _ in range(500)])


@pytest.mark.real_data
def test_real_sentences_have_the_same_ids(llama, tokenizer, eval_data):
    pairs = read()["rte"]["train"]
    same_ids(llama, tokenizer, [text for example in pairs[:1000] for text in example.texts])


@pytest.mark.parametrize(("outtype", "tolerance"), [("f32", 1e-3), ("f16", 0.02), ("q8_0", 0.3)])
def test_logits_and_greedy_tokens_are_the_models(files, checkpoint, tokenizer, sentences, outtype, tolerance):
    llama, model = load(files["causal", outtype]), FlexQwenForCausalLM.from_pretrained(checkpoint).eval()
    for sentence in sentences:
        ids = tokenizer(sentence, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = model(ids).logits[0].numpy()
        llama.reset()
        llama.eval(ids[0].tolist())
        found = np.array(llama.scores[: ids.shape[1]])
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    if outtype == "f32":
        written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        drawn = list(islice(llama.generate(ids[0].tolist(), temp=0.0, repeat_penalty=1.0), len(written)))
        assert drawn == written.tolist()


def test_masks_are_predicted_where_attention_is_not_causal(files, checkpoint, tokenizer):
    llama, model = load(files["bidirectional", "f32"]), FlexQwenForMaskedLM.from_pretrained(checkpoint).eval()
    ids = tokenizer("O <mask> é um país grande.", return_tensors="pt").input_ids
    (place,) = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    with torch.no_grad():
        expected = model(ids).logits[0, place].numpy()
    llama.eval(ids[0].tolist())
    found = np.array(llama.scores[place - 1])  # predicted from the output one position earlier
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert found.argmax() == expected.argmax()


CHANGES = {
    "does not normalize text": ('"normalizer": null', '"normalizer": {"type": "NFC"}'),
    "splits combining accents": (json.dumps(WORDS), json.dumps(OLD_WORDS)),
    "has no built-in pattern": (json.dumps(WORDS), json.dumps(r"\w+")),
}


@pytest.mark.parametrize("says", CHANGES)
def test_what_llama_cpp_does_otherwise_is_said(checkpoint, tmp_path, capsys, says):
    folder, output = shutil.copytree(checkpoint, tmp_path / "adapted"), tmp_path / "model.gguf"
    tokenizer = folder / "tokenizer.json"
    text = tokenizer.read_text(encoding="utf-8")
    assert text.count(CHANGES[says][0]) == 1
    tokenizer.write_text(text.replace(*CHANGES[says]), encoding="utf-8")
    is_refused = says == "has no built-in pattern"
    with pytest.raises(InputError, match=says) if is_refused else nullcontext():
        export(folder, output, "causal", "gguf")
    assert is_refused or f"llama.cpp {says}" in capsys.readouterr().err
    assert output.exists() != is_refused
