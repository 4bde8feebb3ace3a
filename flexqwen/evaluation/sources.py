"""Evaluation data from their public homes: downloaded once, verified, cached; or from a local folder.

Each file has a name in one layout (`wsc_pt/portuguese_wsc.json`). `sources.yaml` lists the addresses that it is made
from, pinned to a commit, and the SHA-256 of its content. With `FLEXQWEN_EVAL_DATA` set, files are read from that
folder, in the same layout; otherwise from the cache (`FLEXQWEN_CACHE`, by default `~/.cache/flexqwen`), and downloaded
if they are not there. Either way what is read has the right digest.
"""

import gzip
import hashlib
import io
import json
import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
import yaml
from tqdm import tqdm

from flexqwen.cli import InputError
from flexqwen.files import atomic_write
from flexqwen.remote import explain_failure

RETRIES = 2
TIMEOUT = 60  # seconds without any answer
GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """Where a file comes from."""

    urls: tuple[str, ...]
    sha256: str  # of the content, after decompression of a `.gz` name
    # The content, from the file's name, the addresses and what they hold; and the part of it that `sha256` speaks of.
    make: Callable[[str, tuple[str, ...], list[bytes]], bytes] = lambda name, urls, parts: b"".join(parts)
    digest: Callable[[bytes], bytes] = lambda content: content


def unzip(name: str, urls: tuple[str, ...], parts: list[bytes]) -> bytes:
    """The file of that name in a zip archive."""
    return zipfile.ZipFile(io.BytesIO(parts[0])).read(name.rsplit("/", 1)[1])


def add_relation(name: str, urls: tuple[str, ...], parts: list[bytes]) -> bytes:
    """JSON lines of one file a relation, each line told the relation that its file is named after."""
    lines = []
    for url, part in zip(urls, parts, strict=True):
        relation = {"relation": url.rsplit("/", 1)[1].removesuffix(".jsonl")}
        rows = part.decode().split("\n")
        lines += [json.dumps({**relation, **json.loads(row)}, ensure_ascii=False) + "\n" for row in rows if row]
    return "".join(lines).encode()


def select_columns(content: bytes) -> bytes:
    """The columns of a CoNLL-U file, without XPOS and comments."""
    rows = (line.split("\t") for line in content.decode().splitlines() if line and not line.startswith("#"))
    return "\n".join("\t".join(row[:4] + row[5:]) for row in rows).encode()


def read_sources(path: Path) -> dict[str, Source]:
    """The sources that a file such as `sources.yaml` lists, by the names of the layout."""
    found = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        functions = {key: globals()[entry[key]] for key in ("make", "digest") if key in entry}
        for file, sha256 in entry["files"].items():
            names = {"file": file, "kind": re.match("[a-z]*", file).group()}
            urls = [f"{GITHUB}/{entry['url']}".format(**names, part=part) for part in entry.get("parts", [""])]
            found[f"{entry['folder']}/{file}"] = Source(tuple(urls), sha256, **functions)
    return found


SOURCES = read_sources(Path(__file__).with_name("sources.yaml"))


def cache_folder() -> Path:
    """Where downloads and what is generated from them are kept."""
    return Path(os.environ.get("FLEXQWEN_CACHE") or Path.home() / ".cache" / "flexqwen")


def fetch(folder: str) -> None:
    """Has all files of a folder of the layout at hand, verified."""
    for name in SOURCES:
        if name.startswith(f"{folder}/"):
            read(name)


def read(name: str) -> bytes:
    """The content of a file of the layout, uncompressed and verified."""
    source, given = SOURCES[name], os.environ.get("FLEXQWEN_EVAL_DATA")
    path = Path(given or cache_folder() / "data") / name
    uncompress = gzip.decompress if path.suffix == ".gz" else bytes
    if path.is_file() and (content := _verify(source, lambda: uncompress(path.read_bytes()))) is not None:
        return content
    if given:
        made = f"it is made from {source.urls[0]}{' and others' if len(source.urls) > 1 else ''}"
        remedy = f"put the published file there ({made}), or unset FLEXQWEN_EVAL_DATA to download it"
        raise InputError(f"{path} {'has the wrong SHA-256' if path.is_file() else 'is missing'}; {remedy}")
    parts = _download(name, source.urls)
    content = _verify(source, lambda: source.make(name, source.urls, parts))
    if content is None:
        remedy = "try again later, or set FLEXQWEN_EVAL_DATA to a folder that holds the right file"
        raise InputError(f"{name}: what {source.urls[0]} gave has the wrong SHA-256; {remedy}")
    with atomic_write(path) as aside:
        aside.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return content


def _verify(source: Source, make: Callable[[], bytes]) -> bytes | None:
    """The content; None if it is broken, or not what the digest is of."""
    try:
        content = make()
        return content if hashlib.sha256(source.digest(content)).hexdigest() == source.sha256 else None
    except PermissionError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}; change its permissions") from None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):  # no archive, JSON, text, ...
        return None


def _download(name: str, urls: tuple[str, ...]) -> list[bytes]:
    """What the addresses hold, asked for again unless the server refuses (4xx). Nothing of an interrupted download is
    kept: the files are small.
    """
    contents = []
    for url in tqdm(urls, desc=name, unit="file", leave=False):
        for tried in range(RETRIES + 1):
            try:
                answer = requests.get(url, timeout=TIMEOUT)
                answer.raise_for_status()
                contents.append(answer.content)
                break
            except OSError as error:  # without a response where the connection failed
                status = getattr(getattr(error, "response", None), "status_code", 500)
                if tried == RETRIES or status < 500:
                    what = f"cannot download {url}: {str(error).splitlines()[0]}; run again with a network, or set "
                    raise InputError(f"{what}FLEXQWEN_EVAL_DATA to a folder that holds the data") from None
            time.sleep(tried + 1)
    return contents


def read_hub_rows(repository: str, config: str, split: str, columns: tuple[str, ...]) -> tuple[list[dict], str]:
    """The rows of a data set that lives on the Hub only, and their commit: the newest, or that in the local cache."""
    from datasets import load_dataset_builder  # slow to import, and needed by few tasks

    remedy = "try again with a network, or leave its task out"
    with explain_failure(f"{repository} cannot be loaded from the Hub", remedy):
        builder = load_dataset_builder(repository, config)
        builder.download_and_prepare()
        found = builder.as_dataset(split=split).to_list()
    if missing := [column for column in columns if not found or column not in found[0]]:
        raise InputError(f"{repository} has no column {missing[0]!r} any more; leave its task out")
    return found, builder.hash
