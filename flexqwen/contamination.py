"""Long passages in common: which training documents share half or more of their 13-grams with the held-out ones."""

import numpy as np

from flexqwen.originality import ngram_hashes, word_hashes

NGRAM = 13
LIMIT = 0.5


def passages(texts: list[str]) -> np.ndarray:
    """Hashes (uint64, ascending, distinct) of all word 13-grams of the texts."""
    return np.unique(ngram_hashes(*word_hashes(texts), NGRAM)[0])


def contaminated(texts: list[str], heldout: np.ndarray) -> np.ndarray:
    """Which texts (bool) have half or more of their 13-grams, counted by position, among the `heldout` hashes.

    A text of fewer than 13 words has no 13-gram and is never contaminated.
    """
    grams, text = ngram_hashes(*word_hashes(texts), NGRAM)
    place = np.minimum(np.searchsorted(heldout, grams), max(0, len(heldout) - 1))
    known = heldout[place] == grams if len(heldout) else np.zeros(len(grams), bool)
    total = np.bincount(text, minlength=len(texts))
    return (total > 0) & (np.bincount(text[known], minlength=len(texts)) >= LIMIT * total)
