"""What evaluation texts have in common with the training splits."""

import numpy as np

from flexqwen.data import overlap
from flexqwen.data.texts import read_texts


def test_seen_shares_finds_planted_passages(built):
    trained = [text for _, text in read_texts(built, "gold", "train")]
    whole = next(text for text in trained if len(text.split()) > 60)
    half = " ".join([*whole.split()[:30], *(f"palavra{n}" for n in range(30))])
    new = " ".join(f"nova{n}" for n in range(40))
    shares = overlap.seen_shares([whole, new, "Curto demais.", half], built, progress=False)
    assert shares[0] == 1 and shares[1] == 0 and np.isnan(shares[2]) and 0.3 < shares[3] < 0.5
    heldout = [text for _, text in read_texts(built, "heldout", "test")]
    assert np.nanmean(overlap.seen_shares(heldout, built, progress=False)) < 0.5
