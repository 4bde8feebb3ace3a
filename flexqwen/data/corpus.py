"""Corpus Carolina's TEI shards -> verified documents.

The published layout (Corpus Carolina 2.0.1, `carolina-c4ai/corpus-carolina` on the Hugging Face Hub):

    corpus/<taxonomy>/[pt/|pt-BR/]<SHARD>.xml.gz     a gzipped TEI corpus, one <TEI> element a document
    corpus/<taxonomy>/checksum.sha256                SHA-256 of each *uncompressed* shard, named without `.gz`
    corpus/GENERATED.txt                             only where the texts are made up (see sample/): no real corpus

What is wrong with a shard is a `ShardError`; what is wrong with a document drops the document, and is counted.
"""

import gzip
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from lxml import etree

from flexqwen.cli import InputError, suggest_path
from flexqwen.data.ngrams import cut_batches

NAMESPACE = "{http://www.tei-c.org/ns/1.0}"
CHECKSUMS = "checksum.sha256"
GENERATED = "GENERATED.txt"
MIN_TOKENS = 21  # the corpus's originality is defined from here on; shorter documents carry a 0 that means nothing
# What one document may hold, so that a gzip bomb does not fill the memory; the largest real one has 0.8 MB.
MAX_DOCUMENT_BYTES = 32 << 20  # of XML
MAX_DOCUMENT_MARKS = 2 << 20  # tags and quotes beyond the first 4 MiB: markup takes 40 times as much memory as text
_FREE_BYTES = 4 << 20

# What may stand before the root element. There is no DOCTYPE in it, so no entity can be declared.
_PROLOG = re.compile(rb"(?:\xef\xbb\xbf)?(?>\s+|<\?.*?\?>|<!--.*?-->)*+<teiCorpus[\s>]", re.DOTALL)
_READ_BYTES = 1 << 18
_BATCH_CHARACTERS = 1 << 21  # of text in a batch of documents
_LFS_POINTER = b"version https://git-lfs"


class ShardError(InputError):
    """A shard that cannot be trusted: unreadable, damaged, refused, or not what the checksum file says."""


class Document(NamedTuple):
    """One text of the corpus. What its header does not name is empty."""

    id: str  # the corpus's own identifier, such as `WIK000001101b`
    text: str  # paragraphs joined by newlines; inside a paragraph, each run of white space is one space
    taxonomy: str  # the folder of the shard, such as `wikis`
    typology: str  # source typology, such as `TWEET_VIR_W`
    language: str  # `pt` or `pt-BR`
    license: str  # address (or, failing that, name) of the licence under which the document is published
    source: str  # address of the source medium
    tokens: int  # length in white-space-separated tokens, from the header
    originality: int | None  # the header's own measure, 0-100; None only where it was not asked for (see `read_shard`)


COLUMNS = pa.schema([(n, pa.int32() if n in ("tokens", "originality") else pa.string()) for n in Document._fields])


@dataclass(frozen=True, slots=True)
class Shard:
    name: str  # relative to the corpus folder
    path: Path
    sha256: str  # as it is published
    size: int  # bytes of the file

    @property
    def taxonomy(self) -> str:
        return self.name.split("/")[0] if "/" in self.name else ""

    @property
    def identity(self) -> list:
        """What its documents depend on."""
        return [self.name, self.sha256, self.size]

    def read_batches(self, dropped: Counter[str], need_originality: bool = True) -> Iterator[pa.RecordBatch]:
        """Its documents (see `read_shard`), as batches of `COLUMNS`."""
        documents = read_shard(self, dropped, need_originality)
        for batch in cut_batches(documents, _BATCH_CHARACTERS, lambda document: len(document.text)):
            columns = zip(zip(*batch, strict=True), COLUMNS.types, strict=True)
            yield pa.record_batch([pa.array(*column) for column in columns], schema=COLUMNS)


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is to be read, and what else was found."""

    folder: Path
    shards: list[Shard]  # in the order of their names
    absent: list[str]  # names of shards that are listed and not here
    strays: list[str]  # files that are no part of a corpus
    generated: bool  # the texts are made up: whatever is published of them must say so
    columns: dict[str, str] | None = None  # of another collection (see collection.py): no header states a measure
    source: str = ""  # what the manifest calls another collection; each dataset of the Hub with its commit


def open_corpus(folder: str | Path) -> Corpus:
    """Finds the shards under `folder` (the folder that holds `corpus/`, or `corpus/` itself), with their checksums."""
    folder = Path(folder)
    if not folder.is_dir():
        remedy = suggest_path(folder) or "; give the one that holds Corpus Carolina's corpus/"
        raise InputError(f"{folder}: no such folder{remedy}")
    if (folder / "corpus").is_dir():
        folder = folder / "corpus"
    for inside in (folder.absolute(), folder.absolute().parent):
        if (inside / CHECKSUMS).is_file():
            raise InputError(f"{folder}: is only a part of a corpus; give the whole, {inside.parent}")
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    present = {name for name in found if name.endswith(".xml.gz")}
    lists = sorted(name for name in found if name.count("/") == 1 and name.endswith("/" + CHECKSUMS))
    if not present and not lists:
        raise InputError(f"{folder}: no <taxonomy>/**/*.xml.gz; give the folder that holds Corpus Carolina's corpus/")
    digests: dict[str, str] = {}
    for name in lists:
        digests |= _read_checksums(found[name], name.removesuffix(CHECKSUMS))
    for name in sorted(present - digests.keys()):
        where = folder / name.split("/")[0] / CHECKSUMS
        what = f"{where} does not name it" if where.is_file() else f"there is no {where}"
        raise InputError(f"{folder / name}: cannot be verified, {what}; download the checksum file beside the shards")
    if not present:
        raise InputError(f"{folder}: {len(digests)} shards are listed and none is here; download some (.xml.gz)")
    shards = [Shard(name, found[name], digests[name], found[name].stat().st_size) for name in sorted(present)]
    strays = sorted(found.keys() - present - set(lists) - {"schema.rng", GENERATED})
    return Corpus(folder, shards, sorted(digests.keys() - present), strays, GENERATED in found)


def _read_checksums(path: Path, prefix: str) -> dict[str, str]:
    """Reads lines of `<sha256> <name>.xml` into {`<prefix><name>.xml.gz`: digest}."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); download it again") from error
    digests = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(?:\./)?(\S+\.xml)\s*", line)
        if not match:
            raise InputError(f"{path}:{number}: not '<sha256> <name>.xml'; download it again")
        digests[f"{prefix}{match[2]}.gz"] = match[1].lower()
    return digests


class _Stream:
    """What lxml reads from: unzips, hashes, and refuses a DOCTYPE before the parser sees it."""

    def __init__(self, file: gzip.GzipFile):
        self.file, self.sha256 = file, hashlib.sha256()
        self.bytes = self.marks = 0  # read so far; in the document that is being read
        self.document_start = 0  # set by the reader after each document

    def read(self, size: int) -> bytes:
        data = self.file.read(_READ_BYTES)  # whatever size lxml would have: larger steps are faster
        if not self.bytes and not _PROLOG.match(data):
            if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
                raise ShardError("declares a DOCTYPE or entities, which is refused unread")
            raise ShardError("is not a Carolina shard: it does not begin with <teiCorpus>")
        self.sha256.update(data)
        self.bytes += len(data)
        size = self.bytes - self.document_start
        self.marks = self.marks + sum(map(data.count, (b"<", b'"', b"'"))) if size > _FREE_BYTES else 0
        if size > MAX_DOCUMENT_BYTES or self.marks > MAX_DOCUMENT_MARKS:
            most = f"{MAX_DOCUMENT_BYTES >> 20} MiB or {MAX_DOCUMENT_MARKS:,} tags and quotes"
            raise ShardError(f"holds a document of more than {most}")
        return data


def read_shard(shard: Shard, dropped: Counter[str], need_originality: bool = True) -> Iterator[Document]:
    """Yields the documents of a shard in order, as a stream; counts in `dropped` those it leaves out, by reason.

    With `need_originality=False` a document whose header has no valid originality is kept, with None.
    What is made of the documents counts only once the generator has ended: only then the digest is known to be right.
    """
    number, stream, seen, taxonomy = 0, None, set(), shard.taxonomy
    try:
        with gzip.open(shard.path) as file:
            stream = _Stream(file)
            # huge_tree lifts libxml2's limit of 10 MB for one text node. The limits on entities that it lifts too are
            # not needed: there is no DOCTYPE. The encoding is fixed so that no other hides one.
            safe = {"resolve_entities": False, "load_dtd": False, "no_network": True}
            options = {"encoding": "utf-8", "remove_blank_text": True, "collect_ids": False, "huge_tree": True}
            # Of any namespace, so that a document of another one is refused, not overlooked.
            elements = etree.iterparse(stream, tag="{*}TEI", remove_comments=True, remove_pis=True, **safe, **options)
            for _, element in elements:
                number += 1
                if element.tag != _TEI:
                    raise _refuse(element, f"as document {number}")
                document = _read_document(element, taxonomy, need_originality)
                element.clear(keep_tail=False)
                while (before := element.getprevious()) is not None:
                    if before.tag not in (_HEADER, _TEI):
                        raise _refuse(before, f"before document {number}")
                    element.getparent().remove(before)
                stream.document_start = stream.bytes
                if isinstance(document, str):
                    dropped[document] += 1
                elif document.id in seen:
                    dropped["duplicate id"] += 1
                else:
                    seen.add(document.id)
                    yield document
            for element in elements.root:
                if element.tag not in (_HEADER, _TEI):
                    raise _refuse(element, f"after document {number}")
            if not number:
                raise ShardError("holds no document")
    except ShardError as error:
        raise _bad(shard, str(error)) from error
    except etree.XMLSyntaxError as error:
        messages = [(entry.line, entry.message) for entry in elements.error_log]
        line, message = min(messages, default=(error.lineno, error.msg))
        raise _bad(shard, f"is not well-formed XML at line {line}, after {number} documents ({message})") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        with open(shard.path, "rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                remedy = "fetch the shards themselves with 'git lfs pull' or 'hf download'"
                raise _bad(shard, "is a git-LFS pointer, not the shard itself", remedy) from error
        place = f"after {stream.bytes if stream else 0:,} bytes of XML, {number} documents"
        raise _bad(shard, f"is a damaged gzip file {place} ({error})") from error
    except OSError as error:
        raise _bad(shard, f"cannot be read ({error.strerror or error})") from error
    if (sha256 := stream.sha256.hexdigest()) != shard.sha256:
        raise _bad(shard, f"has SHA-256 {sha256[:12]}…, and {CHECKSUMS} says {shard.sha256[:12]}…")


def _bad(shard: Shard, what: str, remedy: str = "download the shard again") -> ShardError:
    return ShardError(f"{shard.path}: {what}; {remedy}")


_TEI, _HEADER, _TEXT, _BODY, _P = (NAMESPACE + name for name in ("TEI", "teiHeader", "text", "body", "p"))
_LAYOUT = (_HEADER, _TEXT, _BODY)
_NAMES = ("title", "measure", "license", "biblFull", "media", "catRef", "language")
_TITLE, _MEASURE, _LICENSE, _SOURCE, _MEDIA, _CATREF, _LANGUAGE = (NAMESPACE + name for name in _NAMES)


def _refuse(element: etree._Element, place: str) -> ShardError:
    name = etree.QName(element)
    foreign = f"the namespace {name.namespace}" if name.namespace else "no namespace"
    whose = "" if element.tag.startswith(NAMESPACE) else f" of {foreign}"
    return ShardError(f"has <{name.localname}>{whose} out of place {place}")


def _read_paragraphs(element: etree._Element, text: etree._Element, where: str) -> list[str]:
    """The paragraphs of <teiHeader/><text><body><p/>…</body></text>; what stands elsewhere would be lost, or twice."""
    parts = [*element, *text]
    for part, tag in zip(parts, _LAYOUT, strict=False):
        if part.tag != tag:
            raise _refuse(part, where)
    around, paragraphs = [part.text for part in parts[1:]], []
    for node in parts[2] if len(parts) > 2 else ():
        if node.tag != _P:
            raise _refuse(node, where)
        around.append(node.tail)
        content = node.text
        if len(node):
            for nested in node.iterfind(f".//{_P}"):
                raise _refuse(nested, where)
            content = "".join(node.itertext())
        if content and (content := " ".join(content.split())):
            paragraphs.append(content)
    for part in parts[3:]:
        raise _refuse(part, where)
    if any(around) and "".join(filter(None, around)).strip():
        raise ShardError(f"has text outside its paragraphs {where}")
    return paragraphs


def _read_document(element: etree._Element, taxonomy: str, need_originality: bool) -> Document | str:
    """A document, or the reason to drop it, in two walks over the header: a path for each field costs far more.

    By the schema a document's own title, measures and licence stand before <biblFull>, the source's in like elements.
    """
    header = text = None
    for part in reversed(element):  # costs less than to find each
        if part.tag == _HEADER:
            header = part
        elif part.tag == _TEXT:
            text = part
    if header is None:
        return "no header"
    identifier = license_ = source = typology = language = ""
    measures = {}
    for node in header.iter(_TITLE, _MEASURE, _LICENSE, _SOURCE):
        tag = node.tag
        if tag == _MEASURE:
            measures[node.get("type") or node.get("unit")] = node.get("quantity")
        elif tag == _TITLE:
            identifier = identifier or (node.text or "").strip()
        elif tag == _LICENSE:
            license_ = node.get("target") or (node.text or "").strip()
        else:
            for described in node.iter(_MEDIA, _CATREF, _LANGUAGE):
                tag = described.tag
                if tag == _MEDIA:
                    source = described.get("url", "")
                elif tag == _LANGUAGE:
                    language = described.get("ident", "")
                elif described.get("scheme") == "#Source_typology":
                    typology = described.get("target", "").removeprefix("#")
            break
    if not identifier:
        return "no id"
    tokens, originality = _whole(measures.get("tokens"), 1 << 30), _whole(measures.get("originality"), 100)
    if tokens is None:
        return "tokens: not a whole number" if "tokens" in measures else "tokens: missing"
    if originality is None and need_originality:
        return "originality: not a whole number from 0 to 100" if "originality" in measures else "originality: missing"
    paragraphs = [] if text is None else _read_paragraphs(element, text, f"in document {identifier}")
    if not paragraphs:
        return "empty text"
    text = "\n".join(paragraphs)
    return Document(identifier, text, taxonomy, typology, language, license_, source, tokens, originality)


def _whole(text: str | None, largest: int) -> int | None:
    """The whole number from 0 to `largest` that the text is, or None."""
    is_whole = text and len(text) <= 10 and text.isascii() and text.isdigit()
    return number if is_whole and (number := int(text)) <= largest else None
