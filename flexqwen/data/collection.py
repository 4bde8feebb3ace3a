"""Any other collection of texts: files of Parquet, JSON lines or plain text, here or on the Hub -> documents.

A row of Parquet or a line of JSON is a document; so is a file of plain text. Files may be compressed (.gz, .zst).
"""

import glob
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from flexqwen.cli import InputError, suggest_path
from flexqwen.data.corpus import CHECKSUMS, MAX_DOCUMENT_BYTES, Corpus, Document, Shard, ShardError, open_corpus
from flexqwen.data.ngrams import cut_batches
from flexqwen.files import digest, file_digest
from flexqwen.remote import explain_failure, with_retries

FIELDS = ("text", "id", "typology", "language", "license", "source")  # of a document; all but the text may be absent
_KIND = re.compile(r"\.(parquet|jsonl|ndjson|txt)(\.gz|\.zst)?$")
_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.%-]+))?(?:/([^/]+))?(?:/([^/]+))?/?")
_TEXT_BYTES = 16 << 20  # of files of plain text that are read as one shard
_ROWS = 256  # of Parquet in memory at a time


@dataclass(frozen=True, slots=True)
class TextShard(Shard):
    """A file of documents, or several files of plain text."""

    files: tuple[tuple[str, Path], ...]  # names and paths
    columns: dict[str, str]  # {field: column} where it is not the column of that name, if there is one

    @property
    def identity(self) -> list:
        return [self.name, self.sha256, self.size, self.columns]

    def read(self, dropped: Counter[str], need_originality: bool = False) -> Iterator[Document]:
        seen = set()
        for name, path in self.files:
            kind = _KIND.search(name)[1]
            read = {"parquet": _read_parquet, "txt": _read_plain}.get(kind, _read_json)
            try:
                for place, row in read(path, self.columns):
                    document = _make_document(name, place, row)
                    if not document.tokens:
                        dropped["empty text"] += 1
                    elif document.id in seen:
                        dropped["duplicate id"] += 1
                    else:
                        seen.add(document.id)
                        yield document
            except (ShardError, OSError, ValueError, pa.ArrowException) as error:
                what = str(error) if isinstance(error, ShardError) else f"cannot be read ({error})"
                remedy = "mend it, or leave it out with --skip_bad_shards"
                raise ShardError(f"{path}: {' '.join(what.split())[:300]}; {remedy}") from error


def _make_document(name: str, place: int | None, row: dict[str, Any]) -> Document:
    """A document from what is known of it, at a place (from 1 on) of a file."""
    where = "" if place is None else f"{place}: "
    for field, value in row.items():
        if value is not None and not isinstance(value, (str, int) if field == "id" else str):
            raise ShardError(f"{where}the {field} is of type {type(value).__name__}, not text")
    text, identifier = row["text"] or "", row.get("id")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ShardError(f"{where}holds a document of more than {MAX_DOCUMENT_BYTES >> 20} MiB")
    if identifier is None:
        identifier = name if place is None else f"{name}:{place}"
    taxonomy = name.split("/")[0] if "/" in name else ""
    named = [row.get(field) or "" for field in FIELDS[2:]]
    return Document(str(identifier), text, taxonomy, *named, len(text.split()), None)


def _choose_columns(names: Sequence[str], columns: dict[str, str], where: str = "") -> dict[str, str]:
    """{field: column} of the columns that are there; `ShardError` where one lacks that has to be."""
    for field in {"text": "text"} | columns:
        if columns.get(field, field) not in names:
            has = ", ".join(map(str, names)) or "none"
            what = f"{where}has no column {columns.get(field, field)!r} (it has: {has})"
            raise ShardError(f"{what}, give --{field}_column")
    return {field: column for field in FIELDS if (column := columns.get(field, field)) in names}


def _read_parquet(path: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    place = 0
    with pq.ParquetFile(path) as file:
        chosen = _choose_columns(file.schema_arrow.names, columns)
        for batch in file.iter_batches(_ROWS, columns=sorted(set(chosen.values()))):
            values = [batch[column].to_pylist() for column in chosen.values()]
            for row in zip(*values, strict=True):
                place += 1
                yield place, dict(zip(chosen, row, strict=True))


def _read_json(path: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    place = 0
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
                chosen = _choose_columns(list(row), columns, f"{place}: ")
                yield place, {field: row[column] for field, column in chosen.items()}


def _read_plain(path: Path, columns: dict[str, str]) -> Iterator[tuple[None, dict[str, Any]]]:
    with pa.input_stream(str(path), compression="detect") as file:
        yield None, {"text": file.read(MAX_DOCUMENT_BYTES + 1).decode("utf-8-sig")}


def open_collection(places: Sequence[str], columns: dict[str, str], verify: bool = True) -> Corpus:
    """What is to be read: Corpus Carolina's folder, or any files of texts, folders of them, and datasets of the Hub.

    `columns` is {field: column} where a field of `FIELDS` stands in a column of another name. Without `verify` files
    have no digests, for which one machine would have to read them all.
    """
    folder, source = Path(places[0]), Path(places[0]).name
    found: dict[str, Path] = {}
    for number, place in enumerate(map(str, places)):
        if place.startswith("hf://"):
            files, fetched = _fetch(place)
            source = source if number else fetched
        else:
            files = _list_files(Path(place))
        if twice := sorted(found.keys() & files):
            raise InputError(f"{place}: {twice[0]} is the name of another file too; give the folder that holds both")
        found |= files
    texts = sorted(name for name in found if _KIND.search(name))
    if not texts or any(name.endswith((".xml.gz", CHECKSUMS)) for name in found):
        if columns or len(places) > 1 or not folder.exists():
            raise InputError(f"{places[0]}: is not files of Parquet, .jsonl or .txt, and only these have columns")
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
    source += f" and {len(places) - 1} more" if len(places) > 1 else ""
    return Corpus(folder, shards, [], sorted(found.keys() - set(texts)), False, columns, source)


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
