"""Times the dataset build beside what it is held to, in one run: `python benchmarks/corpus.py --corpus <folder>`

1. The whole build (read, verify, score, split, write) with two workers, against a plain one-thread
   `lxml.etree.iterparse` over the same shards that keeps nothing: at most 1.2 times its time, at most 2 GiB.
2. The build over 1/4, 1/2 and all shards: time grows linearly.
3. What that makes of the whole corpus.
4. Scoring alone, from Parquet, in one process: CPU seconds per GB of UTF-8 text, over 1/4, 1/2 and all documents, and
   over as much text in documents of 2,000 characters, which are as long as the Web's, the best of three runs, as other
   processes on the machine take time from the caches and memory of these; beside hashing whole documents
   to find exact duplicates, and, with --peer-python (an environment with benchmarks/requirements.txt), datatrove's
   MinHash deduplication in its default configuration, on the same.
"""

import argparse
import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

WHOLE_XML, WHOLE_DOCUMENTS = 15e9, 2_100_000
TEI = "{http://www.tei-c.org/ns/1.0}TEI"


def plain(folder: str) -> None:
    """The yardstick: parses every shard on one thread and throws the documents away."""
    from lxml import etree

    for path in sorted(Path(folder).rglob("*.xml.gz")):
        with gzip.open(path) as file:
            for _, element in etree.iterparse(file, tag=TEI):
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]


def peer(folder: str) -> None:
    """datatrove's MinHash deduplication of <folder>/documents/, two workers. Runs in the peer's environment."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.typeshelper import Languages

    config = MinhashConfig()

    def place(name: str) -> str:
        return f"{folder}/{name}"

    stages = (
        (
            2,
            [
                ParquetReader(place("documents")),
                MinhashDedupSignature(place("signatures"), config, Languages.portuguese),
            ],
        ),
        (config.num_buckets, [MinhashDedupBuckets(place("signatures"), place("buckets"), config=config)]),
        (1, [MinhashDedupCluster(place("buckets"), place("remove"), config=config)]),
        (2, [ParquetReader(place("documents")), MinhashDedupFilter(place("remove")), JsonlWriter(place("kept"))]),
    )
    for number, (tasks, pipeline) in enumerate(stages):
        how = {"workers": 2, "start_method": "fork"}  # of processes started otherwise the times are not counted here
        LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=place(f"logs/{number}"), **how).run()


def score(folder: str) -> dict[str, float]:
    """CPU seconds of each stage of scoring, as the builder does it; what it read; and the peak of memory."""
    import numpy as np
    import pyarrow as pa
    import scipy.stats  # noqa: F401  which the builder loads

    from flexqwen.data.collection import open_collection
    from flexqwen.data.documents import open_documents, store_shards
    from flexqwen.data.ngrams import count_copied, count_words, find_first, hash_ngrams, write_run
    from flexqwen.data.scores import score_documents, store_grams
    from flexqwen.parallel import Pool

    pa.array(np.empty(0))  # loads pandas, where there is one
    found, times = {}, [time.process_time()]

    def lap(name: str) -> None:
        times.append(time.process_time())
        found[name] = times[-1] - times[-2]

    with tempfile.TemporaryDirectory() as work, Pool(1) as pool:
        one, text = Path(work) / "one", pa.array(["a b c d e f g"])
        write_run(one, *hash_ngrams(text))  # all a first time, which loads the compiled loops, or compiles them
        count_copied([(one, 0)], 0, (1 << 64) - 1, [find_first(text) == 0, count_words(text) == 7])
        one.with_name("one.hashes.npy").unlink()
        lap("load")
        files, _ = store_shards(open_collection([folder], {}).shards, Path(work) / "documents", False, False, pool)
        documents, _ = open_documents(files, None, 0)
        lap("read")
        for number, shard in enumerate(documents.group_by_shard(np.arange(len(documents)))):
            store_grams(*shard, Path(work) / f"{number:06}")
        lap("hash")
        score_documents(documents, Path(work), 2 << 30, pool)
        lap("count")
    status = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the parent
    return found | {"peak": next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024}


def exact(folder: str) -> dict[str, float]:
    """CPU seconds of finding exact duplicates by a hash of each document."""
    import hashlib

    import pyarrow.parquet as pq

    start, seen = time.process_time(), set()
    for path in sorted(Path(folder).iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(1024, columns=["text"]):
            seen.update(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in batch["text"].to_pylist())
    return {"exact": time.process_time() - start}


class Run(NamedTuple):
    seconds: float
    cpu: float  # seconds of all its processes: what an otherwise busy machine does not change
    peak: float  # MiB, proportional set size of all its processes, sampled


def run(*command: str) -> Run:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_memory, _processes(process.pid))))
        time.sleep(0.3)  # more often would take a processor's time from the build
    if process.returncode:
        sys.exit(f"failed, run it by itself to see why: {' '.join(command)}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(time.perf_counter() - start, cpu, peak / 1024)


def _processes(session: int) -> list[Path]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3]) == session:
                found.append(folder)
        except OSError:
            continue
    return found


def _memory(folder: Path) -> int:
    """KiB of a process; pages shared by several processes are divided between them."""
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def build(corpus: Path, output: Path) -> tuple[Run, int]:
    """The build with two workers, and how many documents it read."""
    script = str(ROOT / "carolina_originality.py")
    options = ("--corpus", str(corpus), "--output", str(output), "--workers", "2")
    done = run(sys.executable, script, "build", *options)
    return done, json.loads((output / "manifest.json").read_text())["documents"]["read"]


def part_of(corpus, folder: Path, step: int) -> int:
    """Links every `step`-th shard into `folder`; returns the bytes of their XML."""
    size = 0
    for shard in corpus.shards[::step]:
        link = folder / shard.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(shard.path.resolve())
        with open(shard.path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            size += struct.unpack("<I", file.read())[0]  # a gzip file ends with the length of its content
        sums = folder / shard.taxonomy / "checksum.sha256"
        if not sums.exists():
            sums.symlink_to((corpus.folder / shard.taxonomy / "checksum.sha256").resolve())
    return size


def write_documents(texts: Iterable[str], folder: Path) -> dict[str, int]:
    """Writes texts as two Parquet files; returns how many, and their bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    folder.mkdir(parents=True)
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(rows[part::2]), folder / f"{part}.parquet")
    return {"documents": len(rows), "bytes": sum(len(row["text"].encode()) for row in rows)}


def join_texts(texts: list[str], least: int = 2000) -> Iterator[str]:
    """Neighbours joined into documents of so many characters or more."""
    joined: list[str] = []
    for text in texts:
        joined.append(text)
        if sum(map(len, joined)) >= least:
            yield "\n".join(joined)
            joined = []


def measure_scoring(corpus, folder: Path, peer_python: str | None, peer_documents: int) -> list[dict]:
    """Scoring beside exact duplicates and MinHash, and what of it is for each GB."""
    from collections import Counter

    from flexqwen.data.corpus import read_shard

    texts = [document.text for shard in corpus.shards for document in read_shard(shard, Counter(), False)]
    steps = {f"1/{step} of the documents": (texts[::step], False) for step in (4, 2, 1)}
    steps["in documents of 2,000 characters"] = (join_texts(texts), False)
    few = texts[:: max(1, len(texts) // peer_documents)]
    steps |= {"for MinHash": (few, True), "for MinHash, 2,000 characters": (join_texts(few), True)}
    rows = []
    for number, (name, (chosen, with_peer)) in enumerate(steps.items()):
        place = folder / f"scored{number}"
        row = {"name": name, **write_documents(chosen, place / "documents")}
        for part in ("score", "exact"):
            command = (sys.executable, __file__, part, str(place / "documents"))
            runs = [subprocess.run(command, capture_output=True, check=True, text=True).stdout for _ in range(3)]
            row |= min(map(json.loads, runs), key=lambda run: sum(run.values()) - run.get("peak", 0))
        scored = row["read"] + row["hash"] + row["count"]
        row["scored_per_gb"], row["exact_per_gb"] = (1e9 * each / row["bytes"] for each in (scored, row["exact"]))
        of_these = ", ".join(f"{part} {1e9 * row[part] / row['bytes']:.1f}" for part in ("read", "hash", "count"))
        print(
            f"scoring {name}: {row['documents']:,} documents, {row['bytes'] / 1e6:.0f} MB: {row['scored_per_gb']:.1f} "
            f"CPU s per GB of text ({of_these}; at most 10), {row['peak']:.0f} MiB at the peak (at most 2048)\n"
            f"  exact duplicates of documents: {row['exact_per_gb']:.1f} CPU s per GB"
        )
        if with_peer and peer_python:
            row["minhash"] = run(peer_python, __file__, "peer", str(place)).cpu
            row["minhash_per_gb"] = 1e9 * row["minhash"] / row["bytes"]
            times = row["minhash"] / scored
            print(f"  datatrove MinHash: {row['minhash_per_gb']:.1f} CPU s per GB, {times:.1f} times the scoring's")
        rows.append(row)
    return rows


def main() -> None:
    from flexqwen.data.collection import open_collection
    from flexqwen.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=os.environ.get("CAROLINA_CORPUS"), help="or CAROLINA_CORPUS")
    parser.add_argument("--peer-python", help="interpreter of an environment with benchmarks/requirements.txt")
    parser.add_argument("--peer-documents", type=int, default=40_000)
    parser.add_argument("--only", choices=("build", "scoring"))
    parser.add_argument("--output", type=Path, help="a file of JSON for the figures of scoring")
    args = parser.parse_args()
    if args.corpus is None:
        parser.error("give --corpus, or set CAROLINA_CORPUS")
    corpus = open_collection([args.corpus], {})
    with tempfile.TemporaryDirectory() as name:
        if args.only != "scoring":
            measure_build(corpus, Path(name))
        if args.only != "build":
            rows = measure_scoring(corpus, Path(name), args.peer_python, args.peer_documents)
            if args.output:
                write_json(args.output, {"machine": describe_machine(), "rows": rows})


def describe_machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} cores of {model}; load average {os.getloadavg()[1]:.1f}"


def measure_build(corpus, folder: Path) -> None:
    steps = (4, 2, 1)
    sizes = {step: part_of(corpus, folder / f"part{step}", step) for step in steps}
    command = (sys.executable, __file__, "plain", str(folder / "part1"))
    before = run(*command)
    built, documents = {}, {}
    for step in steps:
        built[step], documents[step] = build(folder / f"part{step}", folder / f"out{step}")
    after = run(*command)
    plain_seconds = (before.seconds + after.seconds) / 2
    whole, half, rate = built[1], built[2], documents[1] / built[1].seconds

    print(f"{len(corpus.shards)} shards, {sizes[1] / 1e9:.2f} GB of XML, {documents[1]:,} documents")
    print(f"plain iterparse, one thread: {before.seconds:.1f} s before, {after.seconds:.1f} s after the builds")
    print(f"whole build, two workers: {whole.seconds:.1f} s, {rate:,.0f} documents/s")
    print(f"  {whole.seconds / plain_seconds:.2f} times the plain one (at most 1.2)")
    print(f"  CPU: {whole.cpu:.1f} s against {(before.cpu + after.cpu) / 2:.1f} s")
    print(f"  {whole.peak:.0f} MiB at the peak, all processes (at most 2048)")
    for step in steps:
        done, size = built[step], sizes[step] / 1e9
        print(
            f"build of 1/{step} of the shards, {size:.2f} GB: {done.seconds:.1f} s, {done.cpu:.1f} s CPU; "
            f"{done.seconds / size:.1f} s/GB, {done.cpu / size:.1f} s CPU/GB"
        )

    # What the second half of the shards added, for each further GB and for each further document.
    seconds = (whole.seconds - half.seconds) / (sizes[1] - sizes[2])
    memory = (whole.peak - half.peak) / (documents[1] - documents[2])
    minutes = (whole.seconds + seconds * (WHOLE_XML - sizes[1])) / 60
    peak = whole.peak + memory * (WHOLE_DOCUMENTS - documents[1])
    print(
        f"the whole corpus, {WHOLE_XML / 1e9:.0f} GB and {WHOLE_DOCUMENTS:,} documents: {minutes:.1f} minutes and "
        f"{peak:.0f} MiB, if each further GB takes the {seconds * 1e9:.1f} s, and each further document the "
        f"{memory * 1024:.2f} KiB, that the second half of these shards took"
    )


if __name__ == "__main__":
    if sys.argv[1:2] in (["plain"], ["peer"]):
        globals()[sys.argv[1]](sys.argv[2])
    elif sys.argv[1:2] in (["score"], ["exact"]):
        print(json.dumps(globals()[sys.argv[1]](sys.argv[2])))
    else:
        main()
