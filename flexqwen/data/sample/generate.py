"""A sample corpus in Corpus Carolina's exact layout and TEI format, whose true originality is known.

Half of the documents are new from the first word to the last; the others hold passages copied from a stock that no
document owns. The headers state what is true of the finished corpus, counted by brute force: the percentage of a
document's word 7-grams that no other document holds, and 0 for documents under 21 tokens, as in the real corpus.
"""

import gzip
import hashlib
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple
from xml.sax.saxutils import escape

import yaml
from jinja2 import Template
from tqdm import tqdm

from flexqwen.cli import InputError
from flexqwen.data.corpus import CHECKSUMS, GENERATED, MIN_TOKENS
from flexqwen.data.ngrams import NGRAM
from flexqwen.data.sample.grammar import Writer
from flexqwen.files import atomic_write, is_made, read_json, write_json

FORMAT = 1  # of the sample: raise it where the same number of documents and seed give other bytes
STAMP = "sample.json"


_FOLDER = Path(__file__).parent
GENRES = [SimpleNamespace(**genre) for genre in yaml.safe_load((_FOLDER / "genres.yaml").read_text(encoding="utf-8"))]


class SampleDocument(NamedTuple):
    """A document of the sample, as its shard has it."""

    id: str
    genre: SimpleNamespace
    shard: str
    number: int
    text: str
    tokens: int
    originality: int


def sample_documents(documents: int = 3000, seed: int = 0) -> list[SampleDocument]:
    """Makes the documents, the true originality of each counted over all of them."""
    places, total = [], 0.0
    for kind, genre in enumerate(GENRES):  # their shards in turn; a text to copy from for about ten documents
        random, size = Random(f"{seed} stock {kind}"), max(2, round(genre.share * documents / 10))
        stock = [Writer(random).text(genre.writer, genre.words[1]) for _ in range(size)]
        first, total = round(total * documents), total + genre.share
        numbers = range(round(total * documents) - first)
        places += [(genre, stock, genre.shards[number % len(genre.shards)], number + 1) for number in numbers]
    texts: dict[str, int] = {}  # with their tokens; as in the real corpus no two texts are equal
    for genre, stock, shard, number in tqdm(places, desc="sample corpus", unit="doc", disable=None, leave=False):
        random = Random(f"{seed} {shard} {number}")
        while (text := _write(genre, stock, random)) in texts:
            pass
        texts[text] = len(text.split())
    found = []
    for place, (text, tokens), percent in zip(places, texts.items(), true_originality(list(texts)), strict=True):
        genre, _, shard, number = place
        name = shard.rsplit("/", 1)[-1]
        stated = round(percent) if tokens >= MIN_TOKENS and percent is not None else 0
        found.append(SampleDocument(f"{name[:3]}{number:09}{name[3:]}", genre, shard, number, text, tokens, stated))
    return found


def true_originality(texts: list[str], n: int = NGRAM) -> list[float | None]:
    """Percentage of each text's word n-grams that no other text holds, by brute force; None for a text without any."""
    owner: dict[tuple[str, ...], int] = {}
    grams = []
    for number, text in enumerate(texts):
        words = text.split()
        grams.append(list(zip(*(words[start:] for start in range(n)), strict=False)))
        for gram in grams[-1]:
            if owner.setdefault(gram, number) != number:
                owner[gram] = -1
    return [100 * sum(owner[gram] >= 0 for gram in own) / len(own) if own else None for own in grams]


def _write(genre: SimpleNamespace, stock: list[list[str]], random: Random) -> str:
    """One text: new sentences, and for every second text runs of copied ones up to a share of its length."""
    shortest, longest = genre.words
    length = round(shortest * (longest / shortest) ** random.random())
    share = random.random() ** 0.7 if random.random() < 0.5 else 0.0
    writer = Writer(random)
    sentences: list[str] = []
    words = copied = 0
    while words < length:
        if is_copy := copied < share * min(length, words + 30):
            source = random.choice(stock)
            start = random.randrange(len(source))
            run = source[start : start + random.randint(2, 5)]
        else:
            run = writer.text(genre.writer, min(30, length - words))
        sentences += run
        more = sum(len(sentence.split()) for sentence in run)
        words, copied = words + more, copied + more * is_copy
    step = genre.sentences
    return "\n".join(" ".join(sentences[start : start + step]) for start in range(0, len(sentences), step))


def make_sample(folder: Path, documents: int, seed: int, overwrite: bool = False) -> None:
    """Writes a sample corpus, unless the same one is there (see `is_made`)."""
    if documents < 1:
        raise InputError(f"--documents {documents}: give 1 or more")
    made = {"documents": documents, "seed": seed, "format": FORMAT}
    if is_made(folder, read_json(folder / STAMP), made, overwrite):
        return
    with atomic_write(folder) as partial:
        write_sample(partial, documents, seed)
        write_json(partial / STAMP, made)
    print(f"{folder}: a sample corpus of {documents:,} documents")


def write_sample(folder: Path, documents: int = 3000, seed: int = 0) -> None:
    """Writes `<folder>/corpus/`. The bytes depend on nothing but the arguments."""
    shards: dict[str, list[SampleDocument]] = {}
    for document in sample_documents(documents, seed):
        shards.setdefault(document.shard, []).append(document)
    for shard, content in shards.items():
        xml = shard_xml(content).encode()
        path = folder / "corpus" / f"{shard}.xml.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(xml, compresslevel=6, mtime=0))
        taxonomy, name = shard.split("/", 1)
        with open(folder / "corpus" / taxonomy / CHECKSUMS, "a", encoding="utf-8") as file:
            file.write(f"{hashlib.sha256(xml).hexdigest()}\t{name}.xml\n")
    notice = "Every text here was generated by FlexQwen's sample command; none is Corpus Carolina's.\n"
    (folder / "corpus" / GENERATED).write_text(notice, encoding="utf-8")


def shard_xml(documents: list[SampleDocument]) -> str:
    source = (_FOLDER / "shard.xml").read_text(encoding="utf-8")
    template = Template(source, trim_blocks=True, keep_trailing_newline=True)
    return template.render(documents=documents, typologies=dict.fromkeys(g.typology for g in GENRES), escape=escape)
