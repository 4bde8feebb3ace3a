"""Whose words are these? The passages of a text that stand word for word in a dataset or a corpus, and who holds them.

The index of a folder is made once, out of core: 8 bytes a word, and a row a document. It is read through memory maps:

    <folder>.trace/index.json  what it was made of; written last
    <folder>.trace/<segment>/  some documents of one split
        words                  32-bit hashes of their words, 1 behind each document; big-endian, so they sort as bytes
        places                 a suffix array: all places in `words`, in the order of what stands from there on
        documents.arrow        where each document starts; its id, licence and source

All occurrences of a passage are neighbours in a suffix array, so neither a passage that is held a million times nor one
of a million words takes long to find. Words are those of the originality measure: what white space separates, case and
punctuation as they stand. A wrong word passes for the right one with a probability of 2^-32; all else is exact.
"""

import json
import mmap
import re
import textwrap
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flexqwen.cli import InputError
from flexqwen.data.collection import open_collection
from flexqwen.data.corpus import Shard
from flexqwen.data.ngrams import NGRAM, cut_batches, hash_ngrams
from flexqwen.data.texts import REMEDY, check_whole, dataset_digest, read_manifest
from flexqwen.files import atomic_write, digest, read_json, write_json
from flexqwen.parallel import Pool
from flexqwen.remote import explain_failure

FORMAT = 4  # of the index
_READ = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "license", "source", "text")])
_SHOWN = _READ.remove(3)  # of a document
_PART_BYTES = 32 << 20  # of compressed files that one task reads
_SEGMENT_WORDS = 1 << 24  # sorted in less than 1 GiB, searched in 128 MiB or less
_FEW = 4  # words in a row that mostly stand nowhere
_NAMED = 3  # documents of each passage in a terminal


def hash_text(texts: list[str] | pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """32-bit hashes of the words of all texts (uint32, 2 or more), and each text's number of words (int64)."""
    hashes, counts = hash_ngrams(texts, 1)
    return np.maximum(hashes >> np.uint64(32), 2).astype(np.uint32), counts


def list_sources(folder: Path) -> tuple[list[tuple[str, int, Path | Shard]], str]:
    """Split ("" in a corpus), bytes and file of all that holds the texts of a dataset or a corpus; and a key of it."""
    if not (read_manifest(folder) and (folder / "data").is_dir()):
        shards = open_collection([str(folder)], {}).shards
        return [("", shard.size, shard) for shard in shards], digest([shard.identity for shard in shards])
    files = sorted(file for file in (folder / "data").glob("*/*-*.parquet") if file.parent.name != "index")
    sources = [(f"{file.parent.name}/{file.name.split('-')[0]}", file.stat().st_size, file) for file in files]
    with explain_failure(f"{folder / 'manifest.json'} is damaged", REMEDY):
        promised = read_manifest(folder).get("splits", {}).keys() - {"index/train"}
        for split in sorted({split for split, *_ in sources} | promised):  # none may be missed
            check_whole(folder, *split.split("/"))
    return sources, digest([dataset_digest(folder), *((file.name, *source) for *source, file in sources)])


def make_index(sources: list[tuple[str, int, Path | Shard]], key: str, output: Path, workers: int) -> None:
    """Makes the index `output` of these sources, unless it is there; replaces one of another key."""
    made_of, found = {"index": "trace", "format": FORMAT, "key": key}, read_json(output / "index.json")
    is_index = isinstance(found, dict) and found.get("index") == "trace"
    if is_index and made_of.items() <= found.items():
        return
    if output.exists() and not is_index:
        raise InputError(f"{output} is no index of trace; remove it, or name another place with --index")
    with atomic_write(output) as partial, Pool(workers) as pool:
        partial.mkdir()
        tasks = []
        for split, group in groupby(sources, lambda source: source[0]):
            for part in cut_batches(group, _PART_BYTES, lambda source: source[1]):
                tasks.append((split, [file for *_, file in part], partial / f"{len(tasks):04}"))
        segments = list(chain(*pool.map(index_part, tasks, "Indexing")))
        write_json(partial / "index.json", made_of | {"segments": segments})


def index_part(split: str, files: list[Path | Shard], path: Path) -> list[tuple[str, str, int]]:
    """Writes the segments `<path>-<number>` of some files; returns split, name and number of words of each."""
    segments = []
    batches = ((table.select(_SHOWN.names), *hash_text(table["text"].combine_chunks())) for table in read_tables(files))
    for batch in cut_batches(batches, _SEGMENT_WORDS, lambda batch: len(batch[1])):
        tables, hashes, counts = zip(*batch, strict=True)
        folder = path.with_name(f"{path.name}-{len(segments):04}")
        folder.mkdir()
        ends = np.cumsum(np.concatenate(counts))
        words = np.insert(np.concatenate(hashes), ends, np.uint32(1))
        segments.append((split, folder.name, len(words)))
        words.astype(">u4").tofile(folder / "words")
        sort_suffixes(words).tofile(folder / "places")
        table = pa.concat_tables(tables).combine_chunks()
        columns = {name: table[name].dictionary_encode() for name in _SHOWN.names[1:]}
        starts = (np.append(0, ends[:-1]) + np.arange(len(ends))).astype(np.uint32)
        table = pa.table({"start": starts, "id": table["id"], **columns})
        with pa.OSFile(str(folder / "documents.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
    return segments


def read_tables(files: list[Path | Shard]) -> Iterator[pa.Table]:
    """The documents of Parquet files or shards, a batch at a time."""
    for file in files:
        if isinstance(file, Path):
            with explain_failure(f"{file} is damaged", REMEDY), pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(1024, columns=_READ.names):
                    yield pa.table(batch).select(_READ.names).cast(_READ)
        else:
            for batch in file.read_batches(Counter(), False):
                yield pa.table(batch).select(_READ.names).cast(_READ)


def sort_suffixes(words: np.ndarray) -> np.ndarray:
    """The suffix array (uint32) of `words` (uint32, 1 or more), by prefix doubling (Manber and Myers, 1993).

    Each round orders by twice as many words those places that what stands from there on does not yet tell apart.
    """
    rank = np.append(words, np.uint32(0))  # what stands behind the end comes first
    order, depth = np.arange(len(words), dtype=np.uint32), 1
    active = order.copy()
    while len(active):
        place = order[active]
        key = rank[place].astype(np.uint64) << np.uint64(32) | rank[np.minimum(place + depth, len(words))]
        sorter = np.argsort(key)
        place, key = place[sorter], key[sorter]
        order[active] = place
        is_first = np.diff(key, prepend=~key[:1]) != 0
        rank[place] = np.maximum.accumulate(np.where(is_first, active, 0)) + 1
        active = active[~(is_first & np.append(is_first[1:], True))]
        depth *= 2
    return order


class Segment:
    """A segment of an index, memory-mapped."""

    def __init__(self, folder: Path, split: str, size: int):
        self.split = split
        with open(folder / "words", "rb") as words, open(folder / "places", "rb") as places:
            self.maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in (words, places)]
        if {len(each) for each in self.maps} != {4 * size}:
            raise ValueError(f"{folder.name} is not whole")
        self.words, self.places = self.maps[0], memoryview(self.maps[1]).cast("I")
        self.documents = pa.ipc.open_file(pa.memory_map(str(folder / "documents.arrow"))).read_all()
        self.documents.validate(full=True)  # what does not hold would crash the process

    def find(self, passage: bytes) -> range:
        """The neighbours in `places` where a passage, hashed as `words` are, stands."""

        def read(place: int) -> bytes:
            return self.words[4 * place : 4 * place + len(passage)]

        low = bisect_left(self.places, passage, key=read)
        is_here = low < len(self.places) and read(self.places[low]) == passage
        return range(low, bisect_right(self.places, passage, low, key=read) if is_here else low)

    def find_spans(self, query: bytes, least: int) -> Iterator[tuple[int, int]]:
        """The words [start, end) of each passage of `least` words or more that stands here, within no longer one."""

        def occurs(start: int, end: int) -> bool:
            return bool(self.find(query[4 * start : 4 * end]))

        start, size, few = 0, len(query) // 4, min(_FEW, least)
        while start + least <= size:
            if not occurs(start + least - few, start + least):
                start += least - few + 1
            elif not occurs(start, start + least):
                start += 1
            else:
                longer = 2 * least
                while start + longer <= size and occurs(start, start + longer):
                    longer *= 2
                ends = range(start + longer // 2 + 1, min(start + longer, size + 1))
                end = ends.start - 1 + bisect_left(ends, True, key=lambda end: not occurs(start, end))
                yield start, end
                if end == size:
                    break
                starts = range(start + 1, end + 2 - least)  # the next one ends behind this one
                start = starts.start + bisect_left(starts, True, key=lambda start: occurs(start, end + 1))
        self.release()

    def find_documents(self, passage: bytes) -> list[dict[str, Any]]:
        """The documents that hold a passage."""
        places = np.asarray(self.places)[self.find(passage)]
        rows = np.unique(np.searchsorted(self.documents["start"].to_numpy(), places, side="right") - 1)
        self.release()
        return self.documents.select(_SHOWN.names).take(pa.array(rows)).cast(_SHOWN).to_pylist()

    def release(self) -> None:
        """Gives up the memory of the pages that were read; they stay in the system's cache."""
        for each in self.maps:
            each.madvise(mmap.MADV_DONTNEED)


class Index:
    """The index of a dataset or a corpus; it is made if it is not there, or was made of another content.

    Args:
        folder: the dataset or the corpus.
        place: where the index is; `<folder>.trace` by default.
        splits: configs (`gold`) or splits (`heldout/test`) of the dataset to search; all by default.
    """

    def __init__(self, folder: Path, place: Path | None = None, splits: Iterable[str] = (), workers: int = 1):
        sources, key = list_sources(folder)
        known, wanted = {split for split, *_ in sources}, set(splits)
        if strange := sorted(wanted - known - {split.split("/")[0] for split in known}):
            raise InputError(f"no split {strange[0]} in {folder}; it has: {', '.join(sorted(known)) or 'none'}")
        place = place or folder.absolute().with_name(f"{folder.absolute().name}.trace")
        make_index(sources, key, place, workers)
        self._damage = f"{place} is damaged", "remove it; it is made again"
        with explain_failure(*self._damage):
            segments = read_json(place / "index.json")["segments"]
            chosen = [each for each in segments if not wanted or wanted & {each[0], each[0].split("/")[0]}]
            self.segments = [Segment(place / name, split, size) for split, name, size in chosen]

    def trace(self, text: str, words: int = NGRAM) -> dict[str, Any]:
        """The longest passages of at least so many words of a text that documents hold word for word.

        Returns the number of `words`; `coverage`, the share of them in such passages; and the `spans`, longest first:
        words [`start`, `end`), `characters` [start, end), the `text`, and the `documents` that hold it, each with the
        `splits` it stands in. No span lies within another one.
        """
        if words < 1:
            raise InputError(f"--words {words}: give 1 or more")
        query, found = hash_text([text])[0].astype(">u4").tobytes(), {}
        places = [match.span() for match in re.finditer(r"\S+", text)]
        covered, spans = np.zeros(len(places), bool), []
        with explain_failure(*self._damage):
            for segment in self.segments:
                for span in segment.find_spans(query, words):
                    found.setdefault(span, []).append(segment)
            for start, end in sorted(found, key=lambda span: (span[0], -span[1])):
                if spans and end <= spans[-1]["end"]:
                    continue  # it lies within a longer one, of another segment
                covered[start:end] = True
                holders: dict[str, dict[str, Any]] = {}
                for segment in found[start, end]:
                    for row in segment.find_documents(query[4 * start : 4 * end]):
                        holders.setdefault(row["id"], row | {"splits": []})["splits"].append(segment.split)
                characters = [places[start][0], places[end - 1][1]]
                span = {"start": start, "end": end, "characters": characters, "text": text[slice(*characters)]}
                spans.append(span | {"documents": list(holders.values())})
        spans.sort(key=lambda span: (span["start"] - span["end"], span["start"]))
        return {"words": len(places), "coverage": float(covered.mean()) if len(places) else 0.0, "spans": spans}


def read_inputs(text: str | None, file: Path | None, generations: Path | None) -> list[str]:
    """The texts of one of these; `generations` is a file of JSON lines, objects with a `text`."""
    place = file or generations
    with explain_failure(f"{place or '--text'} cannot be read as UTF-8 text", "mend it, or name another"):
        text = text if place is None else place.read_text(encoding="utf-8")
        text.encode()  # which fails on bytes that are no text; the shell hands them on
    if not generations:
        return [text]
    texts = []
    for number, line in enumerate(text.split("\n"), 1):
        with explain_failure(f"{generations}, line {number}: is no JSON object with a text", "mend it"):
            texts += [json.loads(line)["text"]] if line.strip() else []
            "".join(texts[-1:]).encode()
    return texts


def describe_spans(text: str, found: dict[str, Any], words: int = NGRAM) -> str:
    """What `Index.trace` found in a text: the text with what is copied in ⟦ ⟧; then each span, and who holds it."""
    marked, last, depth = "", 0, 0
    for place, step in sorted(
        edge for span in found["spans"] for edge in zip(span["characters"], (1, -1), strict=True)
    ):
        depth += step
        if depth == (step > 0):
            marked, last = marked + text[last:place] + "⟧⟦"[depth], place
    what = (
        f"{found['words']:,} words, {100 * found['coverage']:.1f} % of them copied; passages: {len(found['spans']):,}"
    )
    if found["words"] < words:
        what += f"; too short to tell, as a passage has at least {words} words"
    lines = [what, marked + text[last:]]
    for span in found["spans"]:
        (start, end), documents = span["characters"], span["documents"]
        lines += [f"\nwords {span['start'] + 1}-{span['end']}, characters {start}-{end}, in {len(documents):,}:"]
        lines += [f"  «{textwrap.shorten(span['text'], 300, placeholder=' …')}»"]
        for document in documents[:_NAMED]:
            where = ", ".join(filter(None, [document["id"], *document["splits"]]))
            source, licence = document["source"] or "no source", document["license"] or "no licence"
            lines += [f"  {where}: {source}, {licence}"]
        if len(documents) > _NAMED:
            lines += [f"  and {len(documents) - _NAMED:,} more"]
    return "\n".join(lines)
