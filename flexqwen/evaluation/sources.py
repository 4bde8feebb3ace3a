"""Evaluation data from their public homes: downloaded once, verified, cached; or from a local folder.

Each file has a name in one layout (`wsc_pt/portuguese_wsc.json`), the addresses it is made from, pinned to a commit,
and the SHA-256 of its content, uncompressed. With `FLEXQWEN_EVAL_DATA` set, files are read from that folder, in the
same layout; otherwise from the cache (`FLEXQWEN_CACHE`, by default `~/.cache/flexqwen`), and downloaded if they are not
there. Either way what is read has the right digest.
"""

import gzip
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pooch
from tqdm import tqdm

from flexqwen.cli import InputError
from flexqwen.files import atomic_write

RETRIES = 2
TIMEOUT = 60  # seconds without any answer
GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """Where a file comes from.

    Attributes:
        urls: what is downloaded.
        sha256: of the content, after decompression of a `.gz` name.
        make: the content, from the downloaded bytes; by default they are joined.
        digested: the part of the content that `sha256` speaks of; by default all of it.
    """

    urls: tuple[str, ...]
    sha256: str
    make: Callable[["Source", list[bytes]], bytes] = lambda source, parts: b"".join(parts)
    digested: Callable[[bytes], bytes] = lambda content: content


def _unzip(member: str) -> Callable[[Source, list[bytes]], bytes]:
    return lambda source, parts: zipfile.ZipFile(io.BytesIO(parts[0])).read(member)


def _add_relation(source: Source, parts: list[bytes]) -> bytes:
    """JSON lines of one file a relation, each line told the relation that its file is named after."""
    lines = []
    for url, part in zip(source.urls, parts, strict=True):
        relation = {"relation": url.rsplit("/", 1)[1].removesuffix(".jsonl")}
        rows = part.decode().split("\n")
        lines += [json.dumps({**relation, **json.loads(row)}, ensure_ascii=False) + "\n" for row in rows if row]
    return "".join(lines).encode()


def _select_columns(content: bytes) -> bytes:
    """The columns of a CoNLL-U file, without XPOS and comments."""
    rows = (line.split("\t") for line in content.decode().splitlines() if line and not line.startswith("#"))
    return "\n".join("\t".join(row[:4] + row[5:]) for row in rows).encode()


# Where the files of a folder are published one by one, under their own names: owner, repository, commit, folder.
_HOMES = {
    "assin2": "unicamp-dl/PTT5/cee2d996ba7eac80d7764072eef01a7f9c38836c/assin/assin_data",
    "faquad": "liafacom/faquad/6ad978f20672bb41625b3b71fbe4a88b893d0a86/data",
    "harem": "neuralmind-ai/portuguese-bert/f04abcd7608445002f8c96100b85e8000c4127ac/ner_evaluation/data",
    "hatebr": "franciellevargas/HateBR/a1301437a7b21620fbf0110a300c4c927a247daf/dataset",
    "wsc_pt": "gabimelo/portuguese_wsc/b07308712e0e9b63fbb10b5b8a8a4be95fc1ed1c/data/processed",
    "okapi_pt/m_arc": "laiviet/lm-evaluation-harness/10cb5292748e882c22db7eed49a380089645c4c2/datasets/m_arc",
    "ud_bosque": "UniversalDependencies/UD_Portuguese-Bosque/5de7ac34028ff6d1718031a4b0ae895717ed8dbe",
    "ud_porttinari": "UniversalDependencies/UD_Portuguese-Porttinari/87a07e1fb761d6d0a6e2a4d82b11b308344dabb9",
    "ud_pud": "UniversalDependencies/UD_Portuguese-PUD/be08a756d76bd79bf5d4a492dfdc28b46b33e76e",
}
_DIGESTS = {
    "assin2/assin2-dev.xml": "b6639e7fb562325fe847b249d96f14d7d4fab0d5fe5aa542c19089d0d0c9081c",
    "assin2/assin2-test.xml": "246fbaa0a5f8120b00baee4c9d64bf6f0c6669fbdbcb9fab5563114699f3890c",
    "assin2/assin2-train-only.xml": "0909e113e30f53a64ee7ef28b3287e78790ca06e45011caf07d38777877e367f",
    "faquad/dev.json": "151a53fe71720a7d26024ea577f9edfd2b89d67bb7c05afbc843942cf3e7731e",
    "faquad/train.json": "33d32022638a4ad252420d44544585279903a83637a974c6fe6c2e53f1c7b294",
    "harem/FirstHAREM-selective-dev.json": "2ea2d350c587d35b08a86d067f6de27df6e3587339e80d10df787c7443fca7f3",
    "harem/FirstHAREM-selective-train.json": "afb49c5d11116ff297d7abb7657f524917cb5704b221d5e3fb687e064a71e494",
    "harem/FirstHAREM-total-dev.json": "a08705c45caef5bdb82b7fe394491de114edb24d14e007a9f3978be030219537",
    "harem/FirstHAREM-total-train.json": "3542944e1e56145c5d1f4df1750df8ec81d0f9e0a7cc0c3e74b0b26df5869763",
    "harem/MiniHAREM-selective.json": "7a5d88cf1319ddae1940a02d3fde7dd5841863e05e616cfb2b574613407b7f37",
    "harem/MiniHAREM-total.json": "9a31f28df9664d7de4ceab6f2ec427ad1761463348083d35c7fa97cae87505db",
    "harem/classes-selective.txt": "7e6cf594d1408e11772b76f4a1a7ee618d186202e73abe99498f842150bed386",
    "harem/classes-total.txt": "1fda098d112b40a06ae55dc9c377fd334c3316578fc5db5f2e928b7264704450",
    "hatebr/HateBR.csv": "0586a15eea2d9e7743b19ccd5385eedf4074ccf4cfc530cc161bbd3fe5b1ec15",
    "wsc_pt/portuguese_wsc.json": "df851c8095c2efd63e99f6c3f567e095b962a62e849a88ca4e5aa0a6e96619f8",
    "okapi_pt/m_arc/pt_test.json": "2522ab016ea5755cce584ff069163df94b669aaa022a1a02de673b41b4a22ebe",
    "okapi_pt/m_arc/pt_validation.json": "5bf4d3c1d71d515d4cd20ea8534b477e47b4377d888b391ccd8761ce9ba64af5",
    "ud_bosque/pt_bosque-ud-dev.conllu": "f8a67abae12fbab85a3995204a6459d1958c11065062d4ea5349d6b914e78f81",
    "ud_bosque/pt_bosque-ud-test.conllu": "9a824650b7a02cf411f6e09b39e8fb423c85e1a5fb3a55b87e7f4c0c2ea5b3bb",
    "ud_porttinari/pt_porttinari-ud-dev.conllu": "208483e5f5a29a0f6b6e0fc1f6e6499a10a5f5cbde53fdad20b30bf146a9e316",
    "ud_porttinari/pt_porttinari-ud-test.conllu": "6c8b36352bbee481448d5d354b38de1f80ddcde2ce2ffe9d1f0064c136d3d07d",
    "ud_pud/pt_pud-ud-test.conllu": "6fb673563b068c0693144aba16c9406f8672ef9d6a7703d8ccf71a44a07df937",
}
_TOLDBR = f"{GITHUB}/JAugusto97/ToLD-Br/7804082d06a42b791c456b37a8a80ed9b731198c/experiments/data/1annotator.zip"
_MPARAREL = f"{GITHUB}/coastalcph/mpararel/7153b7bdc86901fbe23d0c2909a4f2d4609b09d9/data/mpararel_reviewed"
_MORPHOBR = f"{GITHUB}/LR-POR/MorphoBr/793ac7262928eb9b9dddf117059fbfa8e9010034"
_RELATIONS = """101 103 106 108 127 1303 131 136 1376 138 140 1412 159 17 176 178 19 190 20 264 27 279 30 36 364 37 39
407 413 449 463 47 495 530 740 937"""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _make_sources() -> dict[str, Source]:
    found = {}
    for name, sha256 in _DIGESTS.items():
        folder, file = name.rsplit("/", 1)
        found[name] = Source((f"{GITHUB}/{_HOMES[folder]}/{file}",), sha256)
    for split, sha256 in (
        ("test", "47b18a158aaf4302f2164eda46a8e1a3ab493596aa5bf40aeda1cb7800a6697b"),
        ("train", "e8c82d4640a58cc880c5396775704dc3eca023860c531c05fa5a3ef7609eb110"),
        ("validation", "ff9f662adbda1a5e80a9412e53b46cdaf4d2d2a6285829dec23b5a6d8b999064"),
    ):
        member = f"ptbr_{split}_1annotator.csv"
        found[f"toldbr/{member}"] = Source((_TOLDBR,), sha256, _unzip(member))
    for name, sha256 in (
        ("patterns_pt.jsonl", "d4bb38e5ddd21b6559c516458b5a019ff03bf4befe2cb92552e2ba04bbbe6c67"),
        ("tuples_pt.jsonl.gz", "63de6ae8905cf77e068ab8dae0a3ab46cb78afcffa3ad895f048154ab895cc6e"),
    ):
        kind = name.split("_")[0]
        urls = tuple(f"{_MPARAREL}/{kind}/pt/P{relation}.jsonl" for relation in _RELATIONS.split())
        found[f"mpararel_pt/{name}"] = Source(urls, sha256, _add_relation)
    for part, letters, sha256 in (
        ("nouns", _LETTERS, "26829028b6e153d98767a95b79934ab1a01b597c2c06702826349ba0e2082c5f"),
        ("adjectives", _LETTERS, "90786341156ba390cd64362097435bd6c90919993b448fe046cac861f4617f7c"),
        ("verbs", "bfghjklnoquvwxyz", "1a27ec7dd5625d852c70c6fc1d88f04ba3ca46788ba04d2b3be32a1b559dfa1a"),
    ):
        urls = tuple(f"{_MORPHOBR}/{part}/{part}-{letter}.dict" for letter in letters)
        found[f"morphobr/{part}.dict.gz"] = Source(urls, sha256)
    # A local copy may be the train file as rebuilt from the treebank's documents, which differs in XPOS alone.
    found["ud_bosque/pt_bosque-ud-train.from-documents.conllu.gz"] = Source(
        (f"{GITHUB}/{_HOMES['ud_bosque']}/pt_bosque-ud-train.conllu",),
        "d8e462d0a81caf5ebdd402e1fab20a3f38c8df6cbc2b5518ac9dd97a700ef609",
        digested=_select_columns,
    )
    return found


SOURCES = _make_sources()


def cache_folder() -> Path:
    """Where downloads and what is generated from them are kept."""
    return Path(os.environ.get("FLEXQWEN_CACHE") or Path.home() / ".cache" / "flexqwen")


def data_folder() -> Path:
    """The root of the layout."""
    return Path(os.environ.get("FLEXQWEN_EVAL_DATA") or cache_folder() / "data")


def folder(task: str) -> Path:
    """The folder that holds a task's files, all of them verified and, where they were missing, downloaded.

    Raises:
        InputError: as `read`.
    """
    for name in SOURCES:
        if name.startswith(f"{task}/"):
            read(name)
    return data_folder() / task


def read(name: str) -> bytes:
    """The content of a file of the layout, uncompressed and verified.

    Raises:
        InputError: the file is not in the local folder, cannot be downloaded, or has the wrong digest.
    """
    source, path, is_local = SOURCES[name], data_folder() / name, bool(os.environ.get("FLEXQWEN_EVAL_DATA"))
    if is_local and not path.is_file():
        raise InputError(
            f"{path} is missing from the folder that FLEXQWEN_EVAL_DATA names; put it there (it is made from "
            f"{source.urls[0]}{' and others' if len(source.urls) > 1 else ''}), or unset the variable to download"
        )
    if path.is_file() and _is_right(source, content := _uncompress(path)):
        return content
    if is_local:
        raise InputError(
            f"{path} has the wrong SHA-256; put the published file there again, or unset FLEXQWEN_EVAL_DATA to "
            f"download it from {source.urls[0]}"
        )
    try:
        content = source.make(source, _download(name, source.urls))
    except (zipfile.BadZipFile, ValueError):  # no archive, no JSON
        content = None
    if not _is_right(source, content):
        raise InputError(
            f"{name}: what {source.urls[0]} gave has the wrong SHA-256; try again later, or set FLEXQWEN_EVAL_DATA to "
            "a folder that holds the right file"
        )
    with atomic_write(path) as aside:
        aside.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return content


def _uncompress(path: Path) -> bytes | None:
    """A file's content; None if it is broken."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; change its permissions") from None
    except (OSError, EOFError, ValueError):
        return None


def _is_right(source: Source, content: bytes | None) -> bool:
    try:
        return content is not None and hashlib.sha256(source.digested(content)).hexdigest() == source.sha256
    except ValueError:  # not text, where columns were to be cut
        return False


def _download(name: str, urls: tuple[str, ...]) -> list[bytes]:
    """What the addresses hold. Nothing of an interrupted download is kept: the files are small."""
    pooch.get_logger().setLevel("WARNING")
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        files = {str(number): url for number, url in enumerate(urls)}
        parts = pooch.create(folder, "", registry=dict.fromkeys(files), urls=files, retry_if_failed=RETRIES)
        for file, url in tqdm(files.items(), desc=name, unit="file", leave=False):
            try:
                contents.append(Path(parts.fetch(file, downloader=pooch.HTTPDownloader(timeout=TIMEOUT))).read_bytes())
            except OSError as error:
                raise InputError(
                    f"cannot download {url}: {str(error).splitlines()[0]}; run again with a network, or set "
                    "FLEXQWEN_EVAL_DATA to a folder that holds the data"
                ) from None
    return contents
