"""Times the dataset build beside what it is held to, in one run: `python benchmarks/corpus.py --corpus <folder>`

1. The whole build (read, verify, score, split, write) with two workers, against a plain one-thread
   `lxml.etree.iterparse` over the same shards that keeps nothing: at most 1.5 times its time, at most 2 GiB.
2. The build over 1/4, 1/2 and all shards: time grows linearly.
3. With --peer-python (an environment with benchmarks/requirements.txt): datatrove's MinHash deduplication of documents
   drawn evenly from the same shards, two workers, default configuration: at most a tenth of the build's documents per
   second.
4. What that makes of the whole corpus.
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
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=place(f"logs/{number}")).run()


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
        time.sleep(0.1)
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


def write_documents(corpus, folder: Path, documents: int, of: int) -> int:
    """Writes documents drawn evenly from all shards as two Parquet files; returns how many."""
    from collections import Counter

    import pyarrow as pa
    import pyarrow.parquet as pq

    from flexqwen.data.corpus import read_shard

    drawn, number = [], 0
    for shard in corpus.shards:
        for document in read_shard(shard, Counter()):
            if number * documents // of != (number + 1) * documents // of:
                drawn.append({"id": document.id, "text": document.text})
            number += 1
    folder.mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(drawn[part::2]), folder / f"{part}.parquet")
    return len(drawn)


def main() -> None:
    from flexqwen.data.corpus import open_corpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=os.environ.get("CAROLINA_CORPUS"), help="or CAROLINA_CORPUS")
    parser.add_argument("--peer-python", help="interpreter of an environment with benchmarks/requirements.txt")
    parser.add_argument("--peer-documents", type=int, default=40_000)
    args = parser.parse_args()
    if args.corpus is None:
        parser.error("give --corpus, or set CAROLINA_CORPUS")
    corpus = open_corpus(args.corpus)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
        print(f"  {whole.seconds / plain_seconds:.2f} times the plain one (at most 1.5)")
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

        if args.peer_python:
            count = write_documents(corpus, folder / "documents", args.peer_documents, documents[1])
            took = run(args.peer_python, __file__, "peer", str(folder)).seconds
            print(f"datatrove MinHash, two workers: {took:.1f} s, {count:,} documents, {count / took:,.0f} documents/s")
            print(f"  the build has {rate * took / count:.1f} times its documents per second (at least 10)")


if __name__ == "__main__":
    if sys.argv[1:2] in (["plain"], ["peer"]):
        globals()[sys.argv[1]](sys.argv[2])
    else:
        main()
