"""n-gram originality of a corpus that is too large for one machine, on a cluster of datatrove's executors.

    python jobs/originality.py --corpus /shared/corpus --output /shared/scores --executor ray

leaves `scores/<task>.parquet` there: file, id, 7-grams, those that no other document holds, and the originality of each
document, in the order of the files. The tasks of three stages leave a folder or a file each, whole or not at all; the
same command again does those that are not done:

    grams/<task>/     hashes of the 7-grams of some files, and where each range of hashes starts among them
    counts/<range>/   documents of the 7-grams of a range that another document holds too, by task
    scores/<task>     these counted, for the documents of a task

Every machine has this code and datatrove, and sees the corpus and the output at the same path. Slurm: read, not run.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from flexqwen.cli import ArgumentParser, InputError, command
from flexqwen.data.collection import open_collection
from flexqwen.data.corpus import Shard
from flexqwen.data.ngrams import (
    compute_percentage,
    cut_batches,
    cut_hashes,
    find_copied,
    hash_ngrams,
    write_run,
)
from flexqwen.files import atomic_write, read_json, write_json
from flexqwen.parallel import Pool

FORMAT = 5  # of what a stage leaves for the next
MOST_RANGES = 1 << 16  # no more can be told apart by the first bits of a hash
_RECORD_BYTES = 80  # of memory, for each 7-gram of a range or of a run
_TEXT_BYTES = 6  # for each 7-gram, about


class Stage(PipelineStep):
    type = "originality"

    def __init__(self, folder: Path, shards: list[Shard], tasks: int, ranges: int, records: int):
        super().__init__()
        self.folder, self.shards, self.tasks, self.ranges, self.records = folder, shards, tasks, ranges, records


class HashGrams(Stage):
    name = "grams"

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        edges = np.array(cut_hashes(self.ranges)[:-1], np.uint64)
        schema = pa.schema({"file": pa.string(), "id": pa.string(), "ngrams": pa.int64()})
        tables = [schema.empty_table()]
        with atomic_write(self.folder / f"grams/{rank:05}") as partial:
            partial.mkdir()
            done = 0
            first, end = (len(self.shards) * part // world_size for part in (rank, rank + 1))
            grams = self.hash_documents(self.shards[first:end], tables)
            for run in cut_batches(grams, self.records, lambda batch: len(batch[0])):
                hashes, counts = map(np.concatenate, zip(*run, strict=True))
                write_run(partial / str(done), hashes, counts)
                hashes = np.load(partial / f"{done}.hashes.npy", mmap_mode="r")
                np.save(partial / f"{done}.starts.npy", np.append(np.searchsorted(hashes, edges), len(hashes)))
                done += len(counts)
            pq.write_table(pa.concat_tables(tables), partial / "documents.parquet", compression="zstd")

    def hash_documents(self, shards: list[Shard], tables: list[pa.Table]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for shard in shards:
            for batch in shard.read_batches(Counter(), False):
                grams, counts = hash_ngrams(batch["text"])
                names = {"file": [shard.name] * len(batch), "id": batch["id"]}
                tables.append(pa.table(names | {"ngrams": counts}))
                yield grams, counts
                self.stat_update("text", value=pc.sum(pc.binary_length(batch["text"])).as_py(), unit="batch")


class CountRange(Stage):
    name = "counts"

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        edges = cut_hashes(self.ranges)
        hashes, documents = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for task in range(self.tasks):
            for starts in sorted(self.folder.glob(f"grams/{task:05}/*.starts.npy")):
                path = str(starts).removesuffix(".starts.npy")
                hashes.append(read_part(f"{path}.hashes.npy", starts, rank))
                own = read_part(f"{path}.documents.npy", starts, rank)
                first = int(starts.name.split(".")[0])  # of the run's documents
                documents.append(own.astype(np.uint64) + np.uint64(task << 32 | first))
        starts, documents = np.cumsum([len(part) for part in hashes]), np.concatenate(documents)
        copied = find_copied(np.concatenate(hashes), documents, starts, edges[rank], edges[rank + 1] - 1)
        copied = np.sort(copied[1])
        with atomic_write(self.folder / f"counts/{rank:05}") as partial:
            partial.mkdir()
            edges = np.arange(self.tasks + 1, dtype=np.uint64) << np.uint64(32)
            np.save(partial / "starts.npy", np.searchsorted(copied, edges))
            np.save(partial / "documents.npy", copied.astype(np.uint32))


class ScoreDocuments(Stage):
    name = "scores"

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        table = pq.read_table(self.folder / f"grams/{rank:05}/documents.parquet")
        unique = table["ngrams"].to_numpy().copy()
        for part in (self.folder / f"counts/{number:05}" for number in range(self.ranges)):
            unique -= np.bincount(read_part(part / "documents.npy", part / "starts.npy", rank), minlength=len(table))
        score = pa.array(compute_percentage(unique, table["ngrams"].to_numpy()), from_pandas=True)
        with atomic_write(self.folder / f"scores/{rank:05}.parquet") as partial:
            table = table.append_column("unique", pa.array(unique)).append_column("ngram_originality", score)
            pq.write_table(table, partial, compression="zstd")


def read_part(path: str | Path, starts: Path, number: int) -> np.ndarray:
    """What is of this range, or of this task, in a file; copied, as a part of a map would hold the file open."""
    start, end = np.load(starts, mmap_mode="r")[number : number + 2]
    return np.load(path, mmap_mode="r")[start:end].copy()


class Local(LocalPipelineExecutor):
    """datatrove's own waits forever for a task whose process was killed; this one ends, and says so."""

    def run(self) -> None:
        ranks = [(rank, 1) for rank in self.get_incomplete_ranks()]  # a local rank of 1 logs to its file only
        with Pool(self.workers) as pool:
            pool.map(self._run_for_rank, ranks, self.pipeline[0].name)


class Ray(RayPipelineExecutor):
    """datatrove's own waits forever, too: its tasks run in processes within Ray's. Here Ray sees it and tries again."""

    def run(self) -> None:
        import ray

        task = ray.remote(num_cpus=1, memory=int(self.mem_per_cpu_gb * (1 << 30)))(Ray._run_for_rank)
        this = ray.put(self)
        running = [task.remote(this, rank, 1) for rank in self.get_incomplete_ranks()]
        ray.wait(running, num_returns=len(running))


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="originality.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--corpus", nargs="+", required=True, help="as `carolina_originality.py build` takes it")
    add("--text_column", help="of Parquet or .jsonl, if it is not `text`")
    add("--id_column", help="the same, if it is not `id`")
    add("--output", type=Path, required=True, help="a folder that all machines share")
    add("--executor", choices=("local", "ray", "slurm"), default="local")
    add("--tasks", type=int, help="that the files are divided into; 1 a file by default, 1,000 at most")
    add(
        "--workers",
        type=int,
        help="tasks that run at a time: one a processor, by default; Slurm: all; not for Ray",
    )
    add("--memory", type=float, default=2, help="GiB that a task may take")
    add("--partition", help="Slurm's")
    add("--time", default="20:00:00", help="Slurm's limit for a task")
    args = parser.parse_args(argv)
    if min(args.tasks or 1, args.workers or 1, args.memory) <= 0:
        raise InputError("--tasks, --workers and --memory must be above 0")
    is_slurm = args.executor == "slurm"
    if is_slurm and not args.partition:
        raise InputError("--executor slurm needs a --partition")
    columns = {name: value for name in ("text", "id") if (value := getattr(args, f"{name}_column"))}
    corpus = open_collection(args.corpus, columns, verify=False)
    shards = corpus.shards
    tasks = min(args.tasks or 1000, len(shards))
    text = sum(shard.size * (1 if shard.name.endswith((".jsonl", ".txt")) else 4) for shard in shards)
    records = int(args.memory * (1 << 30)) // _RECORD_BYTES
    ranges = min(MOST_RANGES, max(1, -(-text // (_TEXT_BYTES * records))))
    identities = []
    for shard in shards:  # several files of plain text may be one
        times = [path.stat().st_mtime_ns for _, path in getattr(shard, "files", [("", shard.path)])]
        identities.append([shard.name, shard.size, times, columns])
    inputs = [FORMAT, tasks, ranges, records, corpus.source, identities]
    output = args.output.absolute()
    if (found := read_json(output / "inputs.json")) not in (None, inputs):
        raise InputError(f"{output} has scores of another corpus or other options; remove it, or name another")
    if found is None:
        write_json(output / "inputs.json", inputs)

    before, workers = None, args.workers or (-1 if is_slurm else os.cpu_count())
    for stage in (HashGrams, CountRange, ScoreDocuments):
        pipeline = [stage(output, shards, tasks, ranges, records)]
        common = {"tasks": ranges if stage is CountRange else tasks, "workers": workers, "depends": before}
        common["logging_dir"] = str(output / "logs" / stage.name)
        if is_slurm:
            how = {"time": args.time, "partition": args.partition, "mem_per_cpu_gb": math.ceil(args.memory)}
            before = SlurmPipelineExecutor(pipeline, **common, **how, job_name=f"originality-{stage.name}")
            continue
        if args.executor == "ray":
            executor = Ray(pipeline, **common, mem_per_cpu_gb=args.memory)
        else:
            executor = Local(pipeline, **common)
        executor.run()
        if left := executor.get_incomplete_ranks():
            what = f"{stage.name}: {len(left):,} of {common['tasks']:,} tasks failed"
            raise InputError(f"{what}, see {output}/logs/{stage.name}/logs; run the same again to do these")
    if is_slurm:
        before.run()
        print(f"submitted; {output / 'scores'} will hold {tasks:,} files")
    else:
        print(f"{output / 'scores'}: {tasks:,} files; {output}/grams and counts may go")


if __name__ == "__main__":
    main()
