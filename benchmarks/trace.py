"""Times `trace` beside a plain scan of the same texts: `python benchmarks/trace.py <dataset>`

The texts asked for are pieces of documents, every other one shuffled. The scan looks up each 7-gram of each document
among those of one text, and has to find the same coverage. Times are CPU seconds, so that a busy machine counts less.
"""

import random
import resource
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from flexqwen.data.texts import read_file
from flexqwen.data.trace import Index

TEXTS, PIECES, PIECE, NGRAM = 20, 20, 50, 7  # 20 texts of 1,000 words


def measure(dataset: Path, place: Path, texts: list[str]) -> tuple[list[float], float, int]:
    """CPU seconds of each call of `trace`, coverage of the last text, peak memory in MiB."""
    index, seconds = Index(dataset, place), []
    for text in texts[:1] + texts:
        start = time.process_time()
        found = index.trace(text)
        seconds.append(time.process_time() - start)
    return seconds[1:], found["coverage"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(dataset: Path) -> None:
    files = sorted(file for file in dataset.glob("data/*/*.parquet") if file.parent.name != "index")
    size = sum(len(text.encode()) for file in files for _, text in read_file(file))
    source, texts = random.Random(0), []
    documents = [words[:PIECE] for _, text in read_file(files[0]) if len(words := text.split()) >= PIECE]
    for _ in range(TEXTS):
        pieces = enumerate(source.sample(documents, PIECES))
        texts.append(" ".join(" ".join(source.sample(piece, PIECE) if i % 2 else piece) for i, piece in pieces))
    with tempfile.TemporaryDirectory() as folder, get_context("spawn").Pool(1) as pool:
        place, start = Path(folder) / "index", time.process_time()
        Index(dataset, place)
        made, stored = time.process_time() - start, sum(file.stat().st_size for file in place.glob("*/*"))
        seconds, coverage, memory = pool.apply(measure, (dataset, place, texts))
    answer, start = statistics.median(seconds), time.process_time()
    words = texts[-1].split()
    grams = list(zip(*(words[k:] for k in range(NGRAM)), strict=False))
    wanted, held = set(grams), set()
    for theirs in (text.split() for file in files for _, text in read_file(file)):
        held |= wanted.intersection(zip(*(theirs[k:] for k in range(NGRAM)), strict=False))
    scan = time.process_time() - start
    covered = {place + k for place, gram in enumerate(grams) if gram in held for k in range(NGRAM)}
    assert coverage == len(covered) / len(words)
    print(f"index: {made:.1f} s for {size / 1e6:.0f} MB of text, {stored / size:.2f} times its size (at most 1.5)")
    print(f"answer to 1,000 words: {1000 * answer:.0f} ms (at most 200), {memory} MiB at the peak (at most 300)")
    print(f"plain scan: {scan:.1f} s, {scan / answer:,.0f} times as long")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
