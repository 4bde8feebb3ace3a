"""Builds the Carolina Originality dataset: shards -> documents -> scores -> splits -> Parquet, card and manifest.

All work happens in `<output>.partial/`; at the end one rename makes `<output>` of it. Killed at any moment it leaves
only `.partial`, and the next build goes on from the shards that it finds finished there, and with the same inputs from
their 7-grams too:

    documents/<key>.arrow               the documents of a shard, with text; the key stands for the shard and its reader
    documents/<key>.json                how many were read and dropped; written last, so that it marks a finished shard
    <inputs>/grams/<shard>-<run>.*.npy  sorted runs of 7-grams (see ngrams.py)
    <inputs>/grams/<shard>.npy          number of 7-grams of each document; written last
    <inputs>/dataset/                   what becomes the output
"""

import fcntl
import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flexqwen.cli import InputError
from flexqwen.data import card, ngrams, passages, splits
from flexqwen.data.corpus import MIN_TOKENS, Corpus, Document, Shard, open_corpus, read_shard
from flexqwen.files import (
    atomic_write,
    digest,
    file_digest,
    is_empty,
    read_json,
    remove_path,
    replace_path,
    versions,
    write_json,
)
from flexqwen.parallel import Pool, interrupts_held

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("taxonomy", pa.string()),
        ("typology", pa.string()),
        ("language", pa.string()),
        ("license", pa.string()),
        ("source", pa.string()),
        ("tokens", pa.int32()),
        ("originality", pa.int32()),
        ("ngram_originality", pa.float64()),
    ]
)
"""Columns of every config; `index` has no text."""

NAME = "carolina_originality"
_STORED = pa.schema([field for field in SCHEMA if field.name != "ngram_originality"])
_LIBRARIES = ("lxml", "matplotlib", "numpy", "pyarrow", "scipy")
_REPEATED = ("taxonomy", "typology", "language", "license", "source")
_BATCH_CHARACTERS = 1 << 23  # of text in one batch of an intermediate file
_FILE_BYTES = 128 << 20  # of text in one Parquet file, about
_INDEX_ROW_GROUP = 100_000
_ROW_GROUP, _ROW_GROUP_BYTES = 10_000, 16 << 20


@dataclass(frozen=True)
class Parameters:
    """What a build depends on besides the corpus. These make its bytes; the numbers of workers and of bytes do not.

    Attributes:
        seed: of every random choice.
        documents: use only so many, a random sample over all shards; None for all.
        measure: the originality that makes the splits, "header" (the corpus's own) or "ngram" (recomputed).
        skip_bad_shards: leave out and list what cannot be trusted, instead of stopping there.
    """

    seed: int = 0
    documents: int | None = None
    measure: str = "header"
    skip_bad_shards: bool = False


@dataclass
class Scored:
    """The documents in use, by number, and where their text stands.

    Attributes:
        table: their columns, without text and without n-gram originality.
        files: an Arrow file for each shard.
        shard, row: file and row of each document (int64).
        ngram: recomputed originality, 0-100, NaN for a document without a 7-gram (float64).
    """

    table: pa.Table
    files: list[Path]
    shard: np.ndarray
    row: np.ndarray
    ngram: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return self.table["tokens"].to_numpy()

    @property
    def header(self) -> np.ndarray:
        """The header's originality: float64, NaN where it is undefined, that is under 21 tokens, or absent."""
        return np.where(self.tokens >= MIN_TOKENS, self.table["originality"].to_numpy().astype(float), np.nan)

    def score(self, measure: str) -> np.ndarray:
        return self.header if measure == "header" else self.ngram

    def codes(self, column: str) -> np.ndarray:
        """The values of a column of few distinct ones, as numbers of `names`."""
        return self.table[column].combine_chunks().indices.to_numpy()

    def names(self, column: str) -> list[str]:
        """What the codes of a column stand for."""
        return self.table[column].combine_chunks().dictionary.to_pylist()

    @property
    def typology(self) -> np.ndarray:
        """Codes of the source typologies, -1 where the header names none."""
        codes, names = self.codes("typology"), self.names("typology")
        return np.where(codes == names.index(""), -1, codes) if "" in names else codes

    def by_shard(self, documents: np.ndarray) -> list[tuple[Path, np.ndarray]]:
        """The files, each with its rows among `documents` (ascending numbers)."""
        cuts = np.searchsorted(self.shard[documents], np.arange(len(self.files) + 1))
        rows = self.row[documents]
        return [(file, rows[start:end]) for file, (start, end) in zip(self.files, pairwise(cuts), strict=True)]


def build(
    corpus_folder: str | Path,
    output: str | Path,
    parameters: Parameters,
    workers: int = 2,
    memory: int = 2 << 30,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Builds the dataset folder `output` and returns its manifest; reuses a finished one that has the same inputs.

    Args:
        memory: bytes that scoring may take, all processes together.
        overwrite: replace an `output` that has other inputs.

    Raises `InputError` where the corpus is not fit for it, `output` has other inputs and `overwrite` is not set, or
    `output` holds anything that no build made.
    """
    output = Path(output)
    if not output.name:
        raise InputError(f"--output {output}: give the name of a folder to make")
    corpus = open_corpus(corpus_folder)
    inputs = digest(
        {
            "shards": {shard.name: [shard.sha256, shard.path.stat().st_size] for shard in corpus.shards},
            "absent": corpus.absent,
            "strays": corpus.strays,
            "generated": corpus.generated,
            "parameters": asdict(parameters),
            "code": _code(),
        }
    )
    try:
        with _locked(output) as work:
            if output.exists() and not is_empty(output):
                manifest = read_manifest(output)
                if manifest.get("inputs") == inputs:
                    remove_path(work)
                    return manifest | {"reused": True}
                if manifest.get("dataset") != NAME:
                    raise InputError(f"{output}: was not built by this; name another --output, or remove it yourself")
                if not overwrite:
                    raise InputError(f"{output}: was built from other inputs; remove it or give --overwrite")
            _keep_only(work, {"documents", inputs})
            with interrupts_held():  # what these load may swallow an interrupt
                importlib.import_module("matplotlib.figure")
                importlib.import_module("scipy.stats")
                pa.array(np.empty(0))  # pyarrow loads pandas, where there is one
            try:
                with Pool(workers) as pool:
                    manifest = _build(corpus, work, inputs, parameters, pool, memory)
            except InputError as error:
                if not any(work.glob("documents/*.json")):
                    raise
                raise InputError(f"{error}; finished shards are kept in {work} for the next build") from error
            write_json(work / inputs / "dataset" / "manifest.json", manifest)
            replace_path(work / inputs / "dataset", output)
            remove_path(work)
            return manifest
    except OSError as error:  # a full disk, above all
        raise InputError(
            f"{error.filename or output}: cannot be written ({error.strerror or error}); make room and run the same "
            "again, finished shards are kept"
        ) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a built dataset; empty where there is none."""
    manifest = read_json(folder / "manifest.json")
    return manifest if isinstance(manifest, dict) else {}


def _code() -> dict[str, str]:
    """What the bytes depend on besides inputs: this code and its libraries."""
    modules = ("build", "card", "corpus", "ngrams", "passages", "splits")
    folder = Path(__file__).parent
    return {name: file_digest(folder / f"{name}.py") for name in modules} | versions(*_LIBRARIES)


def _keep_only(folder: Path, names: set[str]) -> None:
    """Makes the folder if need be, and removes what is in it but for what has one of these names, endings aside."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name.split(".")[0] not in names:
            remove_path(path)


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """Yields the path of the work folder, which no other build uses meanwhile."""
    work = output.with_name(output.name + ".partial")
    work.parent.mkdir(parents=True, exist_ok=True)
    lock_file = output.with_name(output.name + ".lock.partial")
    with open(lock_file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{work}: another build is at work there; wait for it") from error
        try:
            yield work
        finally:
            remove_path(lock_file)


def _build(corpus: Corpus, work: Path, inputs: str, parameters: Parameters, pool: Pool, memory: int) -> dict[str, Any]:
    sizes = [shard.path.stat().st_size for shard in corpus.shards]
    read_by = [_code(), parameters.measure]
    keys = [digest([s.name, s.sha256, size, read_by])[:16] for s, size in zip(corpus.shards, sizes, strict=True)]
    _keep_only(work / "documents", set(keys))
    files = [work / "documents" / f"{key}.arrow" for key in keys]
    work = work / inputs
    (work / "grams").mkdir(parents=True, exist_ok=True)
    remove_path(work / "dataset")
    (work / "dataset").mkdir()

    tasks = [(shard, file, parameters) for shard, file in zip(corpus.shards, files, strict=True)]
    reports = pool.map(store_shard, tasks, "Reading shards", sizes)
    scored, dropped = _open_documents(files, parameters)
    for report in reports:
        dropped.update(report["dropped"])

    everything = np.arange(len(scored.table))
    tasks = [
        (file, rows, work / "grams" / f"{number:06}") for number, (file, rows) in enumerate(scored.by_shard(everything))
    ]
    totals = pool.map(store_grams, tasks, "Hashing 7-grams", sizes)
    scored.ngram, among_long = _score(scored, work / "grams", totals, memory, pool)

    heldout_file = work / "heldout.npy"
    chosen = _choose(scored, parameters, heldout_file, pool)
    shares, bytes_ = _write(work / "dataset", scored, chosen, heldout_file, pool)
    manifest = {
        "dataset": NAME,
        "generated": corpus.generated,
        "inputs": inputs,
        "parameters": asdict(parameters),
        "versions": versions(*_LIBRARIES),
        "documents": {
            "read": sum(report["read"] for report in reports),
            "kept": len(scored.table),
            "dropped": dict(sorted(dropped.items())),
        },
        "splits": _describe(scored, chosen, bytes_),
        "agreement": agreement(scored, among_long),
        "checks": _check(scored, chosen, shares, parameters),
        "shards": {
            "used": {
                shard.name: {"sha256": shard.sha256, "documents": report["read"]}
                for shard, report in zip(corpus.shards, reports, strict=True)
                if not report["bad"]
            },
            "bad": {s.name: r["bad"] for s, r in zip(corpus.shards, reports, strict=True) if r["bad"]},
            "absent": corpus.absent,
        },
        "stray_files": corpus.strays,
    }
    card.write_card(work / "dataset", manifest, scored, chosen)
    return manifest


# Shards -> documents


def store_shard(shard: Shard, file: Path, parameters: Parameters) -> dict[str, Any]:
    """Reads a shard into an Arrow file, unless that is there; returns what was read, dropped by reason, and bad."""
    report_file = file.with_suffix(".json")
    if report_file.is_file():
        return read_json(report_file)
    dropped: Counter[str] = Counter()
    kept, bad = 0, None
    try:
        with (
            atomic_write(file) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, _STORED) as out,
        ):
            for batch in _batches(read_shard(shard, dropped, parameters.measure == "header")):
                columns = zip(zip(*batch, strict=True), _STORED.types, strict=True)
                out.write_batch(pa.record_batch([pa.array(*column) for column in columns], schema=_STORED))
                kept += len(batch)
    except InputError as error:
        if not parameters.skip_bad_shards:
            raise
        kept, bad = 0, str(error).removeprefix(f"{shard.path}: ").rsplit("; ", 1)[0]
        dropped.clear()
        with atomic_write(file) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _STORED):
            pass
    report = {"read": kept + dropped.total(), "dropped": dropped, "bad": bad}
    if not bad:  # a bad shard is read again: it may have been mended
        write_json(report_file, report)
    return report


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _open_documents(files: list[Path], parameters: Parameters) -> tuple[Scored, Counter[str]]:
    """The documents to use, not yet scored, and how many were dropped here, by reason."""
    tables = []
    for file in files:
        with pa.memory_map(str(file)) as source:  # the text is not touched
            table = pa.ipc.open_file(source).read_all().drop_columns("text")
            for place, name in enumerate(table.schema.names):
                if name in _REPEATED:  # a code for each document instead of a text, of which there are few
                    table = table.set_column(place, name, pc.dictionary_encode(table[name]))
            tables.append(table)
    shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    row = np.concatenate([np.arange(len(table)) for table in tables])
    table = pa.concat_tables(tables).unify_dictionaries()
    dropped: Counter[str] = Counter()
    ids = pc.dictionary_encode(pa.concat_arrays(table["id"].chunks)).indices.to_numpy() if len(table) else row
    keep = np.sort(np.unique(ids, return_index=True)[1])
    if len(table) > len(keep):
        dropped["duplicate id"] = len(table) - len(keep)
    if parameters.documents is not None and parameters.documents < len(keep):
        dropped["beyond --documents"] = len(keep) - parameters.documents
        sample = np.random.default_rng([parameters.seed, 0]).permutation(len(keep))[: parameters.documents]
        keep = np.sort(keep[sample])
    table = table.combine_chunks() if len(keep) == len(table) else table.take(pa.array(keep))
    return Scored(table, files, shard[keep], row[keep], np.full(len(keep), np.nan)), dropped


def read_rows(file: Path, rows: np.ndarray, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches with the given rows (ascending) of an intermediate file."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        start = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if low < high:
                wanted = batch.select(columns) if columns else batch
                yield wanted.take(pa.array(rows[low:high] - start))
            start += len(batch)


def read_texts(file: Path, rows: np.ndarray) -> Iterator[list[str]]:
    """The texts of the given rows (ascending) of an intermediate file, in batches."""
    return (batch["text"].to_pylist() for batch in read_rows(file, rows, ["text"]))


# Documents -> scores


def store_grams(file: Path, rows: np.ndarray, path: Path) -> np.ndarray:
    """Leaves sorted runs of the 7-grams of some documents, unless they are there; returns each document's number."""
    totals_file = path.with_suffix(".npy")
    if not totals_file.is_file():
        totals = [np.empty(0, np.int64)]
        done = 0
        for number, texts in enumerate(read_texts(file, rows)):
            grams, document = ngrams.ngram_hashes(*ngrams.word_hashes(texts))
            ngrams.write_run(path.with_name(f"{path.name}-{number}"), grams, document + np.uint32(done))
            totals.append(np.bincount(document, minlength=len(texts)))
            done += len(texts)
        with atomic_write(totals_file) as partial, open(partial, "wb") as out:
            np.save(out, np.concatenate(totals))
    return np.load(totals_file)


def _score(
    scored: Scored, folder: Path, totals: list[np.ndarray], memory: int, pool: Pool
) -> tuple[np.ndarray, np.ndarray]:
    """Recomputed originality of every document, from its shard's runs in `folder` and its number of 7-grams.

    Returns it twice (float64): among all documents, and among those of at least 21 tokens (NaN for the others).
    """
    first = np.concatenate([[0], np.cumsum([len(part) for part in totals])])  # document of each shard
    runs = []
    for file in sorted(folder.glob("*.hashes.npy")):
        name = file.name.removesuffix(".hashes.npy")
        runs.append((folder / name, int(first[int(name.split("-")[0])])))
    total = np.concatenate(totals)
    long = scored.tokens >= MIN_TOKENS
    among = [np.ones(len(total), bool), long]
    ranges = ngrams.ranges(int(total.sum()), memory, pool.workers)
    tasks = [(runs, low, high, among) for low, high in ranges]
    unique = np.zeros((2, len(total)), np.int64)
    for part in pool.map(ngrams.count_unique, tasks, "Scoring"):
        unique += part
    return ngrams.percentage(unique[0], total), ngrams.percentage(unique[1], np.where(long, total, 0))


def agreement(scored: Scored, among_long: np.ndarray) -> dict[str, Any]:
    """How the recomputed originality agrees with the header's, over documents of at least 21 tokens that have both.

    `column` is the one of the dataset, among all documents; `among_long` is among those of at least 21 tokens only. So
    is the header's, it seems: of the real documents that score under 99 in the one and 100 in the other, it calls 91 %
    wholly original.
    """
    from scipy.stats import spearmanr

    both = ~np.isnan(scored.header) & ~np.isnan(scored.ngram)
    header = scored.header[both]
    found: dict[str, Any] = {"documents": len(header)}
    for name, ngram in (("column", scored.ngram[both]), ("among_long", among_long[both])):
        if len(header) > 1 and header.std() > 0 and ngram.std() > 0:
            found[name] = {
                "pearson": round(float(np.corrcoef(header, ngram)[0, 1]), 4),
                "spearman": round(float(spearmanr(header, ngram).statistic), 4),
                "mean_absolute_difference": round(float(np.abs(header - ngram).mean()), 2),
            }
    return found


# Scores -> splits


def _choose(scored: Scored, parameters: Parameters, heldout_file: Path, pool: Pool) -> splits.Splits:
    """The splits. Leaves the hashes of the held-out documents' 13-grams in `heldout_file` (uint64, ascending)."""
    tokens, score = scored.tokens, scored.score(parameters.measure)
    proposed = splits.propose(tokens, score, scored.typology, parameters.seed)
    heldout = np.unique(np.concatenate(list(proposed.heldout.values())))
    hashes = pool.map(heldout_passages, scored.by_shard(heldout), "Held-out passages")
    np.save(heldout_file, np.unique(np.concatenate(hashes)))

    training = np.unique(np.concatenate(list(proposed.training.values())))
    tasks = [(*task, heldout_file) for task in scored.by_shard(training)]
    shares = np.concatenate(pool.map(heldout_shares, tasks, "Decontaminating"))
    contaminated = np.zeros(len(tokens), bool)
    contaminated[training[shares >= passages.LIMIT]] = True
    return splits.decontaminate(proposed, contaminated, tokens, parameters.seed)


def heldout_passages(file: Path, rows: np.ndarray) -> np.ndarray:
    """13-gram hashes of some documents of an intermediate file."""
    return np.concatenate([np.empty(0, np.uint64), *(passages.passages(texts) for texts in read_texts(file, rows))])


def heldout_shares(file: Path, rows: np.ndarray, heldout_file: Path) -> np.ndarray:
    """Share of each of some documents' 13-grams that is in `heldout_file`."""
    held = passages.Passages(np.load(heldout_file))
    return np.concatenate([np.empty(0), *(held.shares(texts) for texts in read_texts(file, rows))])


# Splits -> files


def _write(
    folder: Path, scored: Scored, chosen: splits.Splits, heldout_file: Path, pool: Pool
) -> tuple[dict[str, float], dict[str, int]]:
    """Writes data/<config>/<split>-*.parquet.

    Returns by `<config>/<split>` the largest share of its 13-grams that any training document has in common with the
    held-out ones, and the bytes of the columns.
    """
    length = scored.tokens * 6  # bytes of a document's text, roughly
    tasks, costs, names = [], [], []
    for name, documents in chosen.parts().items():
        config, split = name.split("/")
        pieces = max(1, round(int(length[documents].sum()) / _FILE_BYTES))
        for number, piece in enumerate(np.array_split(documents, pieces)):
            path = folder / "data" / config / f"{split}-{number:05}-of-{pieces:05}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            places = (scored.files, scored.shard[piece], scored.row[piece], length[piece], scored.ngram[piece])
            tasks.append((path, *places, None if config == "heldout" else heldout_file))
            costs.append(int(length[piece].sum()))
            names.append(name)
    shares, bytes_ = {}, Counter()
    for name, (share, size) in zip(names, pool.map(write_rows, tasks, "Writing", costs), strict=True):
        if share is not None:
            shares[name] = max(share, shares.get(name, 0.0))
        bytes_[name] += size
    (folder / "data" / "index").mkdir()
    bytes_["index/train"] = _write_index(folder / "data" / "index" / "train-00000-of-00001.parquet", scored)
    return shares, bytes_


def write_rows(
    path: Path,
    files: list[Path],
    shard: np.ndarray,
    row: np.ndarray,
    length: np.ndarray,
    ngram: np.ndarray,
    heldout_file: Path | None,
) -> tuple[float | None, int]:
    """Writes a Parquet file of the documents at (shard, row), in that order, `length` bytes of text each.

    Returns the largest share of a document's 13-grams that is in `heldout_file` (None without one), and the bytes of
    the columns.
    """
    held = passages.Passages(np.load(heldout_file)) if heldout_file else None
    share, size = 0.0, 0
    ends = np.flatnonzero(np.diff(np.cumsum(length) // _ROW_GROUP_BYTES)) + 1
    edges = np.unique([0, *ends, *range(0, len(shard), _ROW_GROUP), len(shard)])
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as out:
        for start, end in pairwise(edges):
            table = _gather(files, shard[start:end], row[start:end])
            if held:
                share = max(share, float(held.shares(table["text"].to_pylist()).max()))
            table = _with_score(table, ngram[start:end])
            out.write_table(table)
            size += table.nbytes
    return share if held else None, size


def _gather(files: list[Path], shard: np.ndarray, row: np.ndarray) -> pa.Table:
    """The documents at (shard, row), in that order."""
    order = np.lexsort((row, shard))
    numbers, starts = np.unique(shard[order], return_index=True)
    parts = zip(numbers, np.split(row[order], starts[1:]), strict=True)
    batches = [batch for number, rows in parts for batch in read_rows(files[number], rows)]
    return pa.Table.from_batches(batches, _STORED).combine_chunks().take(pa.array(np.argsort(order)))


def _with_score(table: pa.Table, ngram: np.ndarray) -> pa.Table:
    """The table and its n-gram originality, null where it is NaN."""
    return table.append_column(SCHEMA.field("ngram_originality"), pa.array(ngram, from_pandas=True))


def _write_index(path: Path, scored: Scored) -> int:
    """Writes the index; returns the bytes of its columns."""
    schema = pa.schema([field for field in SCHEMA if field.name != "text"])
    size = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for start in range(0, len(scored.table), _INDEX_ROW_GROUP):
            end = start + _INDEX_ROW_GROUP
            table = _with_score(scored.table.slice(start, _INDEX_ROW_GROUP), scored.ngram[start:end]).cast(schema)
            out.write_table(table)
            size += table.nbytes
    return size


# What is said of them


def _describe(scored: Scored, chosen: splits.Splits, bytes_: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Documents, tokens, bytes and mean originality of each split, by `<config>/<split>`."""
    parts = chosen.parts() | {"index/train": np.arange(len(scored.table))}
    return {
        name: {
            "documents": len(part),
            "tokens": int(scored.tokens[part].sum()),
            "bytes": bytes_[name],
            "originality": _mean(scored.header[part]),
            "ngram_originality": _mean(scored.ngram[part][scored.tokens[part] >= MIN_TOKENS]),
            "size": chosen.notes.get(name, "all"),
        }
        for name, part in parts.items()
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return round(float(values.mean()), 2) if len(values) else None


def _check(
    scored: Scored, chosen: splits.Splits, shares: dict[str, float], parameters: Parameters
) -> dict[str, dict[str, Any]]:
    checks = splits.check(chosen, scored.tokens, scored.score(parameters.measure), scored.typology)
    for name, share in shares.items():
        checks[f"{name}: largest share of a document's 13-grams that held-out documents hold"] = {
            "value": round(share, 6),
            "below": passages.LIMIT,
            "passed": share < passages.LIMIT,
        }
    if failed := [name for name, result in checks.items() if not result["passed"]]:
        raise InputError(f"the splits do not pass the check '{failed[0]}'; give more shards or more --documents")
    return checks
