"""Builds the Carolina Originality dataset: shards -> documents -> scores -> splits -> Parquet, card and manifest.

All work happens in `<output>.partial/`; at the end one rename makes `<output>` of it. Killed at any moment it leaves
only `.partial`, and the next build of the same inputs goes on from the shards that it finds finished there.
"""

import fcntl
import json
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

from flexqwen import contamination, originality, splits
from flexqwen.card import write_card
from flexqwen.cli import InputError
from flexqwen.corpus import Corpus, Document, Shard, open_corpus, read_shard
from flexqwen.outputs import digest, file_digest, put, remove, versions, write_json, written_aside
from flexqwen.parallel import Pool

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
INDEX_SCHEMA = pa.schema([field for field in SCHEMA if field.name != "text"])
_STORED = pa.schema([field for field in SCHEMA if field.name != "ngram_originality"])

_BATCH_CHARACTERS = 1 << 23  # of text in one batch of an intermediate file, and of tokenization
_FILE_BYTES = 128 << 20  # of text in one Parquet file
_ROW_GROUP = 10_000


@dataclass(frozen=True)
class Parameters:
    """What a build depends on besides the corpus: these make its bytes, `workers` and `memory` do not."""

    seed: int = 0
    documents: int | None = None
    measure: str = "header"
    skip_bad_shards: bool = False


def build(
    corpus_folder: Path,
    output: Path,
    parameters: Parameters,
    workers: int = 2,
    memory: int = 2 << 30,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Builds the dataset folder `output` and returns its manifest; reuses a finished one that has the same inputs.

    Raises `InputError` where the corpus is not fit for it, or where `output` was made from other inputs and `overwrite`
    is not set.
    """
    corpus = open_corpus(corpus_folder)
    inputs = digest(
        {
            "shards": {shard.name: [shard.sha256, shard.path.stat().st_size] for shard in corpus.shards},
            "absent": corpus.absent,
            "parameters": asdict(parameters),
            "code": _code(),
        }
    )
    if output.exists():
        made_from = _read_manifest(output).get("inputs")
        if made_from == inputs:
            return _read_manifest(output) | {"reused": True}
        if not overwrite:
            raise InputError(f"{output}: made from other inputs, or not made by this; remove it, or give --overwrite")
    with _work_folder(output, inputs) as work, Pool(workers) as pool:
        try:
            manifest = _build(corpus, work, parameters, pool, memory)
            manifest["inputs"] = inputs
            write_json(work / "dataset" / "manifest.json", manifest)
            put(work / "dataset", output)
        except OSError as error:  # a full disk, above all
            raise InputError(
                f"{error.filename or work}: cannot be written ({error.strerror or error}); make room and run again, "
                "finished shards are kept"
            ) from error
    return manifest


def _code() -> dict[str, str]:
    folder = Path(__file__).parent
    names = ("corpus", "originality", "contamination", "splits", "dataset", "card")
    return {name: file_digest(folder / f"{name}.py") for name in names} | versions("numpy", "pyarrow", "lxml")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def _work_folder(output: Path, inputs: str) -> Iterator[Path]:
    """`<output>.partial/`, empty unless it was left by a build of the same inputs; removed after success only."""
    work = output.with_name(output.name + ".partial")
    work.parent.mkdir(parents=True, exist_ok=True)
    with open(work.with_name(work.name + ".lock.partial"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{work}: another build is at work there; wait for it") from error
        if not (work / inputs).is_file():
            remove(work)
            work.mkdir()
            (work / inputs).touch()
        yield work
        remove(work)
        remove(Path(lock.name))


def _build(corpus: Corpus, work: Path, parameters: Parameters, pool: Pool, memory: int) -> dict[str, Any]:
    for name in ("documents", "grams"):
        (work / name).mkdir(exist_ok=True)
    remove(work / "dataset")
    sizes = [shard.path.stat().st_size for shard in corpus.shards]
    files = [work / "documents" / f"{number:06}.arrow" for number in range(len(corpus.shards))]
    tasks = [(shard, file, parameters) for shard, file in zip(corpus.shards, files, strict=True)]
    reports = pool.map(store_shard, tasks, "Reading shards", sizes)

    table, keep, dropped = _documents(files, parameters)
    for report in reports:
        dropped.update(report["dropped"])
    shard_of, row_of = keep
    bounds = np.searchsorted(shard_of, np.arange(len(files) + 1))
    rows = [row_of[start:end] for start, end in pairwise(bounds)]

    tasks = [(file, part, work / "grams" / file.stem) for file, part in zip(files, rows, strict=True)]
    totals = pool.map(store_grams, tasks, "Hashing 7-grams", sizes)
    ngram = _score(work, totals, bounds, len(table), memory, pool)

    chosen = _choose(table, ngram, files, rows, bounds, parameters, pool)
    (work / "dataset").mkdir()
    _write(work / "dataset", table, ngram, chosen, files, shard_of, row_of, pool)
    manifest = {
        "dataset": "carolina_originality",
        "parameters": asdict(parameters),
        "versions": versions("numpy", "pyarrow", "lxml"),
        "documents": {
            "read": sum(report["read"] for report in reports),
            "kept": len(table),
            "dropped": dict(sorted(dropped.items())),
        },
        "splits": describe(table, ngram, chosen),
        "checks": check(table, ngram, chosen, parameters),
        "shards": {
            "used": {
                shard.name: {"sha256": shard.sha256, "documents": report["read"]}
                for shard, report in zip(corpus.shards, reports, strict=True)
                if not report["bad"]
            },
            "bad": {s.name: r["bad"] for s, r in zip(corpus.shards, reports, strict=True) if r["bad"]},
            "absent": corpus.absent,
            "stray_files": corpus.strays,
        },
    }
    write_card(work / "dataset", manifest, table, ngram, chosen)
    return manifest


# Shards -> documents


def store_shard(shard: Shard, file: Path, parameters: Parameters) -> dict[str, Any]:
    """Reads one shard into an Arrow file, unless that is there; returns how many documents were read, dropped, bad."""
    report_file = file.with_suffix(".json")
    if report_file.is_file():
        return json.loads(report_file.read_text(encoding="utf-8"))
    dropped: Counter[str] = Counter()
    report = {"read": 0, "dropped": dropped, "bad": None}
    try:
        with (
            written_aside(file) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, _STORED) as out,
        ):
            for batch in _batches(read_shard(shard, dropped, parameters.measure == "header")):
                report["read"] += len(batch)
                out.write_batch(
                    pa.record_batch(
                        [pa.array(c, t) for c, t in zip(zip(*batch, strict=True), _STORED.types, strict=True)],
                        schema=_STORED,
                    )
                )
    except InputError as error:
        if not parameters.skip_bad_shards:
            raise
        report = {"read": 0, "dropped": {}, "bad": str(error)}
        with written_aside(file) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _STORED):
            pass
    report["read"] += sum(report["dropped"].values())
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


def _documents(files: list[Path], parameters: Parameters) -> tuple[pa.Table, tuple[np.ndarray, np.ndarray], Counter]:
    """Columns (no text) of the documents in use, where each stands (shard, row), and what was dropped across shards."""
    tables = []
    for file in files:
        with pa.memory_map(str(file)) as source:  # the text is not touched
            tables.append(pa.ipc.open_file(source).read_all().drop_columns("text"))
    shard_of = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    row_of = np.concatenate([np.arange(len(table)) for table in tables])
    table = pa.concat_tables(tables).combine_chunks()
    dropped: Counter[str] = Counter()
    ids = pc.dictionary_encode(table["id"].combine_chunks())
    first = np.unique(ids.indices.to_numpy(), return_index=True)[1]
    if duplicates := len(table) - len(first):
        dropped["duplicate id"] = duplicates
    keep = np.sort(first)
    if parameters.documents is not None and parameters.documents < len(keep):
        dropped["beyond --documents"] = len(keep) - parameters.documents
        sample = np.random.default_rng([parameters.seed, 0]).permutation(len(keep))[: parameters.documents]
        keep = np.sort(keep[sample])
    if not len(keep):
        raise InputError("the shards hold no document that can be used: see the drop reasons: " + str(dict(dropped)))
    return table.take(pa.array(keep)), (shard_of[keep], row_of[keep]), dropped


def _read_rows(file: Path, rows: np.ndarray, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches with the given rows (ascending) of an intermediate file."""
    with pa.memory_map(str(file)) as source:
        reader = pa.ipc.open_file(source)
        start = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if low < high:
                batch = batch.select(columns) if columns else batch
                yield batch.take(pa.array(rows[low:high] - start))
            start += reader.get_batch(number).num_rows


# Documents -> scores


def store_grams(file: Path, rows: np.ndarray, path: Path) -> np.ndarray:
    """Leaves the runs of the documents at `rows` of a file; returns each document's number of 7-grams, and the runs."""
    totals_file = path.with_suffix(".npy")
    if not totals_file.is_file():
        totals = []
        done = 0
        for number, batch in enumerate(_read_rows(file, rows, ["text"])):
            texts = batch["text"].to_pylist()
            grams, documents = originality.ngram_hashes(*originality.word_hashes(texts))
            originality.write_run(path.with_name(f"{path.name}-{number}"), grams, documents + np.uint32(done))
            totals.append(np.bincount(documents, minlength=len(texts)))
            done += len(texts)
        with written_aside(totals_file) as partial, open(partial, "wb") as out:
            np.save(out, np.concatenate(totals) if totals else np.empty(0, np.int64))
    return np.load(totals_file)


def _score(
    work: Path, totals: list[np.ndarray], bounds: np.ndarray, documents: int, memory: int, pool: Pool
) -> np.ndarray:
    """Originality of each document by its 7-grams: float64 of shape `(documents,)`, NaN where there is none."""
    runs = []
    for file in sorted((work / "grams").glob("*.hashes.npy")):
        path = file.with_name(file.name.removesuffix(".hashes.npy"))
        runs.append((path, int(bounds[int(path.name.split("-")[0])])))
    total = np.concatenate(totals)
    unique = np.zeros(documents, np.int64)
    tasks = [(runs, low, high, documents) for low, high in originality.ranges(int(total.sum()), memory, pool.workers)]
    for part in pool.map(originality.count_unique, tasks, "Scoring"):
        unique += part
    return originality.percentage(unique, total)


# Scores -> splits


def _choose(table, ngram, files, rows, bounds, parameters: Parameters, pool: Pool) -> splits.Splits:
    tokens = table["tokens"].to_numpy()
    score = table["originality"].to_numpy().astype(float) if parameters.measure == "header" else ngram
    typology = pc.dictionary_encode(table["typology"].combine_chunks()).indices.to_numpy()
    proposed = splits.propose(tokens, score, typology, parameters.seed)

    heldout = np.unique(np.concatenate(list(proposed.heldout.values())))
    # A document that shares half of its 13-grams shares more than half of its 7-grams: the others need no look.
    training = np.unique(np.concatenate(list(proposed.training.values())))
    suspects = training[ngram[training] <= 100 * contamination.LIMIT]

    def tasks(documents: np.ndarray, *more) -> list[tuple]:
        cuts = np.searchsorted(documents, bounds)
        parts = [documents[start:end] for start, end in pairwise(cuts)]
        return [
            (file, part[documents_ - bounds[i]], *more)
            for i, (file, part, documents_) in enumerate(zip(files, rows, parts, strict=True))
        ]

    known = np.unique(np.concatenate(pool.map(heldout_passages, tasks(heldout), "Held-out passages")))
    found = np.concatenate(pool.map(contaminated_rows, tasks(suspects, known), "Decontaminating"))
    contaminated = np.zeros(len(tokens), bool)
    contaminated[suspects[found]] = True
    return splits.decontaminate(proposed, contaminated, tokens, parameters.seed)


def heldout_passages(file: Path, rows: np.ndarray) -> np.ndarray:
    """13-gram hashes of some documents of an intermediate file."""
    parts = [contamination.passages(batch["text"].to_pylist()) for batch in _read_rows(file, rows, ["text"])]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def contaminated_rows(file: Path, rows: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    """Which of some documents of an intermediate file are contaminated (bool)."""
    parts = [
        contamination.contaminated(batch["text"].to_pylist(), heldout) for batch in _read_rows(file, rows, ["text"])
    ]
    return np.concatenate(parts) if parts else np.empty(0, bool)


# Splits -> files


def _write(folder: Path, table: pa.Table, ngram, chosen: splits.Splits, files, shard_of, row_of, pool: Pool) -> None:
    """Writes data/<config>/<split>-*.parquet."""
    tasks, costs = [], []
    parts = {("index", "train"): np.arange(len(table))}
    parts |= {(config, "train"): documents for config, documents in chosen.training.items()}
    parts |= {("heldout", split): documents for split, documents in chosen.heldout.items()}
    length = np.maximum(1, table["tokens"].to_numpy()) * 6  # bytes of a token, roughly
    for (config, split), documents in parts.items():
        path = folder / "data" / config
        path.mkdir(parents=True, exist_ok=True)
        if config == "index":
            pq.write_table(
                with_score(table, ngram),
                path / "train-00000-of-00001.parquet",
                compression="zstd",
                row_group_size=100_000,
            )
            continue
        pieces = max(1, round(int(length[documents].sum()) / _FILE_BYTES))
        for number, piece in enumerate(np.array_split(documents, pieces)):
            name = f"{split}-{number:05}-of-{pieces:05}.parquet"
            tasks.append((path / name, files, shard_of[piece], row_of[piece], ngram[piece]))
            costs.append(int(length[piece].sum()))
    pool.map(write_rows, tasks, "Writing", costs)


def with_score(table: pa.Table, ngram: np.ndarray) -> pa.Table:
    return table.append_column(SCHEMA.field("ngram_originality"), pa.array(ngram, from_pandas=True))


def write_rows(path: Path, files: list[Path], shards: np.ndarray, rows: np.ndarray, ngram: np.ndarray) -> None:
    """Writes one Parquet file with the documents at (shard, row), in that order."""
    order = np.lexsort((rows, shards))
    shards, rows = shards[order], rows[order]
    used = np.unique(shards)
    batches = [batch for shard in used for batch in _read_rows(files[shard], rows[shards == shard])]
    table = pa.Table.from_batches(batches, _STORED).combine_chunks().take(pa.array(np.argsort(order)))
    pq.write_table(with_score(table, ngram), path, compression="zstd", row_group_size=_ROW_GROUP)


# What is said of it


def describe(table: pa.Table, ngram: np.ndarray, chosen: splits.Splits) -> dict[str, dict[str, Any]]:
    """Documents, tokens and mean originality of each split, by `config/split`."""
    tokens, header = table["tokens"].to_numpy(), table["originality"].to_numpy().astype(float)
    parts = {f"{config}/train": part for config, part in chosen.training.items()}
    parts |= {f"heldout/{split}": part for split, part in chosen.heldout.items()}
    order = [f"{config}/train" for config in splits.TRAINING] + [name for name in parts if name.startswith("heldout")]
    found = {name: parts[name] for name in order} | {"index/train": np.arange(len(table))}
    return {
        name: {
            "documents": len(part),
            "tokens": int(tokens[part].sum()),
            "originality": _mean(header[part]),
            "ngram_originality": _mean(ngram[part]),
            "size": chosen.notes.get(name.removesuffix("/train").removeprefix("heldout/"), "all"),
        }
        for name, part in found.items()
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return round(float(values.mean()), 2) if len(values) else None


def check(table: pa.Table, ngram: np.ndarray, chosen: splits.Splits, parameters: Parameters) -> dict[str, Any]:
    score = table["originality"].to_numpy().astype(float) if parameters.measure == "header" else ngram
    typology = pc.dictionary_encode(table["typology"].combine_chunks()).indices.to_numpy()
    found = splits.check(chosen, table["tokens"].to_numpy(), score, typology)
    failed = [name for name, result in found.items() if not result["passed"]]
    if failed:
        raise InputError(f"the splits fail their own check ({', '.join(failed)}); give more shards or more --documents")
    return found


def summary(manifest: dict[str, Any]) -> str:
    """A short table of the splits."""
    lines = [f"{'split':30}{'documents':>12}{'tokens':>14}{'originality':>13}{'n-gram':>9}"]
    for name, row in manifest["splits"].items():
        means = [f"{row[key]:.1f}" if row[key] is not None else "–" for key in ("originality", "ngram_originality")]
        lines.append(f"{name:30}{row['documents']:>12,}{row['tokens']:>14,}{means[0]:>13}{means[1]:>9}")
    return "\n".join(lines)
