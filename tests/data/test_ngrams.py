"""n-gram originality: equal to brute force, whatever the order, the batches and the ranges."""

import os
import re
import resource
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexqwen.data import ngrams
from flexqwen.data.sample.generate import true_originality

# Few words, so that passages are shared; and whatever else Unicode has.
WORDS = st.lists(st.sampled_from(["a", "b", "Não", "é"]), max_size=25).map(" ".join)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=40)), max_size=12)


def score(texts: list[str], folder, cuts: list[int], parts: int, among=None) -> list[float | None]:
    """Originality of each text, with the texts cut into runs at `cuts` and the hashes into `parts` ranges."""
    runs, totals = [], []
    edges = sorted({0, len(texts), *(cut % (len(texts) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        grams, document = ngrams.hash_ngrams(texts[start:end])
        runs.append((folder / f"{start}", start))
        ngrams.write_run(runs[-1][0], grams, document)
        totals += np.bincount(document, minlength=end - start).tolist()
    ranges = [(low, high - 1) for low, high in pairwise(ngrams.cut_hashes(parts))]
    among = np.ones(len(texts), bool) if among is None else np.array(among, bool)
    total = np.where(among, np.array(totals, int), 0)
    unique = total - sum(ngrams.count_copied(runs, low, high, [among])[0] for low, high in ranges)
    percent = ngrams.compute_percentage(unique, total)
    return [None if np.isnan(value) else float(value) for value in percent]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 12), max_size=3), st.integers(1, 5), st.randoms())
def test_equal_to_brute_force(tmp_path_factory, texts, cuts, parts, random):
    truth = true_originality(texts)
    folder = tmp_path_factory.mktemp("runs")
    assert score(texts, folder, cuts, parts) == pytest.approx(truth)
    order = random.sample(range(len(texts)), len(texts))
    shuffled = score([texts[i] for i in order], folder, [], 1)
    assert [shuffled[order.index(i)] for i in range(len(texts))] == pytest.approx(truth)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORDS, st.booleans()), max_size=12))
def test_among_some_documents_the_others_do_not_count(tmp_path_factory, texts):
    among = [chosen for _, chosen in texts]
    found = score([text for text, _ in texts], tmp_path_factory.mktemp("runs"), [], 2, among)
    truth = iter(true_originality([text for text, chosen in texts if chosen]))
    assert found == pytest.approx([next(truth) if chosen else None for chosen in among])


def test_no_run_holds_a_file_open(tmp_path):
    """A corpus of 10 GB has more runs than a process may have files."""
    runs = [(tmp_path / str(number), number) for number in range(80)]
    for path, number in runs:
        ngrams.write_run(path, np.array([0, number + 1], np.uint64), np.zeros(2, np.uint32))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        assert ngrams.count_copied(runs, 0, 2**64 - 1, [np.ones(80, bool)]).tolist() == [[1] * 80]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(), st.text("aàÀß_1İΣσ\n'.\x1e\u3000 ")), max_size=8), st.booleans())
def test_word_hashes_stand_for_the_words(texts, normalized):
    hashes, counts = ngrams.hash_words(texts, normalized)
    words = [re.findall(r"\w+", text.lower()) if normalized else text.split() for text in texts]
    assert counts.tolist() == [len(found) for found in words]
    flat = [word for found in words for word in found]
    assert len(set(zip(flat, hashes.tolist(), strict=True))) == len(set(flat)) == len(set(hashes.tolist()))


ANY = st.lists(
    st.one_of(st.text(), st.text("aàé\0\x1e\u0085\u00a0\u1680\u2003\u202f\u205f\u3000\u2010 «”")), max_size=8
)


@settings(max_examples=200, deadline=None)
@given(ANY, st.integers(0, 8), st.sampled_from([4, 1 << 18]))
def test_a_column_of_arrow_gives_the_hashes_of_its_texts(texts, start, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_CHUNK", chunk)
        check_column(pa.array(texts, pa.string())[start:], texts[start:])


def check_column(column: pa.StringArray, texts: list[str]) -> None:
    for found, wanted in zip(ngrams.hash_words(column), ngrams.hash_words(texts), strict=True):
        assert found.tolist() == wanted.tolist()
    for found, wanted in zip(ngrams.hash_ngrams(column, 2), ngrams.hash_ngrams(texts, 2), strict=True):
        assert found.tolist() == wanted.tolist()
    assert ngrams.count_words(column).tolist() == [len(text.split()) for text in texts]


def test_every_white_space_ends_a_word():
    spaces = [space for space in map(chr, range(sys.maxunicode + 1)) if space.isspace()]
    assert len(spaces) == 29
    assert ngrams.hash_words([f"a{space}b" for space in spaces])[1].tolist() == [2] * 29


def test_long_words_and_long_texts():
    long = "x" * 254
    texts = [long, long + "x", long + "xx", long + "xy", "a b " * 600_000]
    hashes, counts = ngrams.hash_words(texts)
    assert counts.tolist() == [1, 1, 1, 1, 1_200_000]
    assert len(set(hashes.tolist())) == 6


def test_ngrams_do_not_cross_texts():
    hashes, document = ngrams.hash_ngrams(["a b c", "", "d e f g"], n=3)
    assert document.tolist() == [0, 2, 2]
    assert hashes[0] == ngrams.hash_ngrams(["a \t b\nc"], n=3)[0][0]
    assert len(ngrams.hash_ngrams(["c b a", "a c b"], n=3)[0]) == 2


def test_words_of_the_sample_do_not_collide(sample_documents):
    texts = [document.text for document in sample_documents]
    words = {word for text in texts for word in text.split()}
    hashes, _ = ngrams.hash_words(texts)
    assert len(np.unique(hashes)) == len(words)
    assert len(np.unique(hashes >> np.uint64(32))) > 0.99 * len(words)  # both halves are well mixed
    assert len(np.unique(hashes & np.uint64(0xFFFFFFFF))) > 0.99 * len(words)


@pytest.mark.parametrize(("records", "memory", "workers"), [(0, 1, 1), (10**9, 2 << 30, 2), (10**6, 10**5, 3)])
def test_ranges_cover_all_hashes_within_the_memory(records, memory, workers):
    ranges = ngrams.cut_ranges(records, memory, workers)
    assert ranges[0][0] == 0 and ranges[-1][1] == 2**64 - 1
    assert all(high + 1 == low for (_, high), (low, _) in pairwise(ranges))
    assert workers * ngrams._RECORD_BYTES * records / len(ranges) <= memory
