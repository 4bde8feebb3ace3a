"""Documents -> their originality, recomputed from 7-grams, and how it agrees with what the headers state."""

from pathlib import Path
from typing import Any

import numpy as np

from flexqwen.data import ngrams
from flexqwen.data.corpus import MIN_TOKENS
from flexqwen.data.documents import Documents, read_stored_texts
from flexqwen.files import atomic_write
from flexqwen.parallel import Pool


def score_documents(documents: Documents, folder: Path, memory: int, pool: Pool) -> np.ndarray:
    """Sets the `ngram` of the documents; leaves runs of 7-grams in `folder`, and uses those that are there.

    Returns their originality among documents of at least 21 tokens only (float64, NaN for the others).
    """
    shards = documents.group_by_shard(np.arange(len(documents)))
    tasks = [(*shard, folder / f"{number:06}") for number, shard in enumerate(shards)]
    totals = pool.map(store_grams, tasks, "Hashing 7-grams", [file.stat().st_size for file, _ in shards])
    first = np.concatenate([[0], np.cumsum([len(part) for part in totals])])  # document of each shard
    names = sorted(file.name.removesuffix(".hashes.npy") for file in folder.glob("*.hashes.npy"))
    numbers = [map(int, name.split("-")) for name in names]  # of the shard, and of the run's first document there
    runs = [(folder / name, int(first[shard]) + done) for name, (shard, done) in zip(names, numbers, strict=True)]
    total = np.concatenate(totals)
    long = documents.tokens >= MIN_TOKENS
    ranges = ngrams.cut_ranges(int(total.sum()), memory, pool.workers)
    tasks = [(runs, low, high, [np.ones(len(total), bool), long]) for low, high in ranges]
    copied = np.zeros((2, len(total)), np.int64)
    for part in pool.map(ngrams.count_copied, tasks, "Scoring"):
        copied += part
    documents.ngram = ngrams.compute_percentage(total - copied[0], total)
    total = np.where(long, total, 0)
    return ngrams.compute_percentage(total - copied[1], total)


def store_grams(file: Path, rows: np.ndarray, path: Path) -> np.ndarray:
    """Leaves sorted runs of the 7-grams of some documents, unless they are there; returns each document's number."""
    totals_file = path.with_suffix(".npy")
    if not totals_file.is_file():
        totals, done = [np.empty(0, np.int64)], 0
        for texts in read_stored_texts(file, rows):
            grams, counts = ngrams.hash_ngrams(texts)
            ngrams.write_run(path.with_name(f"{path.name}-{done}"), grams, counts)
            totals.append(counts)
            done += len(texts)
        with atomic_write(totals_file) as partial, open(partial, "wb") as out:
            np.save(out, np.concatenate(totals))
    return np.load(totals_file)


def measure_agreement(documents: Documents, among_long: np.ndarray) -> dict[str, Any]:
    """How the recomputed originality agrees with the header's, over documents of at least 21 tokens that have both.

    `column` is the dataset's, among all documents; `among_long`, among those of 21 tokens or more, as the header's may
    be: of the real documents that score under 99 in the one and 100 in the other, it calls 91 % wholly original.
    """
    from scipy.stats import spearmanr

    both = ~np.isnan(documents.header) & ~np.isnan(documents.ngram)
    header = documents.header[both]
    found: dict[str, Any] = {"documents": len(header)}
    for name, ngram in (("column", documents.ngram[both]), ("among_long", among_long[both])):
        if len(header) > 1 and header.std() > 0 and ngram.std() > 0:
            found[name] = {
                "pearson": round(float(np.corrcoef(header, ngram)[0, 1]), 4),
                "spearman": round(float(spearmanr(header, ngram).statistic), 4),
                "mean_absolute_difference": round(float(np.abs(header - ngram).mean()), 2),
            }
    return found
