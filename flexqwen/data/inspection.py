"""A corpus or a built dataset at a glance, and where one document's copied passages stand."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flexqwen.cli import InputError
from flexqwen.data.card import count_by_taxonomy, list_splits, read_index
from flexqwen.data.corpus import MIN_TOKENS, Shard, open_corpus, read_shard
from flexqwen.data.documents import BEYOND
from flexqwen.data.ngrams import NGRAM, cut_batches, hash_ngrams, number_texts
from flexqwen.data.texts import REMEDY, read_file, read_manifest
from flexqwen.parallel import Pool
from flexqwen.remote import explain_failure
from flexqwen.tables import plain_table

_BATCH_CHARACTERS = 1 << 23
_SHOWN = 3  # documents named for each passage


def describe_folder(folder: Path, pool: Pool) -> str:
    if not (read_manifest(folder) and (folder / "data").is_dir()):
        return describe_corpus(folder, pool)
    header = ("taxonomy", "documents", f">= {MIN_TOKENS} tokens", "tokens", "originality", "n-gram")
    with explain_failure(f"{folder} is damaged", REMEDY):
        table = plain_table([header, *sorted(count_by_taxonomy(read_index(folder)))])
        return f"{describe_dataset(read_manifest(folder))}\n{table}"


def describe_dataset(manifest: dict[str, Any]) -> str:
    """What a build read, left out and chose, and how the two measures agree."""
    shards, documents, agreement = manifest["shards"], manifest["documents"], manifest["agreement"]
    used, absent, bad = (f"{len(shards[name]):,}" for name in ("used", "absent", "bad"))
    kept = f"{documents['kept']:,} documents kept of {documents['read']:,}"
    lines = [f"shards: {used} used, {absent} listed but absent, {bad} bad; {kept}"]
    lines += _warn(manifest.get("generated"), manifest["stray_files"])
    lines += [f"bad shard {name}: {why}" for name, why in shards["bad"].items()]
    lines += [f"dropped {count:,}: {reason}" for reason, count in documents["dropped"].items()]
    header = ("split", "documents", "tokens", "originality", "n-gram", "of the size asked for")
    lines.append(plain_table([header, *list_splits(manifest)]))
    for name, against in (("column", "all documents"), ("among_long", "each other only")):
        if (found := agreement.get(name)) and BEYOND not in documents["dropped"]:  # the headers are of the whole
            among = f"{agreement['documents']:,} documents of {MIN_TOKENS} tokens or more, against {against}"
            figures = "Pearson {pearson:.3f}, Spearman {spearman:.3f}, mean difference {mean_absolute_difference:.1f}"
            lines.append(f"header and recomputed originality agree, {among}: {figures.format(**found)}")
    passed = sum(check["passed"] for check in manifest["checks"].values())
    lines.append(f"checks passed: {passed} of {len(manifest['checks'])}")
    return "\n".join(lines)


def describe_corpus(folder: Path, pool: Pool) -> str:
    """Reads every shard, and says what the corpus holds, by taxonomy, and what is wrong with it."""
    corpus = open_corpus(folder)
    sizes = [shard.size for shard in corpus.shards]
    found = pool.map(count_shard, [(shard,) for shard in corpus.shards], "Reading shards", sizes)
    counts: dict[str, Counter] = defaultdict(Counter)
    dropped: Counter[str] = Counter()
    for name in corpus.absent:
        counts[name.split("/")[0]]["absent"] += 1
    for shard, (count, left_out, _) in zip(corpus.shards, found, strict=True):
        counts[shard.taxonomy].update(count)
        dropped.update(left_out)
    rows = [("taxonomy", "shards", "absent", "documents", f">= {MIN_TOKENS} tokens", "tokens", "originality")]
    for name, count in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        mean = count["originality"] / count["long"] if count["long"] else None
        rows.append((name, *(count[column] for column in ("shards", "absent", "documents", "long", "tokens")), mean))
    lines = [f"{corpus.folder}: {len(corpus.shards):,} shards, {len(corpus.absent):,} listed but absent"]
    lines += _warn(corpus.generated, corpus.strays)
    lines += [error for _, _, error in found if error]
    lines += [f"would be dropped, {count:,}: {reason}" for reason, count in sorted(dropped.items())]
    lines += [plain_table(rows), f"originality: mean of what headers state, for {MIN_TOKENS} tokens or more"]
    return "\n".join(lines)


def _warn(generated: bool, strays: list[str]) -> Iterator[str]:
    if generated:
        yield "every text was generated: a sample, not Corpus Carolina"
    if strays:
        yield f"files that are no part of a corpus: {', '.join(strays[:5])}"


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


def describe_document(folder: Path, identifier: str, pool: Pool) -> str:
    """Where a document's copied passages are, and in which other documents of the folder they stand."""
    is_dataset = bool(read_manifest(folder)) and (folder / "data").is_dir()
    files = (file for file in (folder / "data").glob("*/*.parquet") if file.parent.name != "index")
    sources = sorted(files) if is_dataset else open_corpus(folder).shards
    shard = re.sub(r"\d+", "", identifier) + ".xml.gz"  # an identifier holds the name of its shard: look there first
    ordered = sorted(sources, key=lambda source: not (isinstance(source, Shard) and source.path.name == shard))
    texts = (text for source in ordered for found, text in read_source(source) if found == identifier)
    if (text := next(texts, None)) is None:
        raise InputError(f"{folder}: no document has the id {identifier!r}, or its text is not there")
    hashes, _ = hash_ngrams([text])
    words = [match.span() for match in re.finditer(r"\S+", text)]
    first = f"{identifier}: {len(text):,} characters, {len(words):,} words, {len(hashes):,} 7-grams"
    if not len(hashes):
        return f"{first}; a text of fewer than {NGRAM} words has none"
    holders: dict[int, set[str]] = defaultdict(set)
    for found in pool.map(find_copies, [(source, identifier, np.unique(hashes)) for source in sources], "Comparing"):
        for gram, name in found:
            holders[gram].add(name)
    shared, copies = sum(gram in holders for gram in hashes.tolist()), set().union(*holders.values())
    where = f"{len(copies):,} other {'texts in the dataset' if is_dataset else 'documents of the corpus'}"
    lines = [first, f"{shared:,} of them stand in {where}: originality {100 * (1 - shared / len(hashes)):.1f} %"]
    for first_word, end_word, counts in join_passages(hashes.tolist(), holders):
        start, end = words[first_word][0], words[end_word - 1][1]
        what = f"words {first_word + 1}-{end_word}, characters {start}-{end}, in {len(counts):,}:"
        passage = " ".join(text[start:end].split())
        passage = passage if len(passage) <= 300 else f"{passage[:150]} … {passage[-150:]}"
        lines += [f"\n{what}", f"  «{passage}»"]
        others = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"  {name} ({count} 7-grams)" for name, count in others[:_SHOWN]]
        if len(others) > _SHOWN:
            lines.append(f"  and {len(others) - _SHOWN:,} more")
    return "\n".join(lines)


def read_source(source: Shard | Path) -> Iterator[tuple[str, str]]:
    """(id, text) of each document of a corpus shard or of a Parquet file."""
    if isinstance(source, Shard):
        for document in read_shard(source, Counter(), need_originality=False):
            yield document.id, document.text
    else:
        yield from read_file(source)


def find_copies(source: Shard | Path, identifier: str, grams: np.ndarray) -> set[tuple[int, str]]:
    """Those of the 7-grams `grams` (uint64) that other documents hold, with the id of each such document."""
    found = set()
    for batch in cut_batches(read_source(source), _BATCH_CHARACTERS, lambda document: len(document[1])):
        hashes, counts = hash_ngrams([text for _, text in batch])
        owner = number_texts(counts)
        places = np.flatnonzero(np.isin(hashes, grams))
        found |= {(int(hashes[place]), batch[owner[place]][0]) for place in places}
    return {(gram, name) for gram, name in found if name != identifier}


def join_passages(hashes: list[int], holders: dict[int, set[str]]) -> list[tuple[int, int, Counter]]:
    """Joins those 7-grams of a document (`hashes`, in order) that have holders into passages.

    Returns words [start, end) of each, and {document id: how many of its 7-grams}.
    """
    passages: list[tuple[int, int, Counter]] = []
    for place, gram in enumerate(hashes):
        if gram in holders:
            is_next = passages and place <= passages[-1][1] - NGRAM + 1
            start, _, others = passages.pop() if is_next else (place, 0, Counter())
            others.update(holders[gram])
            passages.append((start, place + NGRAM, others))
    return passages
