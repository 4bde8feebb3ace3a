"""A corpus or a built dataset at a glance, and where one document's copied passages stand."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flexqwen.cli import InputError
from flexqwen.data.build import read_manifest
from flexqwen.data.corpus import MIN_TOKENS, Corpus, Shard, open_corpus, read_shard
from flexqwen.data.ngrams import NGRAM, ngram_hashes, word_hashes
from flexqwen.parallel import Pool

_BATCH = 2000
_SHOWN = 3  # documents named for each passage


def is_dataset(folder: Path) -> bool:
    return bool(read_manifest(folder)) and (folder / "data").is_dir()


def table(rows: list[tuple]) -> str:
    """Lines of aligned columns: text to the left, numbers to the right, None as a dash."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    right = [not isinstance(cell, str) for cell in rows[-1]]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


# A dataset


def describe_dataset(manifest: dict[str, Any]) -> str:
    """What a build read, left out and chose, and how the two measures agree."""
    shards, documents, agreement = manifest["shards"], manifest["documents"], manifest["agreement"]
    lines = [
        f"{len(shards['used']):,} shards used, {len(shards['absent']):,} listed but absent, "
        f"{len(shards['bad']):,} bad; {documents['kept']:,} documents kept of {documents['read']:,}"
    ]
    if manifest.get("generated"):
        lines.append("every text was generated: a sample, not Corpus Carolina")
    lines += [f"bad shard {name}: {why}" for name, why in shards["bad"].items()]
    lines += [f"dropped {count:,}: {reason}" for reason, count in documents["dropped"].items()]
    if manifest["stray_files"]:
        lines.append(f"files that are no part of a corpus: {', '.join(manifest['stray_files'][:5])}")
    header = ("split", "documents", "tokens", "originality", "n-gram", "of the size asked for")
    columns = ("documents", "tokens", "originality", "ngram_originality", "size")
    lines.append(table([header, *((n, *(split[c] for c in columns)) for n, split in manifest["splits"].items())]))
    for name, against in (("column", "all documents"), ("among_long", "each other only")):
        if name in agreement:
            lines.append(
                f"header and recomputed originality agree, {agreement['documents']:,} documents of {MIN_TOKENS} tokens "
                f"or more, against {against}: Pearson {agreement[name]['pearson']:.3f}, Spearman "
                f"{agreement[name]['spearman']:.3f}, mean difference {agreement[name]['mean_absolute_difference']:.1f}"
            )
    passed = sum(check["passed"] for check in manifest["checks"].values())
    lines.append(f"checks passed: {passed} of {len(manifest['checks'])}")
    return "\n".join(lines)


def dataset_by_taxonomy(folder: Path) -> str:
    """Table of the dataset's index: documents, tokens and both measures by taxonomy."""
    index = pq.read_table(folder / "data" / "index")
    rows = [("taxonomy", "documents", f">= {MIN_TOKENS} tokens", "tokens", "originality", "n-gram")]
    for name in sorted(pc.unique(index["taxonomy"]).to_pylist()):
        part = index.filter(pc.equal(index["taxonomy"], name))
        long = part.filter(pc.greater_equal(part["tokens"], MIN_TOKENS))
        means = (pc.mean(long[column]).as_py() for column in ("originality", "ngram_originality"))
        rows.append((name, len(part), len(long), pc.sum(part["tokens"]).as_py(), *means))
    return table(rows)


# A corpus


def describe_corpus(corpus: Corpus, pool: Pool) -> str:
    """Reads every shard, and says what the corpus holds, by taxonomy, and what is wrong with it."""
    sizes = [shard.path.stat().st_size for shard in corpus.shards]
    found = pool.map(count_shard, [(shard,) for shard in corpus.shards], "Reading shards", sizes)
    rows = [("taxonomy", "shards", "absent", "documents", f">= {MIN_TOKENS} tokens", "tokens", "originality")]
    absent = Counter(name.split("/")[0] for name in corpus.absent)
    counts: dict[str, Counter] = {taxonomy: Counter() for taxonomy in absent}
    dropped: Counter[str] = Counter()
    bad = []
    for shard, (count, left_out, error) in zip(corpus.shards, found, strict=True):
        counts.setdefault(shard.taxonomy, Counter()).update(count)
        dropped.update(left_out)
        bad += [error] if error else []
    for taxonomy in (*sorted(counts), None):
        count = counts[taxonomy] if taxonomy else sum(counts.values(), Counter())
        mean = count["originality"] / count["long"] if count["long"] else None
        missing = absent[taxonomy] if taxonomy else len(corpus.absent)
        values = (count["shards"], missing, count["documents"], count["long"], count["tokens"], mean)
        rows.append((taxonomy or "all", *values))
    lines = [f"{corpus.folder}: {len(corpus.shards):,} shards, {len(corpus.absent):,} listed but absent"]
    if corpus.generated:
        lines.append("every text was generated: a sample, not Corpus Carolina")
    lines += bad
    lines += [f"would be dropped, {count:,}: {reason}" for reason, count in sorted(dropped.items())]
    if corpus.strays:
        lines.append(f"files that are no part of a corpus: {', '.join(corpus.strays[:5])}")
    lines.append(table(rows))
    lines.append(f"originality: mean of what the headers state, over documents of {MIN_TOKENS} tokens or more")
    return "\n".join(lines)


def count_shard(shard: Shard) -> tuple[Counter, Counter, str | None]:
    """Counts of a shard, its dropped documents by reason, and what is wrong with the shard itself."""
    count, dropped = Counter(shards=1), Counter()
    try:
        for document in read_shard(shard, dropped):
            count["documents"] += 1
            count["tokens"] += document.tokens
            if document.tokens >= MIN_TOKENS:
                count["long"] += 1
                count["originality"] += document.originality
    except InputError as error:
        return Counter(shards=1), Counter(), str(error)
    return count, dropped, None


# One document


@dataclass
class Passage:
    """Words [start, end) of a document that stand in others too: {document id: how many of its 7-grams}."""

    start: int
    end: int
    others: Counter = field(default_factory=Counter)


def texts_of(source: Shard | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of a corpus shard or of a Parquet file."""
    if isinstance(source, Shard):
        for document in read_shard(source, Counter(), need_originality=False):
            yield document.id, document.text
    else:
        for batch in pq.ParquetFile(source).iter_batches(_BATCH, columns=["id", "text"]):
            yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def sources_of(folder: Path) -> list[Shard] | list[Path]:
    """What holds the texts of a corpus or dataset folder."""
    if is_dataset(folder):
        return sorted(file for file in (folder / "data").glob("*/*.parquet") if file.parent.name != "index")
    return open_corpus(folder).shards


def find_text(source: Shard | Path, identifier: str) -> str | None:
    return next((text for found, text in texts_of(source) if found == identifier), None)


def find_copies(source: Shard | Path, identifier: str, grams: np.ndarray) -> dict[str, np.ndarray]:
    """The other documents that hold any of the 7-grams `grams` (uint64, ascending): which of them, as places in it."""
    found: dict[str, np.ndarray] = {}

    def search(batch: list[tuple[str, str]]) -> None:
        hashes, document = ngram_hashes(*word_hashes([text for _, text in batch]))
        hits = np.flatnonzero(np.isin(hashes, grams))
        for number in np.unique(document[hits]):
            name = batch[number][0]
            if name != identifier:
                found[name] = np.searchsorted(grams, np.unique(hashes[hits][document[hits] == number]))

    batch = []
    for item in texts_of(source):
        batch.append(item)
        if len(batch) == _BATCH:
            search(batch)
            batch = []
    if batch:
        search(batch)
    return found


def passages_of(text: str, copies: dict[str, Iterable[int]], grams: np.ndarray) -> list[Passage]:
    """Joins the 7-grams that other documents hold into passages."""
    hashes, _ = ngram_hashes(*word_hashes([text]))
    places = np.searchsorted(grams, hashes)
    holders: dict[int, list[str]] = {}
    for name, held in copies.items():
        for place in held:
            holders.setdefault(int(place), []).append(name)
    passages: list[Passage] = []
    for start, place in enumerate(places.tolist()):
        if place not in holders:
            continue
        if not passages or start > passages[-1].end - NGRAM + 1:
            passages.append(Passage(start, start + NGRAM))
        passages[-1].end = start + NGRAM
        passages[-1].others.update(holders[place])
    return passages


def describe_document(folder: Path, identifier: str, pool: Pool) -> str:
    """Where a document's copied passages are, and in which other documents of the folder they stand."""
    sources = sources_of(folder)
    # An identifier ends in the letters of its shard: look there first.
    likely = [s for s in sources if isinstance(s, Shard) and s.path.name == _shard_of(identifier)]
    text = next((text for source in likely if (text := find_text(source, identifier)) is not None), None)
    if text is None:
        texts = pool.map(find_text, [(source, identifier) for source in sources], "Looking for it")
        text = next((text for text in texts if text is not None), None)
    if text is None:
        raise InputError(f"{folder}: no document has the id {identifier!r}, or its text is not there")
    hashes, _ = ngram_hashes(*word_hashes([text]))
    grams = np.unique(hashes)
    copies: dict[str, np.ndarray] = {}
    for found in pool.map(find_copies, [(source, identifier, grams) for source in sources], "Comparing"):
        copies |= found
    passages = passages_of(text, copies, grams)
    held = set().union(*(places.tolist() for places in copies.values()))
    shared = int(np.isin(np.searchsorted(grams, hashes), list(held)).sum()) if held else 0
    words = [match.span() for match in re.finditer(r"\S+", text)]
    lines = [f"{identifier}: {len(text):,} characters, {len(words):,} words, {len(hashes):,} 7-grams"]
    if not len(hashes):
        return lines[0] + f"; a text of fewer than {NGRAM} words has none"
    what = "texts in the dataset" if is_dataset(folder) else "documents of the corpus"
    lines.append(
        f"{shared:,} of them stand in {len(copies):,} other {what}: "
        f"originality {100 * (1 - shared / len(hashes)):.1f} %"
    )
    for passage in passages:
        start, end = words[passage.start][0], words[passage.end - 1][1]
        lines.append(
            f"\nwords {passage.start + 1}-{passage.end}, characters {start}-{end}, in {len(passage.others):,}:"
        )
        lines.append(f"  «{_shorten(text[start:end])}»")
        others = sorted(passage.others.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {name} ({count} 7-grams)" for name, count in others[:_SHOWN]]
        if len(passage.others) > _SHOWN:
            lines.append(f"  and {len(passage.others) - _SHOWN:,} more")
    return "\n".join(lines)


def _shard_of(identifier: str) -> str:
    match = re.fullmatch(r"([A-Z]+)\d+([a-z]+)", identifier)
    return f"{match[1]}{match[2]}.xml.gz" if match else ""


def _shorten(text: str, characters: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else f"{text[: characters // 2]} … {text[-characters // 2 :]}"
