"""The tokenizer is lossless, begins with BOS, and keeps its special tokens to itself."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexqwen.cli import InputError
from flexqwen.data import tokenizer as module
from flexqwen.data.packing import encode_documents
from flexqwen.data.tokenizer import BOS, MASK, SPECIAL_TOKENS, train_tokenizer


@given(text=st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_decodes_to_itself(tokenizer, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids[1:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False) == text
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


def test_encoding_begins_with_bos_and_ids_are_the_agreed_ones(tokenizer):
    assert tokenizer("O gato subiu.").input_ids[0] == tokenizer.bos_token_id
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (tokenizer.bos_token, tokenizer.mask_token) == (BOS, MASK)
    # What takes BERT's special tokens for granted, such as minicons, scores neither.
    assert tokenizer.cls_token == BOS and tokenizer.sep_token is None


def test_the_mask_takes_the_space_before_it(tokenizer):
    whole = tokenizer("O gato subiu").input_ids
    masked = tokenizer(f"O gato {MASK} subiu").input_ids
    assert masked[: len(tokenizer("O gato").input_ids)] == tokenizer("O gato").input_ids
    assert tokenizer.mask_token_id in masked and len(masked) == len(whole) + 1


def test_special_tokens_spelled_in_a_text_are_text(tokenizer):
    (ids,) = encode_documents(tokenizer, ["disse <mask> e </s> e <s>"])
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


def test_training_is_deterministic(built, tokenizer):
    again = train_tokenizer(built, len(tokenizer), progress=False)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_command_reuses_refuses_and_overwrites(built, tmp_path, capsys):
    output = tmp_path / "tokenizer"
    options = ["--dataset", str(built), "--output", str(output)]
    module.main([*options, "--vocab_size", "300"])
    first = (output / "tokenizer.json").read_bytes()
    module.main([*options, "--vocab_size", "300"])
    assert "reused" in capsys.readouterr().out
    made_by = json.loads((output / "made_by.json").read_text())
    made_by["versions"]["tokenizers"] = "0.1.0"  # what only says how it was made does not count
    (output / "made_by.json").write_text(json.dumps(made_by))
    module.main([*options, "--vocab_size", "300"])
    assert "reused" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        module.main([*options, "--vocab_size", "310"])
    assert stopped.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert (output / "tokenizer.json").read_bytes() == first
    module.main([*options, "--vocab_size", "310", "--overwrite"])
    assert (output / "tokenizer.json").read_bytes() != first


def test_a_strange_made_by_is_left_alone(built, tmp_path, capsys):
    (tmp_path / "made_by.json").write_text("[1]")
    with pytest.raises(SystemExit) as stopped:
        module.main(["--dataset", str(built), "--output", str(tmp_path), "--vocab_size", "300"])
    assert stopped.value.code == 2 and "something that this does not make" in capsys.readouterr().err


def test_vocabularies_that_cannot_be(built):
    with pytest.raises(InputError, match="at least 260"):
        train_tokenizer(built, 100, progress=False)
    with pytest.raises(InputError, match="lower vocab_size"):
        train_tokenizer(built, 10_000_000, progress=False)
