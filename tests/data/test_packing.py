"""Rows hold every token once, documents are cut only when they must be, positions restart where documents do."""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flexqwen.cli import InputError
from flexqwen.data.packing import (
    PackedRows,
    best_fit,
    cut,
    draw_documents,
    encode_documents,
    make_token_store,
    position_ids,
)
from flexqwen.data.texts import dataset_digest, read_texts

CAPACITY = 16


@given(st.lists(st.integers(1, CAPACITY), max_size=200))
def test_best_fit_lays_each_piece_once_and_leaves_no_two_rows_that_fit_into_one(lengths):
    rows = best_fit(lengths, CAPACITY)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[piece] for piece in row) for row in rows)
    assert all(total <= CAPACITY for total in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > CAPACITY


@given(st.integers(0, 60), st.integers(2, CAPACITY))
def test_cut_keeps_every_token_and_begins_each_piece_with_bos(length, sequence_length):
    document = [1, *range(10, 10 + length), 2]
    pieces = list(cut(document, sequence_length))
    assert all(piece[0] == 1 and 2 <= len(piece) <= sequence_length for piece in pieces)
    assert [token for piece in pieces for token in piece[1:]] == document[1:]
    assert len(pieces) == 1 or len(document) > sequence_length


def test_position_ids_restart_at_bos_and_at_the_padding():
    row = np.array([1, 5, 6, 2, 1, 7, 0, 0, 0])
    expected = [0, 1, 2, 3, 0, 1, 0, 1, 2]
    assert position_ids(row, bos_token_id=1, pad_token_id=0).tolist() == expected
    assert position_ids(np.stack([row, row]), 1, 0).tolist() == [expected, expected]


@pytest.fixture(scope="module")
def store(built, tokenizer, tokenizer_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    return make_token_store(str(built), dataset_digest(built), "gold", tokenizer, str(tokenizer_folder), 128, str(root))


def test_drawn_documents_are_nested_and_have_the_tokens_that_were_asked_for():
    lengths = np.random.default_rng(0).integers(2, 100, 500)
    drawn = {tokens: draw_documents(lengths, tokens, seed=4) for tokens in (500, 2000, 8000)}
    for tokens, documents in drawn.items():
        assert tokens - 100 < lengths[documents].sum() <= tokens and (np.diff(documents) > 0).all()
    assert set(drawn[500]) < set(drawn[2000]) < set(drawn[8000])
    assert set(draw_documents(lengths, 2000, seed=5)) != set(drawn[2000])
    assert len(draw_documents(lengths, int(lengths.sum()), seed=4)) == 500
    for wrong in (1, int(lengths.sum()) + 1):
        with pytest.raises(InputError, match="unique_tokens is"):
            draw_documents(lengths, wrong, seed=4)


def test_a_store_of_fewer_tokens_holds_whole_documents_of_the_whole_one(store, built, tokenizer, tokenizer_folder):
    places = (
        str(built),
        dataset_digest(built),
        "gold",
        tokenizer,
        str(tokenizer_folder),
        128,
        str(store.folder.parent),
    )
    few, fewer = (make_token_store(*places, tokens, seed=1) for tokens in (8000, 2000))
    texts = dict(read_texts(built, "gold", "train"))
    documents = [set((part.folder / "documents.txt").read_text().split("\n")[:-1]) for part in (fewer, few, store)]
    assert documents[0] < documents[1] < documents[2] and len({few.folder, fewer.folder, store.folder}) == 3
    encoded = encode_documents(tokenizer, [texts[name] for name in documents[1]])
    assert sum(len(piece) for document in encoded for piece in cut(document, 128)) == few.info["tokens"]
    assert few.info["documents"] == len(documents[1]) and few.info["unique_tokens"] == 8000


def test_a_store_holds_every_token_of_every_document_in_exactly_one_row(store, built, tokenizer):
    expected, pieces = Counter(), 0
    for document in encode_documents(tokenizer, (text for _, text in read_texts(built, "gold", "train"))):
        for piece in cut(document, 128):
            expected[tuple(piece)] += 1
            pieces += 1
    found = Counter()
    for row in np.array(store.input_ids):
        real = row[row != tokenizer.pad_token_id]
        assert (row[len(real) :] == tokenizer.pad_token_id).all()
        for piece in np.split(real, np.flatnonzero(real == tokenizer.bos_token_id)[1:]):
            found[tuple(piece.tolist())] += 1
    assert found == expected
    assert store.info["documents"] == sum(1 for _ in read_texts(built, "gold", "train"))


def test_a_store_says_how_much_of_it_is_padding(store):
    padding = (np.array(store.input_ids) == store.info["pad_token_id"]).mean()
    assert padding == pytest.approx(store.info["padding"])


def test_rows_of_many_documents_of_carolinas_lengths_have_at_most_one_percent_of_padding():
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 1, size=20_000).astype(int), 3, 512)
    rows = best_fit(lengths, 512)
    assert 1 - lengths.sum() / (512 * len(rows)) <= 0.01


def test_a_rows_documents_are_those_whose_text_stands_in_it(store, built, tokenizer):
    texts = dict(read_texts(built, "gold", "train"))
    for number in (0, len(store) // 2, len(store) - 1):
        text = tokenizer.decode(store.input_ids[number], skip_special_tokens=True)
        documents = store.documents(number)
        assert documents
        for document in documents:
            assert texts[document][:20] in text or len(texts[document]) > 200


def test_a_store_is_reused_and_the_same_bytes_come_out_again(
    store, built, tokenizer, tokenizer_folder, tmp_path, capsys
):
    arguments = (str(built), dataset_digest(built), "gold", tokenizer, str(tokenizer_folder), 128)
    again = make_token_store(*arguments, str(store.folder.parent))
    assert again.folder == store.folder and "reused" in capsys.readouterr().out
    anew = make_token_store(*arguments, str(tmp_path))
    assert (anew.folder / "rows.bin").read_bytes() == (store.folder / "rows.bin").read_bytes()
    assert anew.folder.name == store.folder.name


def test_a_store_of_another_format_is_refused(store, tmp_path):
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    (copy / "info.json").write_text(json.dumps(store.info | {"format": 1}))
    with pytest.raises(InputError, match=r"copy has format 1, not 3; make it again"):
        PackedRows(copy)


@pytest.mark.parametrize("change", [{"documents": ""}, {"mask_token_id": 4}, {"eos_token_id": None}])
def test_a_store_whose_info_was_changed_is_refused(change, store, tmp_path):
    copy = shutil.copytree(store.folder, tmp_path / "copy")
    (copy / "info.json").write_text(json.dumps(store.info | change))
    with pytest.raises(InputError, match=r"copy is damaged \(info\.json is not as it was written\); remove it"):
        PackedRows(copy)
    files = {name: digest for name, digest in store.info["files"].items() if name != "info.json"}
    (copy / "info.json").write_text(json.dumps(store.info | {"files": files}))  # as the first stores have it
    assert len(PackedRows(copy)) == len(store)


def test_a_config_without_text_is_told_from_a_damaged_one(built):
    with pytest.raises(InputError, match=r"index/train.* holds no text; name another config than index"):
        list(read_texts(built, "index", "train"))


def test_a_dataset_that_lacks_documents_of_its_manifest_is_not_packed(built, tokenizer, tokenizer_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["gold/train"]["documents"] += 1  # as if a second Parquet file had not been copied
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"gold/train in .* documents of its manifest; copy it again"):
        make_token_store(str(copy), dataset_digest(copy), "gold", tokenizer, str(tokenizer_folder), 128, str(tmp_path))


def test_a_config_that_is_empty_is_not_packed(built, tokenizer, tokenizer_folder, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    file = next((copy / "data/gold").iterdir())
    pq.write_table(pq.read_table(file)[:0], file)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["gold/train"]["documents"] = 0
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"gold/train in .* holds no document; train on another --dataset_config"):
        make_token_store(str(copy), dataset_digest(copy), "gold", tokenizer, str(tokenizer_folder), 128, str(tmp_path))


def test_a_tokenizer_that_has_padded_gives_the_same_documents(tokenizer, tmp_path):
    texts = ["a", "a b c d e f"]
    whole = list(encode_documents(tokenizer, texts))
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    saved(texts, padding=True)
    saved.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer.padding
    assert list(encode_documents(AutoTokenizer.from_pretrained(tmp_path), texts)) == whole


def test_a_missing_store_or_split_is_named(built, tokenizer, tokenizer_folder, tmp_path):
    with pytest.raises(InputError, match=r"info\.json"):
        PackedRows(tmp_path)
    with pytest.raises(InputError, match=r"silver.*gold/train"):
        make_token_store(
            str(built), dataset_digest(built), "silver", tokenizer, str(tokenizer_folder), 128, str(tmp_path)
        )
    assert list(tmp_path.iterdir()) == []
