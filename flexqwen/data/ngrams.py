"""How original each document is: the percentage of its word 7-grams that no other document of the corpus holds.

Words are what white space separates, case and punctuation as they stand, because the corpus's own measure counts so: of
the real documents that score under 99 here, among those of 21 tokens or more, its headers call 0.4 % wholly original,
and 7 % where words are lower-cased `\\w+`. Every position of a document counts once. Words and 7-grams are known by
64-bit hashes; nothing else is approximate.

It works out of core: each batch of texts leaves a *run*, the (hash, document) records of its 7-grams in the order of
the first bits of the hashes; then ranges of hashes, as large as the memory allows, are cut from all runs and merged.
Their counts add up. Texts are read as the UTF-8 of an Arrow column, and all steps are numpy's, on arrays that stay in
the processor's caches: no text of Parquet, no word and no 7-gram becomes an object of Python.
"""

import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
NGRAM = 7
FORMAT = 1  # of the scores
RUNS = "runs-3"  # where a build keeps runs: a number for each way to hash or to order them
_RECORD_BYTES = 32  # of memory, for each record of a range: 12, and 64 for those of its parts that is being sorted
_PARTS = 4  # of a range, or more
_FEW_RECORDS = 1 << 21  # larger parts sort more slowly: they leave the processor's caches
_CHUNK = 1 << 18  # bytes hashed at a time: what is made of them stays in the processor's caches
_END = "\x1e"  # of a text; white space, so that it ends a word too
_LONG = 64  # bytes; longer words, which languages without spaces have, are hashed one by one
_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # of the first bytes of 8
# The white space that is not ASCII, as `str.split` has it, in UTF-8; a 0 behind what has two bytes.
_WIDE = np.array([int.from_bytes(c.encode().ljust(3, b"\0")) for c in map(chr, range(128, 0x3001)) if c.isspace()])
_PREFIX_BITS = 16  # of a hash, which order runs and begin ranges; keys of 16 bits are sorted fastest, by their digits
_POWERS = 1 << 16  # that are kept, enough for most chunks
_FACTOR, _HALF, _BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(32), 0xD1342543DE82EF95


@functools.cache
def _list_word_characters() -> np.ndarray:
    """Which code points `\\w` matches: bool of shape `(0x110000,)`."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    found = np.zeros(len(everything), bool)
    found[[match.start() for match in re.finditer(r"\w", everything)]] = True
    return found


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


def hash_words(texts: "Iterable[str] | pa.StringArray", normalized: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of the words of each `text.split()`, or `re.findall(r"\\w+", text.lower())` with `normalized`.

    Returns those of all texts, one text after another, and each text's number of words (int64).
    """
    parts = [(np.empty(0, np.uint64), np.empty(0, np.int64)), *_hash_chunks(texts, normalized)]
    hashes, counts = zip(*parts, strict=True)
    return np.concatenate(hashes), np.concatenate(counts)


def hash_ngrams(
    texts: "Iterable[str] | pa.StringArray", n: int = NGRAM, normalized: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of the n-grams of each text's words (see `hash_words`), and the number of its text (uint32)."""
    parts, done = [(np.empty(0, np.uint64), np.empty(0, np.uint32))], 0
    for words, counts in _hash_chunks(texts, normalized):
        hashes, owner = _chain_words(words, counts, n)
        parts.append((hashes, owner + np.uint32(done)))
        done += len(counts)
    hashes, owners = zip(*parts, strict=True)
    return np.concatenate(hashes), np.concatenate(owners)


def _hash_chunks(texts: "Iterable[str] | pa.StringArray", normalized: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`hash_words` of a few texts at a time."""
    is_column = hasattr(texts, "buffers")
    if normalized and is_column:
        texts, is_column = texts.to_pylist(), False
    for data, ends in _join_column(texts) if is_column else _join_texts(texts, normalized):
        starts, lengths = _find_words(data)
        yield _hash_spans(data, starts, lengths), np.diff(np.searchsorted(starts, ends), prepend=0)


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


def count_words(texts: "pa.StringArray") -> np.ndarray:
    """`len(text.split())` of each text (int64)."""
    parts = [np.empty(0, np.int64)]
    for data, ends in _join_column(texts):
        parts.append(np.diff(np.searchsorted(_find_words(data)[0], ends), prepend=0))
    return np.concatenate(parts)


def _join_texts(texts: Iterable[str], normalized: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A few texts at a time as UTF-8, white space before, between and behind them; and where each ends (int64).

    Behind that are 8 bytes more, as words are read 8 bytes at a time.
    """
    for chunk in cut_batches(texts, _CHUNK):
        joined = _END + _END.join([text.replace(_END, " ") for text in chunk]) + _END
        if normalized:
            code = np.frombuffer(joined.lower().encode("utf-32-le", "surrogatepass"), "<u4")
            code = np.where(_list_word_characters()[code] | (code == ord(_END)), code, ord(" "))
            joined = code.tobytes().decode("utf-32-le", "surrogatepass")
        data = np.frombuffer(joined.encode("utf-8", "surrogatepass") + bytes(8), np.uint8)
        yield data, np.flatnonzero(data == ord(_END))[1:]


def _join_column(texts: "pa.StringArray") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of a column of Arrow, one array without nulls, whose texts become no objects of Python."""
    import pyarrow as pa  # here, not above: a machine that trains from a token store may lack it
    import pyarrow.compute as pc

    column = pa.LargeListArray.from_arrays([0, len(texts)], texts)
    data = np.frombuffer(b"".join((b" ", pc.binary_join(column, " ")[0].as_buffer(), b" ", bytes(8))), np.uint8)
    ends = np.cumsum(pc.binary_length(texts)) + np.arange(1, len(texts) + 1)
    cuts = np.searchsorted(ends, np.arange(_CHUNK, len(data), _CHUNK))
    for start, end in itertools.pairwise(np.unique([0, *cuts, len(texts)])):
        first = ends[start - 1] if start else 0
        yield data[first : ends[end - 1] + 9], ends[start:end] - first


def _find_words(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each word starts in what `_join_texts` yields, and its length, in bytes (int64)."""
    text = data[:-8]
    leads = np.flatnonzero((text == 0xC2) | (text - np.uint8(0xE1) <= 2))  # of all white space that is not ASCII
    wide = np.stack([text[leads], data[leads + 1], np.where(text[leads] == 0xC2, 0, data[leads + 2])], axis=1)
    code = wide @ np.array([1 << 16, 1 << 8, 1])
    found = _WIDE[np.searchsorted(_WIDE[:-1], code)] == code
    if found.any():
        text = text.copy()
        for place in range(3):
            text[leads[found & (wide[:, place] > 0)] + place] = ord(" ")
    places = np.flatnonzero((text - np.uint8(9) <= 4) | (text - np.uint8(28) <= 4))  # the white space of ASCII
    starts, lengths = places[:-1] + 1, np.diff(places) - 1
    is_word = lengths > 0
    return starts[is_word], lengths[is_word]


def _hash_spans(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Hashes (uint64) of the words that `_find_words` found: of their bytes, 8 at a time, each time of fewer words."""
    windows = np.ndarray(len(data) - 7, "<u8", data, strides=1)
    hashes = lengths.view(np.uint64) * _FACTOR  # a zero at the end of a word counts
    hashes ^= windows[starts] & _MASKS[np.minimum(lengths, 8)]
    _mix(_mix(hashes))
    longer = np.flatnonzero(lengths > 8)
    starts, lengths = starts[longer], lengths[longer]
    for _ in range(8, _LONG, 8):
        starts, lengths = starts + 8, lengths - 8
        part = windows[starts] & _MASKS[np.minimum(lengths, 8)]
        hashes[longer] = _mix(_mix(hashes[longer] ^ part))
        left = np.flatnonzero(lengths > 8)
        longer, starts, lengths = longer[left], starts[left], lengths[left]
    for word, start, length in zip(longer, starts, lengths, strict=True):
        rest = hashlib.blake2b(data[start + 8 : start + length], digest_size=8).digest()
        hashes[word] ^= np.frombuffer(rest, np.uint64)[0]
    return hashes


def _mix(values: np.ndarray) -> np.ndarray:
    """Mixes hashes (uint64) in place, so that any bits of them tell them apart; no two become one."""
    values ^= values >> _HALF
    values *= _FACTOR
    values ^= values >> _HALF
    return values


def _chain_words(words: np.ndarray, counts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n-grams inside each text, from `hash_words`: their hashes (uint64), and the text that each stands in (uint32).

    A hash is the sum of those of the words, each times the power of its place: one running sum over all words gives
    all of them (Karp and Rabin, 1987).
    """
    size = len(words) - n + 1
    if size <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint32)
    text = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    inside = text[:size] == text[n - 1 :]
    up, down = _powers(len(words) + 1)
    total = np.append(np.uint64(0), np.cumsum(words * up[: len(words)]))
    value = (total[n:] - total[:-n]) * down[:size]
    return value[inside], text[:size][inside]


def write_run(path: Path, hashes: np.ndarray, documents: np.ndarray) -> None:
    """Writes the records of a batch as `<path>.hashes.npy` (uint64) and `<path>.documents.npy` (uint32)."""
    order = np.argsort((hashes >> np.uint64(64 - _PREFIX_BITS)).astype(np.uint16), kind="stable")
    np.save(f"{path}.hashes.npy", hashes[order])
    np.save(f"{path}.documents.npy", documents[order])


def count_copied(runs: Sequence[tuple[Path, int]], low: int, high: int, among: Sequence[np.ndarray]) -> np.ndarray:
    """How many 7-grams with `low` <= hash <= `high` of each document another document holds too.

    The range is one of `cut_ranges`. `runs` are paths as given to `write_run`, each with the number to add to its
    document numbers; `among`, sets of documents to compare with each other (bool). Returns uint32
    `(len(among), documents)`, 0 outside a set.
    """
    pieces = []
    for path, offset in runs:
        values = np.load(f"{path}.hashes.npy", mmap_mode="r")
        start, end = np.searchsorted(values, np.uint64(low)), np.searchsorted(values, np.uint64(high), side="right")
        if start < end:  # copied: a part of a map would hold its file open, and there may be thousands
            numbers = np.load(f"{path}.documents.npy", mmap_mode="r")[start:end] + np.uint32(offset)
            pieces.append((values[start:end].copy(), numbers))
    counts = np.zeros((len(among), len(among[0])), np.uint32)
    for part in _split_pieces(pieces, low, high):
        hashes, numbers = sort_repeated(*part)
        for chosen, count in zip(among, counts, strict=True):
            own = slice(None) if chosen.all() else chosen[numbers]
            np.add.at(count, find_copied(hashes[own], numbers[own]), np.uint32(1))
    return counts


def _split_pieces(
    pieces: list[tuple[np.ndarray, np.ndarray]], low: int, high: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The records of pieces of runs, those of a small range of hashes at a time."""
    parts = max(_PARTS, -(-sum(len(hashes) for hashes, _ in pieces) // _FEW_RECORDS))
    edges = np.array(cut_hashes(parts, low, high)[1:-1], np.uint64)
    cuts = [itertools.pairwise([0, *np.searchsorted(hashes, edges), len(hashes)]) for hashes, _ in pieces]
    for places in zip(*cuts, strict=True):
        part = [(hashes[a:b], numbers[a:b]) for (hashes, numbers), (a, b) in zip(pieces, places, strict=True)]
        yield tuple(map(np.concatenate, zip(*part, strict=True)))


def sort_repeated(hashes: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The records whose hash another record has too, and a few others, sorted by hash.

    numpy sorts values many times as fast as it finds their order, so the places of the records take the room of the
    last bits of their hashes. Those whose other bits are alike are then sorted by all bits.
    """
    bits = np.uint64(len(hashes).bit_length())
    ordered = np.sort((hashes >> bits << bits) | np.arange(len(hashes), dtype=np.uint64))
    first = ordered >> bits
    is_like = np.zeros(len(hashes) + 1, bool)  # the one before
    is_like[1:-1] = first[1:] == first[:-1]
    places = (ordered[is_like[1:] | is_like[:-1]] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    places = places[np.argsort(hashes[places], kind="stable")]  # fast, as they are nearly in order
    return hashes[places], documents[places]


def find_copied(hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The document of each record whose hash another document has too, from `sort_repeated`."""
    starts = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]))  # of the records of one hash
    is_shared = np.minimum.reduceat(documents, starts) != np.maximum.reduceat(documents, starts)
    return documents[np.repeat(is_shared, np.diff(starts, append=len(documents)))]


def cut_ranges(records: int, memory: int, workers: int) -> list[tuple[int, int]]:
    """Ranges (low, high) that cut the 64-bit hashes so that `workers` of them at a time fit in `memory` bytes."""
    room = max(1, memory // (workers * _RECORD_BYTES))
    parts = min(max(workers, -(-records // room)), 1 << _PREFIX_BITS)
    return [(low, high - 1) for low, high in itertools.pairwise(cut_hashes(parts))]


def cut_hashes(parts: int, low: int = 0, high: int = (1 << 64) - 1) -> list[int]:
    """Where each of `parts` ranges begins, and the last one ends; never within the hashes of one prefix."""
    first, end = low >> (64 - _PREFIX_BITS), (high + 1) >> (64 - _PREFIX_BITS)
    return [(first + (end - first) * part // parts) << (64 - _PREFIX_BITS) for part in range(parts + 1)]


def compute_percentage(unique: np.ndarray, total: np.ndarray) -> np.ndarray:
    """100 unique / total (float64), NaN for a document without any 7-gram."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 100 * unique / total, np.nan)


def mean_known(values: np.ndarray, digits: int | None = None) -> float | None:
    """The mean of the values that are not NaN, rounded to so many digits if need be; None where all are."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else None
    return mean if mean is None or digits is None else round(mean, digits)
