"""Splits -> the dataset's Parquet files, data/<config>/<split>-*.parquet."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flexqwen.data.corpus import COLUMNS
from flexqwen.data.documents import Documents, gather_rows
from flexqwen.data.passages import Passages
from flexqwen.data.splits import Splits
from flexqwen.parallel import Pool

SCHEMA = COLUMNS.append(pa.field("ngram_originality", pa.float64()))  # of every config; `index` has no text

_FILE_BYTES = 128 << 20  # of text in one Parquet file, about
_INDEX_ROW_GROUP = 100_000
_ROW_GROUP, _ROW_GROUP_BYTES = 10_000, 16 << 20


def write_splits(
    folder: Path, documents: Documents, chosen: Splits, heldout_file: Path, pool: Pool
) -> tuple[dict[str, int], dict[str, float]]:
    """Writes the files of all splits and of the index.

    Returns by `<config>/<split>` the bytes of the columns, and for training splits the largest of the shares.
    """
    length = documents.tokens * 6  # bytes of a document's text, roughly
    tasks, costs, names = [], [], []
    for name, numbers in chosen.parts().items():
        config, split = name.split("/")
        pieces = max(1, round(int(length[numbers].sum()) / _FILE_BYTES))
        for number, piece in enumerate(np.array_split(numbers, pieces)):
            path = folder / "data" / config / f"{split}-{number:05}-of-{pieces:05}.parquet"
            places = documents.files, documents.shard[piece], documents.row[piece]
            heldout = None if config == "heldout" else heldout_file
            tasks.append((path, places, length[piece], documents.ngram[piece], heldout))
            costs.append(int(length[piece].sum()))
            names.append(name)
    bytes_: Counter[str] = Counter()
    shares: dict[str, float] = {}
    for name, (size, share) in zip(names, pool.map(write_rows, tasks, "Writing", costs), strict=True):
        bytes_[name] += size
        if share is not None:
            shares[name] = max(share, shares.get(name, 0.0))
    starts = range(0, len(documents), _INDEX_ROW_GROUP)
    groups = (documents.table.slice(start, _INDEX_ROW_GROUP) for start in starts)
    schema = pa.schema([field for field in SCHEMA if field.name != "text"])
    index = folder / "data" / "index" / "train-00000-of-00001.parquet"
    bytes_["index/train"] = _write_groups(index, schema, groups, documents.ngram)
    return bytes_, shares


def write_rows(
    path: Path, places: tuple, length: np.ndarray, ngram: np.ndarray, heldout_file: Path | None
) -> tuple[int, float | None]:
    """Writes a Parquet file of the documents at `places`, the arguments of `gather_rows`, with texts of `length` bytes.

    Returns the bytes of the columns, and the largest share of a document's 13-grams that is in `heldout_file` (None
    without one), in the text as it is written, so that it also tells of a wrong row.
    """
    files, shard, row = places
    heldout = Passages(np.load(heldout_file)) if heldout_file else None
    shares = [0.0]
    ends = np.flatnonzero(np.diff(np.cumsum(length) // _ROW_GROUP_BYTES)) + 1
    edges = np.unique([0, *ends, *range(0, len(row), _ROW_GROUP), len(row)])

    def read_groups() -> Iterator[pa.Table]:
        for start, end in pairwise(edges):
            group = gather_rows(files, shard[start:end], row[start:end])
            if heldout:
                shares.extend(np.nan_to_num(heldout.find_shares(group["text"].to_pylist())).tolist())
            yield group

    return _write_groups(path, SCHEMA, read_groups(), ngram), max(shares) if heldout else None


def _write_groups(path: Path, schema: pa.Schema, groups: Iterable[pa.Table], ngram: np.ndarray) -> int:
    """Writes row groups with their n-gram originality, null where it is NaN; returns the bytes of the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = done = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for group in groups:
            scores = pa.array(ngram[done : done + len(group)], from_pandas=True)
            table = group.append_column(SCHEMA.field("ngram_originality"), scores).cast(schema)
            out.write_table(table)
            size, done = size + table.nbytes, done + len(table)
    return size
