"""Any other collection of texts: files of Parquet, JSON lines or plain text, here or on the Hub -> documents.

A row of Parquet or a line of JSON is a document; so is a file of plain text. Files may be compressed (.gz, .zst).
"""

import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flexqwen.cli import InputError, suggest_path
from flexqwen.data.corpus import CHECKSUMS, COLUMNS, MAX_DOCUMENT_BYTES, Corpus, Shard, ShardError, open_corpus
from flexqwen.data.ngrams import count_words, cut_batches
from flexqwen.files import digest, file_digest
from flexqwen.remote import explain_failure, with_retries

FIELDS = ("text", "id", "typology", "language", "license", "source")  # of a document; all but the text may be absent
_KIND = re.compile(r"\.(parquet|jsonl|ndjson|txt)(\.gz|\.zst)?$")
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.%-]+))?(?:/([^/]+))?(?:/([^/]+))?/?")
_TEXT_BYTES = 16 << 20  # of files of plain text that are read as one shard
_BATCH_BYTES = 2 << 20  # of documents in a batch, about
_ROWS = 1024  # of Parquet that are read at a time, or fewer where they are long


@dataclass(frozen=True, slots=True)
class TextShard(Shard):
    """A file of documents, or several files of plain text."""

    files: tuple[tuple[str, Path], ...]  # names and paths
    columns: dict[str, str]  # {field: column} where it is not the column of that name, if there is one

    @property
    def identity(self) -> list:
        return [self.name, self.sha256, self.size, self.columns]

    def read_batches(self, dropped: Counter[str], need_originality: bool = False) -> Iterator[pa.RecordBatch]:
        """Its documents as batches of `COLUMNS`; counts those without a word in `dropped`."""
        for parts in cut_batches(self._read_parts(dropped), _BATCH_BYTES // 2, lambda part: part.nbytes):
            yield parts[0] if len(parts) == 1 else pa.concat_batches(parts)

    def _read_parts(self, dropped: Counter[str]) -> Iterator[pa.RecordBatch]:
        for name, path in self.files:
            kind = _KIND.search(name)[1]
            read = {"parquet": _read_parquet, "txt": _read_plain}.get(kind, _read_json)
            try:
                for columns in read(name, path, self.columns):
                    part = _make_batch(name, columns)
                    if empty := int(np.count_nonzero(part["tokens"].to_numpy() == 0)):
                        dropped["empty text"] += empty
                        part = part.filter(pc.greater(part["tokens"], 0))
                    if len(part):
                        yield part
            except (ShardError, OSError, ValueError, pa.ArrowException) as error:
                what = str(error) if isinstance(error, ShardError) else f"cannot be read ({error})"
                raise ShardError(f"{path}: {' '.join(what.split())[:300]}; mend it") from error


def _make_batch(name: str, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """Documents of a file from columns of text, of which `text` and `id` are there."""
    size = len(columns["text"])
    for row in np.flatnonzero(pc.greater(pc.binary_length(columns["text"]), MAX_DOCUMENT_BYTES)):
        raise ShardError(f"holds a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB, {columns['id'][row]}")
    tokens = pa.array(count_words(columns["text"]), pa.int32())
    known = columns | {"taxonomy": _repeat(name.split("/")[0] if "/" in name else "", size), "tokens": tokens}
    known["originality"] = pa.nulls(size, pa.int32())
    return pa.record_batch([known.get(field, _repeat("", size)) for field in COLUMNS.names], schema=COLUMNS)


def _repeat(text: str, size: int) -> pa.Array:
    return pa.repeat(pa.scalar(text), size)


def _choose_columns(names: Sequence[str], columns: dict[str, str], where: str = "") -> dict[str, str]:
    """{field: column} of the columns that are there; `ShardError` where one lacks that has to be."""
    for field in {"text": "text"} | columns:
        if columns.get(field, field) not in names:
            has = ", ".join(map(str, names)) or "none"
            what = f"{where}has no column {columns.get(field, field)!r} (it has: {has})"
            raise ShardError(f"{what}, give --{field}_column")
    return {field: column for field in FIELDS if (column := columns.get(field, field)) in names}


def _read_parquet(name: str, path: Path, columns: dict[str, str]) -> Iterator[dict[str, pa.Array]]:
    rows = 0
    # A little of a file at a time: else all of a row group is read at once, compressed, into memory.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        chosen = _choose_columns(file.schema_arrow.names, columns)
        sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
        rows_read = min(_ROWS, 1 + _BATCH_BYTES * file.metadata.num_rows // max(1, sum(sizes)))
        read = file.iter_batches(rows_read, use_threads=False, columns=sorted(set(chosen.values())))
        for batch in map(pa.concat_batches, cut_batches(read, _BATCH_BYTES, lambda batch: batch.nbytes)):
            found = {field: _read_column(field, batch[column], rows) for field, column in chosen.items()}
            if "id" not in found or found["id"].null_count:
                places = pa.array(np.arange(rows + 1, rows + len(batch) + 1)).cast(pa.string())
                own = pc.binary_join_element_wise(name, places, ":")
                found["id"] = pc.coalesce(found["id"], own) if "id" in found else own
            rows += len(batch)
            yield {field: pc.fill_null(column, "") for field, column in found.items()}


def _read_column(field: str, column: pa.Array, rows: int) -> pa.StringArray:
    """A column as text, of a batch behind so many rows; whole numbers may be ids."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or (field == "id" and pa.types.is_integer(kind)) or column.null_count == len(column)):
        raise ShardError(f"{rows + 1}: the {field} is of type {kind}, not text")
    column = column.cast(pa.string())
    column.validate(full=True)
    return column


def _read_json(name: str, path: Path, columns: dict[str, str]) -> Iterator[dict[str, pa.Array]]:
    for rows in cut_batches(_parse_lines(name, path, columns), _BATCH_BYTES, lambda row: sum(map(len, row.values()))):
        yield {field: pa.array([row.get(field, "") for row in rows], pa.string()) for field in FIELDS}


def _parse_lines(name: str, path: Path, columns: dict[str, str]) -> Iterator[dict[str, str]]:
    place, text = 0, {"text": columns.get("text", "text")}
    absent = set(columns.values()) - {text["text"]}  # a line may lack them, but not every line
    with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as file:
        while line := file.readline(MAX_DOCUMENT_BYTES + 1):
            place += 1
            if len(line) > MAX_DOCUMENT_BYTES:
                raise ShardError(f"{place}: is a line of more than {MAX_DOCUMENT_BYTES >> 20} MiB")
            if not line.isspace():
                try:
                    row = json.loads(line)
                    json.dumps(row, ensure_ascii=False).encode()  # which a lone surrogate cannot be
                except (ValueError, RecursionError) as error:
                    raise ShardError(f"{place}: is no JSON of UTF-8 text ({error})") from error
                if not isinstance(row, dict):
                    raise ShardError(f"{place}: is {type(row).__name__}, where an object with a text is wanted")
                absent -= row.keys()
                _choose_columns(list(row), text, f"{place}: ")
                values = {field: row[column] for field in FIELDS if (column := columns.get(field, field)) in row}
                for field, value in values.items():
                    if value is not None and not isinstance(value, (str, int) if field == "id" else str):
                        raise ShardError(f"{place}: the {field} is of type {type(value).__name__}, not text")
                known = {field: str(value) for field, value in values.items() if value is not None}
                yield {"text": "", "id": f"{name}:{place}"} | known
    if place and absent:
        raise ShardError(f"no line has {min(absent)!r}; give the right name to --…_column")


def _read_plain(name: str, path: Path, columns: dict[str, str]) -> Iterator[dict[str, pa.Array]]:
    with pa.input_stream(str(path), compression="detect") as file:
        text = file.read(MAX_DOCUMENT_BYTES + 1).decode("utf-8-sig")
    yield {"text": pa.array([text]), "id": pa.array([name])}


def open_collection(places: Sequence[str], columns: dict[str, str], verify: bool = True) -> Corpus:
    """What is to be read: Corpus Carolina's folder, or any files of texts, folders of them, and datasets of the Hub.

    `columns` is {field: column} where a field of `FIELDS` stands in a column of another name. Without `verify` files
    have no digests, for which one machine would have to read them all.
    """
    folder, sources = Path(places[0]), []
    found: dict[str, Path] = {}
    for place in map(str, places):
        if place.startswith("hf://"):
            files, source = _fetch(place)
            if len(places) > 1:  # datasets name their files alike
                files = {f"{_HUB.fullmatch(place)[1]}/{name}": path for name, path in files.items()}
        else:
            files, source = _list_files(Path(place)), Path(os.path.abspath(place)).name
        sources.append(source)
        if twice := sorted(name for name in found.keys() & files if _KIND.search(name)):
            raise InputError(f"{place}: {twice[0]} is the name of another file too; give the folder that holds both")
        found |= files
    texts = sorted(name for name in found if _KIND.search(name))
    of_carolina = any(name.endswith((".xml.gz", CHECKSUMS)) for name in found)
    if not texts or of_carolina:
        if columns or len(places) > 1 or not folder.exists():
            raise InputError(f"{places[0]}: is not files of Parquet, .jsonl or .txt, and only these have columns")
        if folder.is_dir() and not of_carolina:
            what = "no file of Parquet, .jsonl or .txt, and no shard of Corpus Carolina"
            raise InputError(f"{folder}: {what}; give the folder that holds the texts")
        return open_corpus(folder)
    with ThreadPoolExecutor() as threads:  # which hash in parallel
        hashed = threads.map(file_digest if verify else lambda _: "", map(found.get, texts))
        digests = dict(zip(texts, hashed, strict=True))
    sizes = {name: found[name].stat().st_size for name in texts}
    plain = [name for name in texts if _KIND.search(name)[1] == "txt"]
    groups = [[name] for name in texts if name not in set(plain)] + list(cut_batches(plain, _TEXT_BYTES, sizes.get))
    shards = []
    for names in groups:
        name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        sha256 = digests[name] if len(names) == 1 else digest({name: digests[name] for name in names})
        files = tuple((name, found[name]) for name in names)
        shards.append(TextShard(name, files[0][1], sha256, sum(map(sizes.get, names)), files, columns))
    named = sources[:1] + [source for source in sources[1:] if source.startswith("hf://")]
    named += [f"{len(sources) - len(named)} more"] if len(named) < len(sources) else []
    return Corpus(folder, shards, [], sorted(found.keys() - set(texts)), False, columns, " and ".join(named))


def _list_files(place: Path) -> dict[str, Path]:
    if not place.exists():
        remedy = suggest_path(place) or "; give Corpus Carolina's folder, or files of texts"
        raise InputError(f"{place}: no such folder or file{remedy}")
    if not place.is_dir():
        return {place.name: place}
    # A link to nothing is no file: its texts would be missing without a word, and reading it says what it is.
    files = (path for path in place.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))
    return {path.relative_to(place).as_posix(): path for path in files}


def _fetch(place: str) -> tuple[dict[str, Path], str]:
    """The files of a dataset of the Hub, fetched into the client's cache; and its address with the commit in it."""
    if not (match := _HUB.fullmatch(place)):
        raise InputError(f"{place}: is not hf://datasets/<org>/<name>[@<revision>][/<config>[/<split>]]")
    name, revision, config, split = match.groups()
    with explain_failure(f"{place}: cannot be fetched", "check the name, and that the Hub can be reached"):
        from datasets import load_dataset_builder
        from huggingface_hub import HfApi

        api = HfApi()
        commit = api.dataset_info(name, revision=unquote(revision) if revision else None).sha
        splits = load_dataset_builder(name, config, revision=commit).config.data_files
        if split and split not in splits:
            raise InputError(f"{place}: has no split {split!r}; it has: {', '.join(map(str, splits))}")
        urls = [url for part in ([split] if split else splits) for url in splits[part]]
        files = sorted({url.split(f"@{commit}/", 1)[1] for url in urls})
        which = {"repo_type": "dataset", "revision": commit, "allow_patterns": list(map(glob.escape, files))}
        folder = Path(with_retries(lambda: api.snapshot_download(name, **which)))
    fetched = "/".join(filter(None, (f"hf://datasets/{name}@{commit}", config, split)))
    return {file: folder / file for file in files}, fetched
