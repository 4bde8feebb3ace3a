"""How original each document is: the percentage of its word 7-grams that no other document of the corpus holds.

Words are what white space separates, case and punctuation as they stand, because the corpus's own measure counts so: of
the real documents that score under 99 here, among those of 21 tokens or more, its headers call 0.4 % wholly original,
and 7 % where words are lower-cased `\\w+`. Every position of a document counts once. Words and 7-grams are known by
64-bit hashes; nothing else is approximate.

It works out of core: each batch of texts leaves a *run*, the (hash, document) records of its 7-grams in the order of
the first bits of the hashes; then ranges of hashes, as large as the memory allows, are read from all runs and compared.
Their counts add up. Texts are read as the UTF-8 of an Arrow column by compiled loops (kernels.py): no text of Parquet,
no word and no 7-gram becomes an object of Python.
"""

import functools
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
RUNS = "runs-5"  # where a build keeps runs: a number for each way to hash or to order them
_RECORD_BYTES = 32  # of memory, for each record of a range: 12, and 20 where all are copied
_HEADER_BYTES = 128  # of an .npy file of one dimension
_MOST_STEPS = 64  # that a range is read in, each of so many records or more: memory that is used again is faster
_STEP_RECORDS = 1 << 22
_PIECE_RECORDS = 1 << 14  # of a run that are read at a time, or more
_CHUNK = 1 << 18  # characters normalized at a time: what is made of them stays in the processor's caches
_END = "\x1e"  # of a text; white space, so that it ends a word too
PADDING = 80  # bytes behind texts that the compiled loops may read
PREFIX_BITS = 16  # of a hash, which order runs and begin ranges; numba keeps it in what it has compiled of kernels.py


@functools.cache
def _list_word_characters() -> np.ndarray:
    """Which code points `\\w` matches: bool of shape `(0x110000,)`."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    found = np.zeros(len(everything), bool)
    found[[match.start() for match in re.finditer(r"\w", everything)]] = True
    return found


def hash_ngrams(
    texts: "Iterable[str] | pa.StringArray", n: int = NGRAM, normalized: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (uint64) of the n-grams of the words of each text, one text after another, and how many it has (int64).

    The words are those of `text.split()`, or with `normalized` of `re.findall(r"\\w+", text.lower())`.
    """
    from flexqwen.data import kernels  # here, not above: it takes a second to load, and training does not need it

    data, offsets = _lay_out(texts, normalized)
    counts = np.empty(len(offsets) - 1, np.int64)
    hashes = np.empty((len(data) + len(counts)) // 2, np.uint64)  # for so many words; what stays empty takes no memory
    return hashes[: kernels.scan_texts(data, offsets, n, counts, hashes)], counts


def number_texts(counts: np.ndarray) -> np.ndarray:
    """The number of the text of each n-gram (uint32), from `hash_ngrams`."""
    return np.repeat(np.arange(len(counts), dtype=np.uint32), counts)


def count_words(texts: "pa.StringArray") -> np.ndarray:
    """`len(text.split())` of each text (int64)."""
    from flexqwen.data import kernels

    counts = np.empty(len(texts), np.int64)
    kernels.scan_texts(*_lay_out(texts), 1, counts, None)
    return counts


def find_first(texts: "pa.StringArray") -> np.ndarray:
    """The places (int64, ascending) of the texts that no earlier one equals."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from flexqwen.data import kernels

    hashes = np.empty(len(texts), np.uint64)
    kernels.hash_texts(*_lay_out(texts), hashes)
    run = np.empty_like(hashes), np.empty(len(texts), np.uint32)
    kernels.order_records(hashes, np.ones(len(texts), np.int64), *run)
    maybe = np.sort(find_copied(*run, np.array([0, len(texts)]), 0, (1 << 64) - 1)[1])  # few, for which Arrow is fast
    codes = pc.dictionary_encode(texts.take(pa.array(maybe))).indices.to_numpy()  # numbers in the order they appear in
    is_again = np.diff(np.maximum.accumulate(codes), prepend=-1) == 0
    return np.delete(np.arange(len(texts)), maybe[is_again])


def _lay_out(texts: "Iterable[str] | pa.StringArray", normalized: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 of all texts and `PADDING` bytes (uint8); where each starts, and the last one ends (int64).

    The texts of a column of Arrow, one array without nulls, become no objects of Python unless `normalized`.
    """
    is_column = hasattr(texts, "buffers")
    if is_column and len(texts) and not normalized:
        kind = np.int64 if texts.type == "large_string" else np.int32
        _, places, data = texts.buffers()
        offsets = np.frombuffer(places, kind)[texts.offset :][: len(texts) + 1].astype(np.int64)
        data = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    else:
        texts = texts.to_pylist() if is_column else texts
        parts = _normalize(texts) if normalized else [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.cumsum([0, *map(len, parts)])
        data = np.frombuffer(b"".join(parts), np.uint8)
    return np.concatenate([data, np.zeros(PADDING, np.uint8)]), offsets - offsets[0]


def _normalize(texts: Iterable[str]) -> list[bytes]:
    """The UTF-8 of each text in lower case, a space for whatever is no character of a word."""
    parts = []
    for chunk in cut_batches(texts, _CHUNK):
        joined = _END.join([*(text.replace(_END, " ") for text in chunk), ""]).lower()
        code = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
        code = np.where(_list_word_characters()[code] | (code == ord(_END)), code, ord(" "))
        data = code.tobytes().decode("utf-32-le", "surrogatepass").encode("utf-8", "surrogatepass")
        parts += data.split(_END.encode())[:-1]
    return parts


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


def write_run(path: Path, hashes: np.ndarray, counts: np.ndarray) -> None:
    """Writes what `hash_ngrams` returned as `<path>.hashes.npy` (uint64) and `<path>.documents.npy` (uint16 or uint32).

    The texts are documents 0, 1, … of the run.
    """
    from flexqwen.data import kernels

    ordered, documents = np.empty_like(hashes), np.empty(len(hashes), np.uint32)
    kernels.order_records(hashes, counts, ordered, documents)
    np.save(f"{path}.hashes.npy", ordered)
    np.save(f"{path}.documents.npy", documents.astype(np.uint16) if len(counts) <= 1 << 16 else documents)


def count_copied(runs: Sequence[tuple[Path, int]], low: int, high: int, among: Sequence[np.ndarray]) -> np.ndarray:
    """How many 7-grams with `low` <= hash <= `high` of each document another document holds too.

    The range is one of `cut_ranges`. `runs` are paths as given to `write_run`, each with the number to add to its
    document numbers; `among`, sets of documents to compare with each other (bool). Returns uint32
    `(len(among), documents)`, 0 outside a set.
    """
    edges = cut_hashes(_MOST_STEPS, low, high)
    cuts, kinds = np.zeros((len(runs), _MOST_STEPS + 1), np.int64), []
    for (path, _), cut in zip(runs, cuts, strict=True):  # maps are closed at once: there may be thousands of files
        values = np.load(f"{path}.hashes.npy", mmap_mode="r")
        cut[:-1] = np.searchsorted(values, np.array(edges[:-1], np.uint64))
        cut[-1] = np.searchsorted(values, np.uint64(high), side="right")
        kinds.append(np.load(f"{path}.documents.npy", mmap_mode="r").dtype)
    records = int((cuts[:, -1] - cuts[:, 0]).sum())
    steps = min(_MOST_STEPS, records // _STEP_RECORDS, records // max(1, len(runs) * _PIECE_RECORDS))
    parts = np.linspace(0, _MOST_STEPS, max(1, steps) + 1).astype(int)
    sizes = np.diff(cuts[:, parts], axis=1)  # of the piece of each run in each step
    most = max(sizes.sum(axis=0))
    hashes, documents = np.empty(most, np.uint64), np.empty(most, np.uint32)
    counts = np.zeros((len(among), len(among[0])), np.uint32)
    for (part, end), size in zip(itertools.pairwise(parts), sizes.T, strict=True):
        starts, limits = np.cumsum([0, *size]), (edges[part], edges[end] - 1)
        pieces = itertools.starmap(slice, itertools.pairwise(starts))
        for (path, offset), kind, begin, piece in zip(runs, kinds, cuts[:, part], pieces, strict=True):
            span = begin, piece.stop - piece.start
            hashes[piece] = _read_values(f"{path}.hashes.npy", hashes.dtype, *span)
            documents[piece] = _read_values(f"{path}.documents.npy", kind, *span) + np.uint32(offset)
        copied, holders = find_copied(hashes[: starts[-1]], documents[: starts[-1]], starts, *limits)
        for chosen, count in zip(among, counts, strict=True):  # what is copied among some is so among all
            own = holders
            if not chosen.all():
                is_own = chosen[holders]
                own = holders[is_own]
                own = find_copied(copied[is_own], own, np.array([0, len(own)]), *limits)[1]
            count += np.bincount(own, minlength=len(count)).astype(np.uint32)
    return counts


def _read_values(path: str, kind: np.dtype, first: int, count: int) -> np.ndarray:
    return np.fromfile(path, kind, count, offset=_HEADER_BYTES + first * kind.itemsize)


def find_copied(
    hashes: np.ndarray, documents: np.ndarray, starts: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """The hashes and documents of the records whose hash another document has too.

    Piece i of the records stands from `starts[i]` to `starts[i + 1]`, in the order of `write_run`; all pieces are of
    the range from `low` to `high`. What is found is ordered as a piece is, as far as this function needs it.
    """
    from flexqwen.data import kernels

    return kernels.find_copied(hashes, documents, starts, np.uint64(low), np.uint64(high))


def cut_ranges(records: int, memory: int, workers: int) -> list[tuple[int, int]]:
    """Ranges (low, high) that cut the 64-bit hashes so that `workers` of them at a time fit in `memory` bytes."""
    room = max(1, memory // (workers * _RECORD_BYTES))
    parts = min(max(workers, -(-records // room)), 1 << PREFIX_BITS)
    return [(low, high - 1) for low, high in itertools.pairwise(cut_hashes(parts))]


def cut_hashes(parts: int, low: int = 0, high: int = (1 << 64) - 1) -> list[int]:
    """Where each of `parts` ranges begins, and the last one ends; never within the hashes of one prefix."""
    first, end = low >> (64 - PREFIX_BITS), (high + 1) >> (64 - PREFIX_BITS)
    return [(first + (end - first) * part // parts) << (64 - PREFIX_BITS) for part in range(parts + 1)]


def compute_percentage(unique: np.ndarray, total: np.ndarray) -> np.ndarray:
    """100 unique / total (float64), NaN for a document without any 7-gram."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 100 * unique / total, np.nan)


def mean_known(values: np.ndarray, digits: int | None = None) -> float | None:
    """The mean of the values that are not NaN, rounded to so many digits if need be; None where all are."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else None
    return mean if mean is None or digits is None else round(mean, digits)
