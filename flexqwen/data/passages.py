"""Long passages in common: what share of a training document's 13-grams the held-out documents hold too.

Words are lower-cased `\\w+`: a copy in other case or punctuation is contamination all the same.
"""

import numpy as np

from flexqwen.data.ngrams import ngram_hashes, word_hashes

NGRAM = 13
LIMIT = 0.5
"""A training document with this share or more of its 13-grams in the held-out documents is left out."""

_FILTER_BITS = 24


class Passages:
    """The distinct word 13-grams of the held-out documents, as 64-bit hashes.

    Args:
        hashes: uint64, ascending.
    """

    def __init__(self, hashes: np.ndarray):
        self.hashes = hashes
        self._low = np.zeros(1 << _FILTER_BITS, bool)  # of most 13-grams this says at once that they are not held
        self._low[self.hashes & np.uint64(len(self._low) - 1)] = True

    def shares(self, texts: list[str]) -> np.ndarray:
        """Share of each text's 13-grams, counted by position, that are among these: float64, 0 for under 13 words."""
        grams, text = ngram_hashes(*word_hashes(texts, normalized=True), NGRAM)
        total = np.bincount(text, minlength=len(texts))
        maybe = self._low[grams & np.uint64(len(self._low) - 1)]
        grams, text = grams[maybe], text[maybe]
        known = np.searchsorted(self.hashes, grams) < np.searchsorted(self.hashes, grams, side="right")
        return np.bincount(text[known], minlength=len(texts)) / np.maximum(total, 1)


def passages(texts: list[str]) -> np.ndarray:
    """Hashes (uint64) of all word 13-grams of the texts."""
    return ngram_hashes(*word_hashes(texts, normalized=True), NGRAM)[0]
