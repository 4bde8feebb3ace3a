"""How original each document is: the percentage of its word 7-grams that no other document of the corpus holds.

Words are what white space separates, case and punctuation as they stand, because the corpus's own measure counts so: of
the real documents that score under 99 here, among those of 21 tokens or more, its headers call 0.4 % wholly original,
and 7 % where words are lower-cased `\\w+`. Every position of a document counts once. Words and 7-grams are known by
64-bit hashes; nothing else is approximate.

It works out of core: each batch of texts leaves a *run*, the (hash, document) records of its 7-grams in the order of
the first bits of the hashes; then ranges of hashes, as large as the memory allows, are cut from all runs and merged.
Their counts add up.
"""

import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

T = TypeVar("T")
NGRAM = 7
FORMAT = 1  # of the scores
RUNS = "runs-2"  # where a build keeps runs: a number for each way to hash or to order them
_RECORD_BYTES = 64  # of memory, for each record of a range while it is merged
_FEW_RECORDS = 1 << 21  # larger ranges sort more slowly: they leave the processor's caches
_CHUNK = 1 << 17  # characters hashed at a time: what is made of them stays in the processor's caches
_END = "\x1e"  # of a text; white space, so that it ends a word too
_PREFIX_BITS = 16  # of a hash, which order runs and begin ranges; keys of 16 bits are sorted fastest, by their digits
_FILTER_BITS = 22
_POWERS = 1 << 21  # that are kept, enough for most batches
_FACTOR, _HALF, _BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(32), 0xD1342543DE82EF95


@functools.cache
def _character_values(pattern: str) -> np.ndarray:
    """A hash of each code point that the pattern matches, 0 of the others: uint64 of shape `(0x110000,)`."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    values = np.zeros(len(everything), np.uint64)
    places = np.array([match.start() for match in re.finditer(pattern, everything)])
    values[places] = _mix(_mix(places.astype(np.uint64) + np.uint64(1)))
    return values


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers 0, 1, … of an odd number and of its inverse, modulo 2^64: `count` or more, uint64 each."""
    return _make_powers(count) if count > _POWERS else _keep_powers()


@functools.cache
def _keep_powers() -> tuple[np.ndarray, np.ndarray]:
    return _make_powers(_POWERS)


def _make_powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    steps = [np.full(count, factor, np.uint64) for factor in (_BASE, pow(_BASE, -1, 1 << 64))]
    for each in steps:
        each[0] = 1
        np.multiply.accumulate(each, out=each)
    return steps[0], steps[1]


def hash_words(texts: Iterable[str], normalized: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of the words of each `text.split()`, or `re.findall(r"\\w+", text.lower())` with `normalized`.

    Returns those of all texts, one text after another, and each text's number of words (int64).
    """
    parts = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    parts += [_hash_chunk(chunk, normalized) for chunk in cut_batches(texts, _CHUNK)]
    hashes, counts = zip(*parts, strict=True)
    return np.concatenate(hashes), np.concatenate(counts)


def cut_batches(items: Iterable[T], limit: int, size: Callable[[T], int] = len) -> Iterator[list[T]]:
    """The items in lists, each of which ends as soon as its size exceeds the limit."""
    batch, total = [], 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total > limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _hash_chunk(texts: list[str], normalized: bool) -> tuple[np.ndarray, np.ndarray]:
    """`hash_words` of a few texts.

    A word's hash is the sum of its characters' values, each times the power of its place: one running sum over all
    texts gives all of them (Karp and Rabin, 1987).
    """
    joined = _END + _END.join([text.replace(_END, " ") for text in texts])
    joined = joined.lower() if normalized else joined
    code = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    value = _character_values(r"\w" if normalized else r"\S")[code]
    inside = np.append(value != 0, False)
    edges = np.flatnonzero(inside[1:] != inside[:-1])  # the last places outside and inside of each word
    before, last = edges[::2], edges[1::2]
    counts = np.diff(np.searchsorted(before, np.flatnonzero(code == ord(_END))), append=len(before))
    up, down = _powers(len(code) + 1)
    value *= up[: len(code)]
    np.cumsum(value, out=value)
    return _mix((value[last] - value[before]) * down[before]), counts


def _mix(values: np.ndarray) -> np.ndarray:
    """Mixes hashes (uint64) in place, so that any bits of them tell them apart; no two become one."""
    values ^= values >> _HALF
    values *= _FACTOR
    values ^= values >> _HALF
    return values


def hash_ngrams(words: np.ndarray, counts: np.ndarray, n: int = NGRAM) -> tuple[np.ndarray, np.ndarray]:
    """n-grams inside each text, from `hash_words`: their hashes (uint64), and the text that each stands in (uint32)."""
    size = len(words) - n + 1
    if size <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint32)
    text = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    inside = text[:size] == text[n - 1 :]
    up, down = _powers(len(words) + 1)
    total = np.append(np.uint64(0), np.cumsum(words * up[: len(words)]))  # as of the characters of words
    value = (total[n:] - total[:-n]) * down[:size]
    return value[inside], text[:size][inside]


def write_run(path: Path, hashes: np.ndarray, documents: np.ndarray) -> None:
    """Writes the records of a batch as `<path>.hashes.npy` (uint64) and `<path>.documents.npy` (uint32)."""
    order = np.argsort((hashes >> np.uint64(64 - _PREFIX_BITS)).astype(np.uint16), kind="stable")
    np.save(f"{path}.hashes.npy", hashes[order])
    np.save(f"{path}.documents.npy", documents[order])


def count_unique(runs: Sequence[tuple[Path, int]], low: int, high: int, among: Sequence[np.ndarray]) -> np.ndarray:
    """How many 7-grams with `low` <= hash <= `high` of each document no other document holds.

    The range is one of `cut_ranges`. `runs` are paths as given to `write_run`, each with the number to add to its
    document numbers; `among`, sets of documents to compare with each other (bool). Returns uint32
    `(len(among), documents)`, 0 outside a set.
    """
    hashes, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
    for path, offset in runs:
        values = np.load(f"{path}.hashes.npy", mmap_mode="r")
        start, end = np.searchsorted(values, np.uint64(low)), np.searchsorted(values, np.uint64(high), side="right")
        if start < end:  # copied: a part of a map would hold its file open, and there may be thousands
            hashes.append(values[start:end].copy())
            numbers.append(np.load(f"{path}.documents.npy", mmap_mode="r")[start:end] + np.uint32(offset))
    once, hashes, numbers = set_aside_single(np.concatenate(hashes), np.concatenate(numbers))
    single, counts = np.bincount(once, minlength=len(among[0])), []
    for chosen in among:
        own = slice(None) if chosen.all() else chosen[numbers]
        alone = np.bincount(select_unique(hashes[own], numbers[own]), minlength=len(chosen))
        counts.append(np.where(chosen, single + alone, 0).astype(np.uint32))
    return np.stack(counts)


def set_aside_single(hashes: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The documents of most records whose hash no other record has; and the other records, sorted by hash.

    numpy sorts values many times as fast as it finds their order, which only these others need then.
    """
    ordered = np.sort(hashes)
    is_often = np.zeros(1 << _FILTER_BITS, bool)
    mask = np.uint64(len(is_often) - 1)
    is_often[ordered[1:][ordered[1:] == ordered[:-1]] & mask] = True
    often = is_often[hashes & mask]
    once, hashes, documents = documents[~often], hashes[often], documents[often]
    order = np.argsort(hashes)
    return once, hashes[order], documents[order]


def select_unique(hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The document of each record whose 7-gram no other document holds, from records sorted by hash."""
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))  # of the records of one hash
    is_alone = np.minimum.reduceat(documents, starts) == np.maximum.reduceat(documents, starts)
    return documents[np.repeat(is_alone, np.diff(starts, append=len(documents)))]


def cut_ranges(records: int, memory: int, workers: int) -> list[tuple[int, int]]:
    """Ranges (low, high) that cut the 64-bit hashes so that `workers` of them at a time fit in `memory` bytes."""
    room = max(1, min(memory // (workers * _RECORD_BYTES), _FEW_RECORDS))
    parts = min(max(workers, -(-records // room)), 1 << _PREFIX_BITS)
    return [(low, high - 1) for low, high in itertools.pairwise(cut_hashes(parts))]


def cut_hashes(parts: int) -> list[int]:
    """Where each of `parts` ranges begins, and the last one ends; never within the hashes of one prefix."""
    return [((1 << _PREFIX_BITS) * part // parts) << (64 - _PREFIX_BITS) for part in range(parts + 1)]


def compute_percentage(unique: np.ndarray, total: np.ndarray) -> np.ndarray:
    """100 unique / total (float64), NaN for a document without any 7-gram."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 100 * unique / total, np.nan)


def mean_known(values: np.ndarray, digits: int | None = None) -> float | None:
    """The mean of the values that are not NaN, rounded to so many digits if need be; None where all are."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else None
    return mean if mean is None or digits is None else round(mean, digits)
