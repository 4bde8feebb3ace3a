"""Shards -> Arrow files of documents; and the documents in use: their columns in memory, their text in those files."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flexqwen.cli import InputError
from flexqwen.data.corpus import COLUMNS, MIN_TOKENS, Shard, ShardError
from flexqwen.data.ngrams import find_first
from flexqwen.files import atomic_write, digest, read_json, remove_path, write_json
from flexqwen.parallel import Pool
from flexqwen.subsampling import subsample

FORMAT = 1  # of what is read of a shard: raise it where another dataset would come of it, and all are read again

_REPEATED = ("taxonomy", "typology", "language", "license", "source")
BEYOND = "beyond --documents"  # why what a sample leaves out is dropped


@dataclass
class Documents:
    """The documents in use, by number, and where their text stands."""

    table: pa.Table  # their columns, without text and without n-gram originality
    files: list[Path]  # an Arrow file for each shard
    shard: np.ndarray  # which of the files a document is in (int64)
    row: np.ndarray  # its row there (int64)
    ngram: np.ndarray = field(init=False)  # recomputed originality, 0-100, NaN for one without a 7-gram (float64)

    def __post_init__(self):
        self.tokens, self.header = self.table["tokens"].to_numpy(), header_originality(self.table)
        codes, names = encode_column(self.table, "typology")
        self.typology = np.where(codes == names.index(""), -1, codes) if "" in names else codes  # -1 for none named

    def __len__(self) -> int:
        return len(self.table)

    def group_by_shard(self, numbers: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        """The files, each with its rows among the documents of these numbers (ascending)."""
        cuts = np.searchsorted(self.shard[numbers], np.arange(len(self.files) + 1))
        rows = self.row[numbers]
        return [(file, rows[start:end]) for file, (start, end) in zip(self.files, pairwise(cuts), strict=True)]


def header_originality(table: pa.Table) -> np.ndarray:
    """The header's originality: float64, NaN where it is undefined, that is under 21 tokens, or absent."""
    return np.where(table["tokens"].to_numpy() >= MIN_TOKENS, table["originality"].to_numpy().astype(float), np.nan)


def encode_column(table: pa.Table, name: str) -> tuple[np.ndarray, list[str]]:
    """A column of few distinct texts, as numbers of these texts; and the texts."""
    column = table[name].combine_chunks()
    return column.indices.to_numpy(), column.dictionary.to_pylist()


def store_shards(
    shards: list[Shard], folder: Path, need_originality: bool, skip_bad: bool, pool: Pool
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Reads each shard into an Arrow file in `folder`, unless it is there; removes what else is there.

    Returns the files, and of each shard how many documents were `read` and `dropped` by reason, and why it is `bad`.
    """
    keys = [digest([FORMAT, *shard.identity, need_originality])[:16] for shard in shards]
    keep_only(folder, set(keys))
    files = [folder / f"{key}.arrow" for key in keys]
    tasks = [(*pair, need_originality, skip_bad) for pair in zip(shards, files, strict=True)]
    return files, pool.map(store_shard, tasks, "Reading shards", [shard.size for shard in shards])


def keep_only(folder: Path, names: set[str]) -> None:
    """Makes the folder if need be, and removes what is in it but for what has one of these names, endings aside."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name.split(".")[0] not in names:
            remove_path(path)


def store_shard(shard: Shard, file: Path, need_originality: bool, skip_bad: bool) -> dict[str, Any]:
    """Reads a shard into an Arrow file, unless that is there; the report beside it, written last, marks it finished."""
    report_file = file.with_suffix(".json")
    if report_file.is_file():
        return read_json(report_file)
    dropped: Counter[str] = Counter()
    try:
        kept = _write_documents(file, shard.read_batches(dropped, need_originality))
    except InputError as error:
        if not skip_bad:
            if not isinstance(error, ShardError):
                raise
            what = f"all of {shard.name}" if len(getattr(shard, "files", ())) > 1 else "it"
            raise ShardError(f"{error}, or leave {what} out with --skip_bad_shards") from error
        _write_documents(file, iter(()))
        # No report: a bad shard is read again by the next build, it may have been mended.
        return {"read": 0, "dropped": {}, "bad": str(error).removeprefix(f"{shard.path}: ").rsplit("; ", 1)[0]}
    report = {"read": kept + dropped.total(), "dropped": dropped, "bad": None}
    write_json(report_file, report)
    return report


def _write_documents(file: Path, batches: Iterator[pa.RecordBatch]) -> int:
    """Writes an Arrow file; returns the number of documents."""
    written = 0
    with atomic_write(file) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, COLUMNS) as out:
        for batch in batches:
            out.write_batch(batch)
            written += len(batch)
    return written


def open_documents(files: list[Path], limit: int | None, seed: int) -> tuple[Documents, Counter[str]]:
    """The documents to use, at most `limit`, not yet scored; and how many were dropped here, by reason."""
    tables = []
    for file in files:
        with pa.memory_map(str(file)) as source:  # the text is not touched
            table = pa.ipc.open_file(source).read_all().drop_columns("text")
            for name in _REPEATED:  # a code for each document instead of a text, of which there are few
                place = table.schema.get_field_index(name)
                table = table.set_column(place, name, pc.dictionary_encode(table[name]))
            tables.append(table)
    shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    row = np.concatenate([np.arange(len(table)) for table in tables])
    table = pa.concat_tables(tables).unify_dictionaries()
    once = find_first(pa.concat_arrays(table["id"].chunks)) if len(table) else row
    keep = once if limit is None else np.array(subsample(once, limit, seed), np.int64)
    dropped = Counter({"duplicate id": len(table) - len(once), BEYOND: len(once) - len(keep)})
    table = table.combine_chunks() if len(keep) == len(table) else table.take(pa.array(keep))
    return Documents(table, files, shard[keep], row[keep]), +dropped


def read_rows(file: Path, rows: np.ndarray, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches with the given rows (ascending) of an Arrow file."""
    start = 0
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        for batch in map(reader.get_batch, range(reader.num_record_batches)):
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if low < high:
                wanted = batch.select(columns) if columns else batch
                yield wanted if high - low == len(batch) else wanted.take(pa.array(rows[low:high] - start))
            start += len(batch)


def read_stored_texts(file: Path, rows: np.ndarray) -> Iterator[pa.StringArray]:
    """The texts of the given rows (ascending) of an Arrow file, in batches."""
    return (batch["text"] for batch in read_rows(file, rows, ["text"]))


def gather_rows(files: list[Path], shard: np.ndarray, row: np.ndarray) -> pa.Table:
    """The documents at (shard, row), in that order."""
    order = np.lexsort((row, shard))
    numbers, starts = np.unique(shard[order], return_index=True)
    parts = zip(numbers, np.split(row[order], starts[1:]), strict=True)
    batches = [batch for number, rows in parts for batch in read_rows(files[number], rows)]
    return pa.Table.from_batches(batches, COLUMNS).combine_chunks().take(pa.array(np.argsort(order)))
