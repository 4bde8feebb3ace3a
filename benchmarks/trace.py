"""Times `trace` beside a plain scan of the same texts: `python benchmarks/trace.py <dataset or corpus> [<result.json>]`

The texts asked for are pieces of documents, every other one shuffled. The scan looks up each 7-gram of each document
among those of one text, and has to find the same coverage. Times are CPU seconds, so that a busy machine counts less.
"""

import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

from flexqwen.data.trace import Index, list_sources, read_tables
from flexqwen.files import write_json

TEXTS, PIECES, PIECE, NGRAM = 20, 20, 50, 7  # 20 texts of 1,000 words


def measure(dataset: Path, place: Path, texts: list[str]) -> tuple[list[float], float, int]:
    """CPU seconds of each call of `trace`, coverage of the last text, peak memory in MiB."""
    index, seconds = Index(dataset, place), []
    for text in texts[:1] + texts:
        start = time.process_time()
        found = index.trace(text)
        seconds.append(time.process_time() - start)
    return seconds[1:], found["coverage"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def read_texts(files: list) -> Iterator[str]:
    return (text for table in read_tables(files) for text in table["text"].to_pylist())


def main(dataset: Path, result: Path | None = None) -> None:
    files = [file for *_, file in list_sources(dataset)[0]]
    size = sum(len(text.encode()) for text in read_texts(files))
    source, texts = random.Random(0), []
    documents = [words[:PIECE] for text in read_texts(files[:20]) if len(words := text.split()) >= PIECE]
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
    for theirs in map(str.split, read_texts(files)):
        held |= wanted.intersection(zip(*(theirs[k:] for k in range(NGRAM)), strict=False))
    scan = time.process_time() - start
    covered = {place + k for place, gram in enumerate(grams) if gram in held for k in range(NGRAM)}
    assert coverage == len(covered) / len(words)
    print(f"index: {made:.1f} s for {size / 1e6:.0f} MB of text, {stored / size:.2f} times its size (at most 1.5)")
    print(f"answer to 1,000 words: {1000 * answer:.0f} ms (at most 200), {memory} MiB at the peak (at most 300)")
    print(f"plain scan: {scan:.1f} s, {scan / answer:,.0f} times as long")
    if result:
        found = {
            "machine": platform.machine(),
            "load_average": os.getloadavg()[0],
            "text_bytes": size,
            "files": len(files),
        }
        found |= {"index_cpu_seconds": made, "index_times_text": stored / size, "plain_scan_cpu_seconds": scan}
        write_json(result, found | {"answer_cpu_seconds": answer, "answer_peak_mib": memory})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
