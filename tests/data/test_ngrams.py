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
        grams, counts = ngrams.hash_ngrams(texts[start:end])
        runs.append((folder / f"{start}", start))
        ngrams.write_run(runs[-1][0], grams, counts)
        totals += counts.tolist()
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


def test_a_run_of_many_documents(tmp_path):
    many = 70_000
    run, other = (tmp_path / "run", 0), (tmp_path / "other", many)
    ngrams.write_run(run[0], np.arange(many, dtype=np.uint64) << np.uint64(40), np.ones(many, np.int64))
    ngrams.write_run(other[0], np.array([5, 69_000], np.uint64) << np.uint64(40), np.array([0, 2]))
    counts = ngrams.count_copied([run, other], 0, 2**64 - 1, [np.ones(many + 2, bool)])[0]
    assert {int(place): int(counts[place]) for place in np.flatnonzero(counts)} == {5: 1, 69_000: 1, many + 1: 2}


def test_no_run_holds_a_file_open(tmp_path):
    """A corpus of 10 GB has more runs than a process may have files."""
    runs = [(tmp_path / str(number), number) for number in range(80)]
    for path, number in runs:
        ngrams.write_run(path, np.array([0, number + 1], np.uint64), np.array([2]))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        assert ngrams.count_copied(runs, 0, 2**64 - 1, [np.ones(80, bool)]).tolist() == [[1] * 80]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(), st.text("aàÀß_1İΣσ\n'.\x1e\u3000 ")), max_size=8), st.booleans())
def test_word_hashes_stand_for_the_words(texts, normalized):
    hashes, counts = ngrams.hash_ngrams(texts, 1, normalized)
    words = [re.findall(r"\w+", text.lower()) if normalized else text.split() for text in texts]
    assert counts.tolist() == [len(found) for found in words]
    flat = [word for found in words for word in found]
    assert len(set(zip(flat, hashes.tolist(), strict=True))) == len(set(flat)) == len(set(hashes.tolist()))


ANY = st.lists(
    st.one_of(st.text(), st.text("aàé\0\x1e\u0085\u00a0\u1680\u2003\u202f\u205f\u3000\u2010 «”")), max_size=8
)


@settings(max_examples=200, deadline=None)
@given(ANY, st.integers(0, 8), st.sampled_from([pa.string(), pa.large_string()]))
def test_a_column_of_arrow_gives_the_hashes_of_its_texts(texts, start, kind):
    column, texts = pa.array(texts, kind)[start:], texts[start:]
    for n, normalized in ((1, False), (2, False), (2, True)):
        found, wanted = (ngrams.hash_ngrams(each, n, normalized) for each in (column, texts))
        assert [each.tolist() for each in found] == [each.tolist() for each in wanted]
    assert ngrams.count_words(column).tolist() == [len(text.split()) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=30), max_size=5), st.integers(1, 5))
def test_equal_ngrams_have_equal_hashes_wherever_they_stand(texts, n):
    hashes, counts = ngrams.hash_ngrams(map(" ".join, texts), n)
    grams = [tuple(text[place : place + n]) for text in texts for place in range(len(text) - n + 1)]
    assert counts.tolist() == [max(0, len(text) - n + 1) for text in texts]
    assert len(set(zip(grams, hashes.tolist(), strict=True))) == len(set(grams)) == len(set(hashes.tolist()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["", "a", "a b", "id-1"]), st.text()), max_size=30))
def test_the_first_of_equal_texts(texts):
    assert ngrams.find_first(pa.array(texts, pa.string())).tolist() == sorted(map(texts.index, set(texts)))


@settings(max_examples=100, deadline=None)
@given(st.text("ab \u00e9\u00bb\u2013\u2003", max_size=300))
def test_words_end_at_white_space_wherever_it_stands(text):
    """The compiled loop reads 64 bytes at a time."""
    hashes, counts = ngrams.hash_ngrams([text, *text.split()], 1)
    assert counts.tolist() == [len(text.split()), *[1] * len(text.split())]
    assert hashes[: counts[0]].tolist() == hashes[counts[0] :].tolist()


def test_every_white_space_ends_a_word():
    spaces = [space for space in map(chr, range(sys.maxunicode + 1)) if space.isspace()]
    assert len(spaces) == 29
    words = {number: ngrams.hash_ngrams([f"a{chr(number)}b"], 1)[1][0] for number in range(0x3010)}
    assert {number for number, count in words.items() if count == 2} == set(map(ord, spaces))


def test_long_words_and_long_texts():
    sizes = [*range(1, 90), 254, 255, 256, 70_000]
    texts = ["x" * size + end for size in sizes for end in ("x", "y")] + ["\0" * size for size in sizes]
    hashes, counts = ngrams.hash_ngrams([*texts, "a b " * 600_000], 1)
    assert counts.tolist() == [1] * len(texts) + [1_200_000]
    assert len(set(hashes.tolist())) == len(set(texts)) + 2


@pytest.mark.parametrize("normalized", [False, True])
def test_lone_surrogates_are_characters(normalized):
    hashes, counts = ngrams.hash_ngrams(["a\ud800b c", "a\udfffb\u2003c", "a"], 1, normalized)
    assert counts.tolist() == ([3, 3, 1] if normalized else [2, 2, 1])
    assert len(set(hashes.tolist())) == (3 if normalized else 4)


def test_ngrams_do_not_cross_texts():
    hashes, counts = ngrams.hash_ngrams(["a b c", "", "d e f g"], n=3)
    assert counts.tolist() == [1, 0, 2] and ngrams.number_texts(counts).tolist() == [0, 2, 2]
    assert hashes[0] == ngrams.hash_ngrams(["a \t b\nc"], n=3)[0][0]
    assert len(ngrams.hash_ngrams(["c b a", "a c b"], n=3)[0]) == 2


def test_words_of_the_sample_do_not_collide(sample_documents):
    texts = [document.text for document in sample_documents]
    words = {word for text in texts for word in text.split()}
    hashes, _ = ngrams.hash_ngrams(texts, 1)
    assert len(np.unique(hashes)) == len(words)
    assert len(np.unique(hashes >> np.uint64(32))) > 0.99 * len(words)  # both halves are well mixed
    assert len(np.unique(hashes & np.uint64(0xFFFFFFFF))) > 0.99 * len(words)


@pytest.mark.parametrize(("records", "memory", "workers"), [(0, 1, 1), (10**9, 2 << 30, 2), (10**6, 10**5, 3)])
def test_ranges_cover_all_hashes_within_the_memory(records, memory, workers):
    ranges = ngrams.cut_ranges(records, memory, workers)
    assert ranges[0][0] == 0 and ranges[-1][1] == 2**64 - 1
    assert all(high + 1 == low for (_, high), (low, _) in pairwise(ranges))
    assert workers * ngrams._RECORD_BYTES * records / len(ranges) <= memory
