"""Splits -> the dataset's Parquet files, data/<config>/<split>-*.parquet."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flexqwen.data.documents import STORED, Documents, gather_rows
from flexqwen.data.splits import Splits
from flexqwen.parallel import Pool

SCHEMA = STORED.append(pa.field("ngram_originality", pa.float64()))
"""Columns of every config; `index` has no text."""

_FILE_BYTES = 128 << 20  # of text in one Parquet file, about
_INDEX_ROW_GROUP = 100_000
_ROW_GROUP, _ROW_GROUP_BYTES = 10_000, 16 << 20


def write_splits(folder: Path, documents: Documents, chosen: Splits, pool: Pool) -> dict[str, int]:
    """Writes the files of all splits and of the index; returns the bytes of their columns by `<config>/<split>`."""
    length = documents.tokens * 6  # bytes of a document's text, roughly
    tasks, costs, names = [], [], []
    for name, numbers in chosen.parts().items():
        config, split = name.split("/")
        pieces = max(1, round(int(length[numbers].sum()) / _FILE_BYTES))
        for number, piece in enumerate(np.array_split(numbers, pieces)):
            path = folder / "data" / config / f"{split}-{number:05}-of-{pieces:05}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            places = (documents.files, documents.shard[piece], documents.row[piece])
            tasks.append((path, *places, length[piece], documents.ngram[piece]))
            costs.append(int(length[piece].sum()))
            names.append(name)
    bytes_: Counter[str] = Counter()
    for name, size in zip(names, pool.map(write_rows, tasks, "Writing", costs), strict=True):
        bytes_[name] += size
    (folder / "data" / "index").mkdir()
    bytes_["index/train"] = write_index(folder / "data" / "index" / "train-00000-of-00001.parquet", documents)
    return bytes_


def write_rows(
    path: Path, files: list[Path], shard: np.ndarray, row: np.ndarray, length: np.ndarray, ngram: np.ndarray
) -> int:
    """Writes a Parquet file of the documents at (shard, row), in that order, `length` bytes of text each.

    Returns the bytes of the columns.
    """
    size = 0
    ends = np.flatnonzero(np.diff(np.cumsum(length) // _ROW_GROUP_BYTES)) + 1
    edges = np.unique([0, *ends, *range(0, len(shard), _ROW_GROUP), len(shard)])
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as out:
        for start, end in pairwise(edges):
            table = _add_score(gather_rows(files, shard[start:end], row[start:end]), ngram[start:end])
            out.write_table(table)
            size += table.nbytes
    return size


def write_index(path: Path, documents: Documents) -> int:
    """Writes the index; returns the bytes of its columns."""
    schema = pa.schema([field for field in SCHEMA if field.name != "text"])
    size = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for start in range(0, len(documents), _INDEX_ROW_GROUP):
            table = documents.table.slice(start, _INDEX_ROW_GROUP)
            table = _add_score(table, documents.ngram[start : start + _INDEX_ROW_GROUP]).cast(schema)
            out.write_table(table)
            size += table.nbytes
    return size


def _add_score(table: pa.Table, ngram: np.ndarray) -> pa.Table:
    """The table and its n-gram originality, null where it is NaN."""
    return table.append_column(SCHEMA.field("ngram_originality"), pa.array(ngram, from_pandas=True))
