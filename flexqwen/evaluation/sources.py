"""Evaluation data from their public homes: downloaded once, verified, cached; or from a local folder.

Each file has a name in one layout (`wsc_pt/portuguese_wsc.json`), the addresses it is made from, pinned to a commit,
and the SHA-256 of its content, uncompressed. With `FLEXQWEN_EVAL_DATA` set, files are read from that folder, in the
same layout; otherwise from the cache (`FLEXQWEN_CACHE`, by default `~/.cache/flexqwen`), and downloaded if they are not
there. Either way what is read has the right digest.

An interrupted download goes on where it stopped, which neither pooch (1.9) nor, for files under 10 MB, huggingface_hub
(2.4) does.
"""

import gzip
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from tqdm import tqdm

from flexqwen.cli import InputError
from flexqwen.files import atomic_write, replace_path

ATTEMPTS = 5
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


def _with_relation(source: Source, parts: list[bytes]) -> bytes:
    """JSON lines of one file a relation, each line told the relation that its file is named after."""
    lines = []
    for url, part in zip(source.urls, parts, strict=True):
        relation = {"relation": url.rsplit("/", 1)[1].removesuffix(".jsonl")}
        rows = part.decode().split("\n")
        lines += [json.dumps({**relation, **json.loads(row)}, ensure_ascii=False) + "\n" for row in rows if row]
    return "".join(lines).encode()


def _columns(content: bytes) -> bytes:
    """The columns of a CoNLL-U file, without XPOS and comments."""
    rows = (line.split("\t") for line in content.decode().splitlines() if line and not line.startswith("#"))
    return "\n".join("\t".join(row[:4] + row[5:]) for row in rows).encode()


def _files(folder: str, home: str, digests: dict[str, str]) -> dict[str, Source]:
    """Files that are published one by one, under their own names, at `home`."""
    return {f"{folder}/{name}": Source((f"{GITHUB}/{home}/{name}",), sha256) for name, sha256 in digests.items()}


_UD = "UniversalDependencies/UD_Portuguese"
_MORPHOBR = f"{GITHUB}/LR-POR/MorphoBr/793ac7262928eb9b9dddf117059fbfa8e9010034"
_TOLDBR = f"{GITHUB}/JAugusto97/ToLD-Br/7804082d06a42b791c456b37a8a80ed9b731198c/experiments/data/1annotator.zip"
_MPARAREL = f"{GITHUB}/coastalcph/mpararel/7153b7bdc86901fbe23d0c2909a4f2d4609b09d9/data/mpararel_reviewed"
# fmt: off
_RELATIONS = (
    101, 103, 106, 108, 127, 1303, 131, 136, 1376, 138, 140, 1412, 159, 17, 176, 178, 19, 190, 20, 264, 27, 279,
    30, 36, 364, 37, 39, 407, 413, 449, 463, 47, 495, 530, 740, 937,
)
# fmt: on
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

SOURCES: dict[str, Source] = {
    **_files(
        "assin2",
        "unicamp-dl/PTT5/cee2d996ba7eac80d7764072eef01a7f9c38836c/assin/assin_data",
        {
            "assin2-dev.xml": "b6639e7fb562325fe847b249d96f14d7d4fab0d5fe5aa542c19089d0d0c9081c",
            "assin2-test.xml": "246fbaa0a5f8120b00baee4c9d64bf6f0c6669fbdbcb9fab5563114699f3890c",
            "assin2-train-only.xml": "0909e113e30f53a64ee7ef28b3287e78790ca06e45011caf07d38777877e367f",
        },
    ),
    **_files(
        "faquad",
        "liafacom/faquad/6ad978f20672bb41625b3b71fbe4a88b893d0a86/data",
        {
            "dev.json": "151a53fe71720a7d26024ea577f9edfd2b89d67bb7c05afbc843942cf3e7731e",
            "train.json": "33d32022638a4ad252420d44544585279903a83637a974c6fe6c2e53f1c7b294",
        },
    ),
    **_files(
        "harem",
        "neuralmind-ai/portuguese-bert/f04abcd7608445002f8c96100b85e8000c4127ac/ner_evaluation/data",
        {
            "FirstHAREM-selective-dev.json": "2ea2d350c587d35b08a86d067f6de27df6e3587339e80d10df787c7443fca7f3",
            "FirstHAREM-selective-train.json": "afb49c5d11116ff297d7abb7657f524917cb5704b221d5e3fb687e064a71e494",
            "FirstHAREM-total-dev.json": "a08705c45caef5bdb82b7fe394491de114edb24d14e007a9f3978be030219537",
            "FirstHAREM-total-train.json": "3542944e1e56145c5d1f4df1750df8ec81d0f9e0a7cc0c3e74b0b26df5869763",
            "MiniHAREM-selective.json": "7a5d88cf1319ddae1940a02d3fde7dd5841863e05e616cfb2b574613407b7f37",
            "MiniHAREM-total.json": "9a31f28df9664d7de4ceab6f2ec427ad1761463348083d35c7fa97cae87505db",
            "classes-selective.txt": "7e6cf594d1408e11772b76f4a1a7ee618d186202e73abe99498f842150bed386",
            "classes-total.txt": "1fda098d112b40a06ae55dc9c377fd334c3316578fc5db5f2e928b7264704450",
        },
    ),
    **_files(
        "hatebr",
        "franciellevargas/HateBR/a1301437a7b21620fbf0110a300c4c927a247daf/dataset",
        {"HateBR.csv": "0586a15eea2d9e7743b19ccd5385eedf4074ccf4cfc530cc161bbd3fe5b1ec15"},
    ),
    **{
        f"toldbr/{name}": Source((_TOLDBR,), sha256, _unzip(name))
        for name, sha256 in {
            "ptbr_test_1annotator.csv": "47b18a158aaf4302f2164eda46a8e1a3ab493596aa5bf40aeda1cb7800a6697b",
            "ptbr_train_1annotator.csv": "e8c82d4640a58cc880c5396775704dc3eca023860c531c05fa5a3ef7609eb110",
            "ptbr_validation_1annotator.csv": "ff9f662adbda1a5e80a9412e53b46cdaf4d2d2a6285829dec23b5a6d8b999064",
        }.items()
    },
    **_files(
        "wsc_pt",
        "gabimelo/portuguese_wsc/b07308712e0e9b63fbb10b5b8a8a4be95fc1ed1c/data/processed",
        {"portuguese_wsc.json": "df851c8095c2efd63e99f6c3f567e095b962a62e849a88ca4e5aa0a6e96619f8"},
    ),
    "mpararel_pt/patterns_pt.jsonl": Source(
        tuple(f"{_MPARAREL}/patterns/pt/P{relation}.jsonl" for relation in _RELATIONS),
        "d4bb38e5ddd21b6559c516458b5a019ff03bf4befe2cb92552e2ba04bbbe6c67",
        _with_relation,
    ),
    "mpararel_pt/tuples_pt.jsonl.gz": Source(
        tuple(f"{_MPARAREL}/tuples/pt/P{relation}.jsonl" for relation in _RELATIONS),
        "63de6ae8905cf77e068ab8dae0a3ab46cb78afcffa3ad895f048154ab895cc6e",
        _with_relation,
    ),
    **{
        f"okapi_pt/m_arc/pt_{split}.json": Source(
            (
                f"{GITHUB}/laiviet/lm-evaluation-harness/10cb5292748e882c22db7eed49a380089645c4c2/datasets/m_arc/"
                f"pt_{split}.json",
            ),
            sha256,
        )
        for split, sha256 in {
            "test": "2522ab016ea5755cce584ff069163df94b669aaa022a1a02de673b41b4a22ebe",
            "validation": "5bf4d3c1d71d515d4cd20ea8534b477e47b4377d888b391ccd8761ce9ba64af5",
        }.items()
    },
    **_files(
        "ud_bosque",
        f"{_UD}-Bosque/5de7ac34028ff6d1718031a4b0ae895717ed8dbe",
        {
            "pt_bosque-ud-dev.conllu": "f8a67abae12fbab85a3995204a6459d1958c11065062d4ea5349d6b914e78f81",
            "pt_bosque-ud-test.conllu": "9a824650b7a02cf411f6e09b39e8fb423c85e1a5fb3a55b87e7f4c0c2ea5b3bb",
        },
    ),
    # A local copy may be the train file as rebuilt from the treebank's documents, which differs in XPOS alone.
    "ud_bosque/pt_bosque-ud-train.from-documents.conllu.gz": Source(
        (f"{GITHUB}/{_UD}-Bosque/5de7ac34028ff6d1718031a4b0ae895717ed8dbe/pt_bosque-ud-train.conllu",),
        "d8e462d0a81caf5ebdd402e1fab20a3f38c8df6cbc2b5518ac9dd97a700ef609",
        digested=_columns,
    ),
    **_files(
        "ud_porttinari",
        f"{_UD}-Porttinari/87a07e1fb761d6d0a6e2a4d82b11b308344dabb9",
        {
            "pt_porttinari-ud-dev.conllu": "208483e5f5a29a0f6b6e0fc1f6e6499a10a5f5cbde53fdad20b30bf146a9e316",
            "pt_porttinari-ud-test.conllu": "6c8b36352bbee481448d5d354b38de1f80ddcde2ce2ffe9d1f0064c136d3d07d",
        },
    ),
    **_files(
        "ud_pud",
        f"{_UD}-PUD/be08a756d76bd79bf5d4a492dfdc28b46b33e76e",
        {"pt_pud-ud-test.conllu": "6fb673563b068c0693144aba16c9406f8672ef9d6a7703d8ccf71a44a07df937"},
    ),
    **{
        f"morphobr/{part}.dict.gz": Source(
            tuple(f"{_MORPHOBR}/{part}/{part}-{letter}.dict" for letter in letters), sha256
        )
        for part, letters, sha256 in (
            ("nouns", _LETTERS, "26829028b6e153d98767a95b79934ab1a01b597c2c06702826349ba0e2082c5f"),
            ("adjectives", _LETTERS, "90786341156ba390cd64362097435bd6c90919993b448fe046cac861f4617f7c"),
            ("verbs", "bfghjklnoquvwxyz", "1a27ec7dd5625d852c70c6fc1d88f04ba3ca46788ba04d2b3be32a1b559dfa1a"),
        )
    },
}


def cache_folder() -> Path:
    """Where downloads and what is generated from them are kept."""
    return Path(os.environ.get("FLEXQWEN_CACHE") or Path.home() / ".cache" / "flexqwen")


def folder(task: str) -> Path:
    """The folder that holds a task's files, all of them verified and, where they were missing, downloaded.

    Raises:
        InputError: as `read`.
    """
    for name in SOURCES:
        if name.startswith(f"{task}/"):
            read(name)
    local = os.environ.get("FLEXQWEN_EVAL_DATA")
    return (Path(local) if local else cache_folder() / "data") / task


def read(name: str) -> bytes:
    """The content of a file of the layout, uncompressed and verified.

    Raises:
        InputError: the file is not in the local folder, cannot be downloaded, or has the wrong digest.
    """
    source, local = SOURCES[name], os.environ.get("FLEXQWEN_EVAL_DATA")
    if local:
        path = Path(local) / name
        if not path.is_file():
            raise InputError(
                f"{path} is missing from the folder that FLEXQWEN_EVAL_DATA names; put it there (it is made from "
                f"{source.urls[0]}{' and others' if len(source.urls) > 1 else ''}), or unset the variable to download"
            )
        content = _uncompressed(path)
        if not _is_right(source, content):
            raise InputError(
                f"{path} has the wrong SHA-256; put the published file there again, or unset FLEXQWEN_EVAL_DATA to "
                f"download it from {source.urls[0]}"
            )
        return content
    path = cache_folder() / "data" / name
    if path.is_file() and _is_right(source, content := _uncompressed(path)):
        return content
    content = source.make(source, [_download(url, path.parent / "parts") for url in source.urls])
    if not _is_right(source, content):
        # What was kept of an interrupted download may be what is wrong: once more from nothing.
        content = source.make(source, [_download(url, path.parent / "parts", anew=True) for url in source.urls])
    if not _is_right(source, content):
        raise InputError(
            f"{name}: what {source.urls[0]} gave has the wrong SHA-256; try again later, or set FLEXQWEN_EVAL_DATA to "
            "a folder that holds the right file"
        )
    with atomic_write(path) as aside:
        aside.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    for url in source.urls:
        _part(url, path.parent / "parts").unlink(missing_ok=True)
    return content


def _uncompressed(path: Path) -> bytes | None:
    """A file's content; None if it is broken."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise InputError(f"{path} cannot be read: {error.strerror}; change its permissions") from None
        return None


def _is_right(source: Source, content: bytes | None) -> bool:
    if content is None:
        return False
    try:
        return hashlib.sha256(source.digested(content)).hexdigest() == source.sha256
    except ValueError:  # not text, where columns were to be cut
        return False


def _part(url: str, folder: Path) -> Path:
    return folder / hashlib.sha256(url.encode()).hexdigest()[:16]


def _download(url: str, folder: Path, anew: bool = False) -> bytes:
    """Downloads one address, going on where an earlier attempt stopped unless it is done `anew`."""
    finished = _part(url, folder)
    unfinished = finished.with_name(f"{finished.name}.unfinished")
    if anew:
        finished.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        if finished.is_file():
            break
        try:
            _go_on(url, unfinished)
            replace_path(unfinished, finished)
        except (OSError, HTTPException) as error:
            if getattr(error, "code", None) == 416:  # nothing is left to send, or the file has changed
                unfinished.unlink()
            elif attempt == ATTEMPTS - 1 or 400 <= getattr(error, "code", 0) < 500:
                raise InputError(
                    f"cannot download {url}: {str(getattr(error, 'reason', error)).splitlines()[0]}; run again with a "
                    "network to go on, or set FLEXQWEN_EVAL_DATA to a folder that holds the data"
                ) from None
            else:
                time.sleep(1)
    return finished.read_bytes()


def _go_on(url: str, unfinished: Path) -> None:
    """Downloads what is missing of an address, or all of it where the server sends all."""
    start = unfinished.stat().st_size if unfinished.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=TIMEOUT) as response:
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        name = url.rsplit("/", 1)[1]
        with (
            open(unfinished, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, leave=False) as bar,
        ):
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and unfinished.stat().st_size < total:
        raise ConnectionError(f"the connection broke off after {unfinished.stat().st_size:,} of {total:,} bytes")
