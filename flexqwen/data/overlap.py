"""Which evaluation texts stand in what a model was trained on: the share of their word 13-grams found there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flexqwen.data.ngrams import ngram_hashes, word_hashes
from flexqwen.data.passages import NGRAM, passages
from flexqwen.data.texts import count_texts, dataset_digest, read_texts

_FILTER_BITS = 24
_BATCH = 1024


def training_splits(dataset: str | Path) -> list[str]:
    """The configs of a built dataset that models are trained on."""
    names = {path.parent.name for path in Path(dataset).glob("data/*/train-*.parquet")}
    return sorted(names - {"tokenizer", "index"})


def seen_shares(texts: Sequence[str], dataset: str | Path, progress: bool = True) -> np.ndarray:
    """Share of each text's 13-grams that stand in a built dataset's training splits.

    Returns:
        float64 `(texts,)`; NaN for texts of under 13 words, of which this cannot be said.

    Raises:
        InputError: there is no dataset.
    """
    dataset_digest(dataset)
    grams, owner = ngram_hashes(*word_hashes(texts, normalized=True), NGRAM)
    wanted = np.unique(grams)
    low = np.zeros(1 << _FILTER_BITS, bool)
    low[wanted & np.uint64(len(low) - 1)] = True
    is_seen = np.zeros(len(wanted), bool)
    for config in training_splits(dataset):
        bar = tqdm(total=count_texts(dataset, config, "train"), desc=f"13-grams of {config}", disable=not progress)
        batch = []
        for _, text in read_texts(dataset, config, "train"):
            batch.append(text)
            if len(batch) == _BATCH:
                _mark(passages(batch), wanted, low, is_seen)
                bar.update(len(batch))
                batch = []
        _mark(passages(batch), wanted, low, is_seen)
        bar.update(len(batch))
        bar.close()
    total = np.bincount(owner, minlength=len(texts))
    seen = np.bincount(owner[is_seen[np.searchsorted(wanted, grams)]], minlength=len(texts))
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, seen / np.maximum(total, 1), np.nan)


def details(shares: np.ndarray, excluded: int) -> dict[str, float | int | None]:
    """What the training splits hold of items, for `Result.details`, from their `seen_shares`."""
    known = shares[~np.isnan(shares)]
    return {
        "seen_share": float(known.mean()) if len(known) else None,
        "seen_items": int((known > 0).sum()),
        "too_short_to_tell": int(np.isnan(shares).sum()),
        "excluded": excluded,
    }


def _mark(grams: np.ndarray, wanted: np.ndarray, low: np.ndarray, is_seen: np.ndarray) -> None:
    """Sets `is_seen` where one of `wanted` (ascending) is among `grams`; `low` says of most that they are not."""
    grams = grams[low[grams & np.uint64(len(low) - 1)]]
    if not len(grams):
        return
    places = np.searchsorted(wanted, grams)
    places[places == len(wanted)] = 0
    is_seen[places[wanted[places] == grams]] = True
