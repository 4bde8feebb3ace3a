"""Long passages in common: the share of a text's word 13-grams (lower-cased `\\w+`) that other texts hold too."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flexqwen.data.ngrams import cut_batches, hash_ngrams, mean_known, number_texts
from flexqwen.data.texts import count_texts, dataset_digest, read_texts

NGRAM = 13
LIMIT = 0.5  # a training document with this share or more of its 13-grams in the held-out documents is left out
_FILTER_BITS = 24
_BATCH_CHARACTERS = 1 << 20


def hash_passages(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The word 13-grams of the texts: their hashes (uint64), and how many each text has (int64)."""
    return hash_ngrams(texts, NGRAM, normalized=True)


class Passages:
    """A set of word 13-grams, by their hashes (uint64, ascending)."""

    def __init__(self, hashes: np.ndarray):
        self.hashes = hashes
        self._low = np.zeros(1 << _FILTER_BITS, bool)  # of most 13-grams this says at once that they are not in the set
        self._low[hashes & np.uint64(len(self._low) - 1)] = True

    def find(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `grams` (uint64) are in the set: their places in `grams`, and their places in `hashes`."""
        maybe = np.flatnonzero(self._low[grams & np.uint64(len(self._low) - 1)])
        places = np.searchsorted(self.hashes, grams[maybe])
        places[places == len(self.hashes)] = 0
        found = self.hashes[places] == grams[maybe]
        return maybe[found], places[found]

    def find_shares(self, texts: Sequence[str]) -> np.ndarray:
        """Share of each text's 13-grams, counted by position, that are in the set: float64, NaN for under 13 words."""
        grams, total = hash_passages(texts)
        found = np.bincount(number_texts(total)[self.find(grams)[0]], minlength=len(texts))
        with np.errstate(invalid="ignore"):
            return found / np.where(total > 0, total, np.nan)


def find_seen_shares(texts: Sequence[str], dataset: str | Path, progress: bool = True) -> np.ndarray:
    """Share of each text's 13-grams that stand in a dataset's training splits: float64, NaN for under 13 words."""
    dataset_digest(dataset)
    wanted = Passages(np.unique(hash_passages(texts)[0]))
    is_seen = np.zeros(len(wanted.hashes), bool)
    configs = {path.parent.name for path in Path(dataset).glob("data/*/train-*.parquet")}
    for config in sorted(configs - {"tokenizer", "index"}):  # no model is trained on these; `all` holds its own
        trained = (text for _, text in read_texts(dataset, config, "train"))
        bar = tqdm(trained, f"13-grams of {config}", count_texts(dataset, config, "train"), disable=not progress)
        for batch in cut_batches(bar, _BATCH_CHARACTERS):
            is_seen[wanted.find(hash_passages(batch)[0])[1]] = True
    return Passages(wanted.hashes[is_seen]).find_shares(texts)


def describe_seen(shares: np.ndarray, excluded: int) -> dict[str, float | int | None]:
    """What the training splits hold of a task's items, for `Result.details`, from their `find_seen_shares`."""
    seen, short = int((shares > 0).sum()), int(np.isnan(shares).sum())
    return {"seen_share": mean_known(shares), "seen_items": seen, "too_short_to_tell": short, "excluded": excluded}
