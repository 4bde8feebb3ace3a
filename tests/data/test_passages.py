"""13-grams that two texts share: found in any case and punctuation, counted by position."""

import numpy as np
import pytest

from flexqwen.data.passages import Passages, find_seen_shares, hash_passages
from flexqwen.data.texts import read_texts

SENTENCE = "o rio corre lento entre as pedras e ninguém da aldeia sabe de onde vem tanta água fria"
WORDS = SENTENCE.split()


@pytest.mark.parametrize(("common", "share"), [(18, 1.0), (15, 0.5), (12, 0.0), (0, 0.0)])
def test_share_of_13_grams(common, share):
    heldout = np.unique(hash_passages(["antes " + " ".join(WORDS[:common]) + " depois"])[0])
    text = " ".join(WORDS[:common] + [f"x{i}" for i in range(18 - common)])
    assert np.nan_to_num(Passages(heldout).find_shares(["curto", text, ""]), nan=-1).tolist() == [-1, share, -1]


def test_an_empty_set_holds_nothing():
    nothing = Passages(np.empty(0, np.uint64))
    assert nothing.find_shares([" ".join(WORDS)]).tolist() == [0]


def test_seen_shares_finds_planted_passages(built):
    trained = [text for _, text in read_texts(built, "gold", "train")]
    whole = next(text for text in trained if len(text.split()) > 60)
    half = " ".join([*whole.split()[:30], *(f"palavra{n}" for n in range(30))])
    new = " ".join(f"nova{n}" for n in range(40))
    shares = find_seen_shares([whole, new, "Curto demais.", half], built, progress=False)
    assert shares[0] == 1 and shares[1] == 0 and np.isnan(shares[2]) and 0.3 < shares[3] < 0.5
    heldout = [text for _, text in read_texts(built, "heldout", "test")]
    assert np.nanmean(find_seen_shares(heldout, built, progress=False)) < 0.5
