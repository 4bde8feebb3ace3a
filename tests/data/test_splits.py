"""The splits, on columns: pairs, sizes, disjointness, decontamination."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from flexqwen.cli import InputError
from flexqwen.data import splits


def columns(documents: int, seed: int, longest: int = 400):
    """Tokens, originality and typology of a made-up corpus, two thirds of it of 21 tokens or more."""
    random = np.random.default_rng(seed)
    tokens = np.where(random.random(documents) < 0.67, random.integers(21, longest, documents), 9)
    originality = np.where(tokens < 21, np.nan, np.round(100 * random.random(documents) ** 0.5))
    return tokens, originality, random.integers(0, 4, documents)


@settings(max_examples=60, deadline=None)
@given(st.integers(300, 4000), st.integers(0, 2**32 - 1), st.integers(22, 3000), st.floats(0, 0.5))
def test_all_that_must_hold_holds(documents, seed, longest, share):
    tokens, originality, typology = columns(documents, seed, longest)
    try:
        proposed = splits.propose(tokens, originality, typology, seed)
    except InputError:
        assert documents < 1000
        return
    bad = np.random.default_rng(seed).random(documents) < share
    chosen = splits.decontaminate(proposed, bad, tokens, seed)
    checks = splits.check(chosen, tokens, originality, typology)
    assert [name for name, check in checks.items() if not check["passed"]] == []
    size = splits.sizes(documents)
    for name, part in chosen.training.items():
        assert len(part) <= size.get(name, size["gold"]) and not bad[part].any()
        assert name == "tokenizer" or (tokens[part] >= 21).all()
    for name in ("validation", "test"):
        assert len(chosen.heldout[name]) == size["heldout"]
        assert len(chosen.heldout[f"{name}_original"]) == len(chosen.heldout[f"{name}_unoriginal"]) > 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(21, 60), st.integers(0, 100)), max_size=60), st.randoms())
def test_match_pairs_as_many_as_can_be(documents, random):
    tokens, originality = np.array(documents, float).reshape(-1, 2).T
    tokens = tokens.astype(int)
    order = np.array(random.sample(range(len(documents)), len(documents)), int)
    pairs = splits.match(np.arange(len(documents)), tokens, originality, order)
    assert len(np.unique(pairs)) == pairs.size
    one, other = pairs.T
    assert (splits.length_class(tokens)[one] == splits.length_class(tokens)[other]).all() if len(tokens) else True
    assert (originality[one] - originality[other] >= splits.MIN_GAP).all()
    assert (np.diff(originality[one]) <= 0).all()
    most = 0
    for length in set(splits.length_class(tokens).tolist() if len(tokens) else []):
        # The k most original against the k least original, each against any: as partners are dealt by length.
        scores = sorted(originality[splits.length_class(tokens) == length])
        most += max(
            k
            for k in range(len(scores) // 2 + 1)
            if all(b - a >= splits.MIN_GAP for a, b in zip(scores[:k], scores[len(scores) - k :][::-1], strict=True))
        )
    assert len(pairs) == most


def test_match_by_hand():
    tokens = np.array([30, 30, 30, 30, 31, 31, 200, 201, 210])
    originality = np.array([90.0, 10, 80, 75, 99, 95, 100, 0, 0])
    pairs = splits.match(np.arange(9), tokens, originality, np.arange(9))
    # 80 and 75, 99 and 95 are too near; 201 and 210, 30 and 31 too different in length.
    assert pairs.tolist() == [[6, 7], [0, 1]]


@given(st.integers(1, 200_000))
def test_length_classes_are_narrow(length):
    lengths = np.array([length, length + max(1, int(0.02 * length)) + 1])
    one, other = splits.length_class(lengths)
    assert one < other  # beyond the tolerance is another class
    assert (np.diff(splits.length_class(np.arange(1, 300))) >= 0).all()


def test_typology_pairs_are_of_one_typology_and_length():
    tokens, originality, typology = columns(3000, 5)
    order = np.random.default_rng(0).permutation(3000)
    pairs = splits.match(np.flatnonzero(tokens > 20), tokens, originality, order, typology)
    assert len(pairs) > 200
    assert (typology[pairs[:, 0]] == typology[pairs[:, 1]]).all()
    assert (splits.length_class(tokens)[pairs[:, 0]] == splits.length_class(tokens)[pairs[:, 1]]).all()


def test_no_typology_is_not_a_typology():
    tokens, originality, typology = columns(3000, 5)
    typology[typology == 2] = -1
    proposed = splits.propose(tokens, originality, typology, 0)
    assert len(proposed.training["gold_typology"]) > 100
    assert (typology[proposed.training["gold_typology"]] >= 0).all()


def test_same_seed_same_splits_and_another_seed_others():
    tokens, originality, typology = columns(2000, 1)
    one, same, other = (splits.propose(tokens, originality, typology, seed) for seed in (0, 0, 1))
    assert all((part == same.parts()[name]).all() for name, part in one.parts().items())
    assert len(np.intersect1d(one.heldout["test"], other.heldout["test"])) < len(one.heldout["test"]) / 2


def test_sizes():
    assert splits.sizes(2_100_000) == {"gold": 500_000, "tokenizer": 324_000, "heldout": 2_500}
    assert splits.sizes(9_000_000) == splits.sizes(2_100_000)
    assert splits.sizes(21_000)["gold"] == 5_000


def test_heldout_pairs_are_like_the_training_pairs():
    tokens, originality, typology = columns(60_000, 2)
    chosen = splits.propose(tokens, originality, typology, 0)
    for stratum, config in (("original", "gold"), ("unoriginal", "matched")):
        for split in ("validation", "test"):
            part = chosen.heldout[f"{split}_{stratum}"]
            train = chosen.training[config]
            assert abs(originality[part].mean() - originality[train].mean()) < 2
            assert abs(tokens[part].mean() / tokens[train].mean() - 1) < 0.05


def test_distance_of_lengths_is_the_known_one():
    tokens, originality, typology = columns(3000, 4)
    chosen = splits.decontaminate(splits.propose(tokens, originality, typology, 0), np.zeros(3000, bool), tokens, 0)
    one, other = (tokens[chosen.training[name]] for name in ("gold_typology", "matched_typology"))
    found = splits.check(chosen, tokens, originality, typology)
    (name,) = (name for name in found if name.startswith("gold_typology: Kolmogorov"))
    assert found[name]["value"] > 0
    assert "()" not in " ".join(chosen.notes.values())
    assert found[name]["value"] == pytest.approx(ks_2samp(one, other).statistic, abs=1e-6)


def test_limits_are_told():
    tokens, originality, typology = columns(3000, 3)
    proposed = splits.propose(tokens, originality, typology, 0)
    bad = np.zeros(3000, bool)
    bad[proposed.training["gold"][:50]] = True
    notes = splits.decontaminate(proposed, bad, tokens, 0).notes
    assert "of 714" in notes["gold/train"]
    assert "50 left out for what they share with held-out documents" in notes["gold/train"]
    assert notes["heldout/test"] == "90 of 90"


def test_nothing_to_pair_is_an_error_but_all_of_it_may_be_wanted():
    columns = np.full(500, 30), np.full(500, 100.0), np.zeros(500, int)
    with pytest.raises(InputError, match=r"only 0 pairs .* give more text, .* or build --with_all"):
        splits.propose(*columns, 0)
    found = splits.propose(*columns, 0, with_all=True)
    assert not len(found.training["gold"]) and set(found.heldout) == {"validation", "test"}
    assert sorted([*found.training["all"], *found.heldout["validation"], *found.heldout["test"]]) == list(range(500))
