"""Builds the Carolina Originality dataset: shards -> documents -> scores -> splits -> Parquet, manifest and card.

All work happens in `<output>.partial/`, from which the next build resumes: it keeps finished shards (`documents/`) and,
if its inputs are the same, their 7-grams (`<inputs>/runs-<n>/`). At the end `<inputs>/dataset/` becomes `<output>`.
"""

import fcntl
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flexqwen.cli import InputError, describe_os_error, locate_error
from flexqwen.data import card, documents, ngrams, splits
from flexqwen.data.collection import open_collection
from flexqwen.data.corpus import MIN_TOKENS, Corpus
from flexqwen.data.documents import Documents, keep_only, open_documents, read_stored_texts, store_shards
from flexqwen.data.ngrams import mean_known
from flexqwen.data.parquet import write_splits
from flexqwen.data.passages import LIMIT, Passages, hash_passages
from flexqwen.data.scores import measure_agreement, score_documents
from flexqwen.data.texts import read_manifest
from flexqwen.files import (
    digest,
    is_made,
    read_json,
    remove_leftovers,
    remove_path,
    replace_path,
    resolve_output,
    versions,
    write_json,
)
from flexqwen.parallel import Pool, delay_interrupts

NAME = "carolina_originality"
FORMAT = 1  # of the dataset: raise it where the same inputs give other Parquet files, in whichever module


@dataclass(frozen=True)
class Parameters:
    """What a build depends on besides the corpus. These make its bytes; the numbers of workers and of bytes do not."""

    seed: int = 0  # of every random choice
    documents: int | None = None  # use only so many, a random sample over all shards
    measure: str = "header"  # the originality that makes the splits: the corpus's own, or "ngram", recomputed
    skip_bad_shards: bool = False  # leave out and list what cannot be trusted, instead of stopping there
    with_all: bool = False  # a config of all documents but the held-out ones, too

    def describe(self) -> dict[str, Any]:
        """For the manifest; `with_all` only where it is set, so that other builds are what they were before it."""
        return {name: value for name, value in asdict(self).items() if name != "with_all" or value}


def build(
    places: str | Path | Sequence[str],
    output: str | Path,
    parameters: Parameters,
    workers=2,
    memory=2.0,
    overwrite=False,
    columns: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Builds the dataset folder `output` and returns its manifest; reuses a finished one that has the same inputs.

    `places` and `columns` are as `open_collection` has them; `memory` is the GiB that scoring may take in all of its
    processes, the `workers`. `overwrite` replaces an `output` of other inputs, or without bad shards; of the
    same, it writes only the card.
    """
    output = resolve_output(output)
    if not output.name:
        raise InputError(f"--output {output}: give the name of a folder to make")
    limits = (("documents", parameters.documents, "1"), ("seed", parameters.seed, "0"), ("workers", workers, "1"))
    limits += (("memory", memory, "0.25 (GiB)"),)
    for name, value, least in limits:
        if value is not None and value < float(least.split()[0]):
            raise InputError(f"--{name} {value}: give {least} or more")
    corpus = open_collection([places] if isinstance(places, (str, Path)) else places, columns or {})
    if corpus.columns is not None and parameters.measure == "header":
        print("no header states an originality: the splits are made by the recomputed one (--measure ngram)")
        parameters = replace(parameters, measure="ngram")
    described = {name: getattr(corpus, name) for name in ("absent", "strays", "generated")}
    described |= {} if corpus.columns is None else {"columns": corpus.columns}
    described["shards"] = {shard.name: [shard.sha256, shard.size] for shard in corpus.shards}
    described |= {"parameters": parameters.describe(), "formats": [documents.FORMAT, ngrams.FORMAT, FORMAT]}
    inputs = digest(described)
    try:
        with lock_work_folder(output) as work:
            found = read_json(output / "manifest.json")
            found = found if isinstance(found, dict) and found.get("dataset") == NAME else None
            bad = len(found["shards"]["bad"]) if found else 0
            if not is_made(output, found, {"inputs": None if bad and overwrite else inputs}, overwrite):
                with Pool(workers) as pool:
                    make_dataset(corpus, work, inputs, parameters, pool, int(memory * (1 << 30)))
                replace_path(work / inputs / "dataset", output)
                print(f"{output}: built")
            elif overwrite:
                card.write_card(output)
            elif bad:
                print(f"without {bad} bad shards; when they are mended, --overwrite reads them again")
            remove_path(work)
    except OSError as error:  # a full disk, above all
        described = describe_os_error(locate_error(error, output))
        raise InputError(f"{described}, and run the same again; finished shards are kept") from error
    return read_manifest(output)


@contextmanager
def lock_work_folder(output: Path) -> Iterator[Path]:
    """Yields the path of the work folder, which no other build uses meanwhile; an error tells what is kept there."""
    work = output.with_name(output.name + ".partial")
    work.parent.mkdir(parents=True, exist_ok=True)
    lock_file = output.with_name(output.name + ".lock.partial")
    with open(lock_file, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{work}: another build is at work there; wait for it") from error
        remove_leftovers(output)
        try:
            yield work
        except InputError as error:
            if not any(work.glob("documents/*.json")):
                raise
            raise InputError(f"{error}; finished shards are kept in {work} for the next build") from error
        finally:
            remove_path(lock_file)


def make_dataset(corpus: Corpus, work: Path, inputs: str, parameters: Parameters, pool: Pool, memory: int) -> None:
    """Makes `<work>/<inputs>/dataset`; `memory` in bytes."""
    with delay_interrupts():  # what these load may swallow an interrupt
        importlib.import_module("matplotlib.figure")
        importlib.import_module("scipy.stats")
        pa.array(np.empty(0))  # pyarrow loads pandas, where there is one
    keep_only(work, {"documents", inputs})
    folder = work / inputs
    remove_path(folder / "dataset")
    (folder / "dataset").mkdir(parents=True)

    need_originality, skip_bad = parameters.measure == "header", parameters.skip_bad_shards
    files, reports = store_shards(corpus.shards, work / "documents", need_originality, skip_bad, pool)
    bad = [shard.name for shard, report in zip(corpus.shards, reports, strict=True) if report["bad"]]
    runs = folder / (ngrams.RUNS + (f"-without-{digest(bad)[:12]}" if bad else ""))  # one that is mended comes in
    for former in folder.glob("runs-*"):  # of another version
        if not former.name.startswith(ngrams.RUNS):
            remove_path(former)
    runs.mkdir(exist_ok=True)
    in_use, dropped = open_documents(files, parameters.documents, parameters.seed)
    for report in reports:
        dropped.update(report["dropped"])
    dropped = dict(sorted(dropped.items()))
    among_long = score_documents(in_use, runs, memory, pool)
    chosen = choose_splits(in_use, parameters, folder / "heldout.npy", pool)
    bytes_, shares = write_splits(folder / "dataset", in_use, chosen, folder / "heldout.npy", pool)
    checks = splits.check(chosen, in_use.tokens, getattr(in_use, parameters.measure), in_use.typology, shares)
    if failed := [name for name, result in checks.items() if not result["passed"]]:
        raise InputError(f"the splits do not pass the check '{failed[0]}'; give more shards or more --documents")

    read = list(zip(corpus.shards, reports, strict=True))
    manifest = {
        "dataset": NAME,
        "generated": corpus.generated,
        "inputs": inputs,
        "parameters": parameters.describe(),
        "versions": versions("lxml", "matplotlib", "numpy", "pyarrow", "scipy"),
        "documents": {"read": sum(r["read"] for r in reports), "kept": len(in_use), "dropped": dropped},
        "splits": describe_splits(in_use, chosen, bytes_),
        "agreement": measure_agreement(in_use, among_long),
        "checks": checks,
        "shards": {
            "used": {s.name: {"sha256": s.sha256, "documents": r["read"]} for s, r in read if not r["bad"]},
            "bad": {s.name: r["bad"] for s, r in read if r["bad"]},
            "absent": corpus.absent,
        },
        "stray_files": corpus.strays,
    }
    if corpus.columns is not None:
        manifest |= {"corpus": corpus.source, "columns": corpus.columns}
    write_json(folder / "dataset" / "manifest.json", manifest)
    card.write_card(folder / "dataset")


def choose_splits(scored: Documents, parameters: Parameters, heldout_file: Path, pool: Pool) -> splits.Splits:
    """The splits. Leaves the hashes of the held-out documents' 13-grams in `heldout_file` (uint64, ascending)."""
    tokens = scored.tokens
    columns = tokens, getattr(scored, parameters.measure), scored.typology
    proposed = splits.propose(*columns, parameters.seed, parameters.with_all)
    heldout = np.unique(np.concatenate(list(proposed.heldout.values())))
    hashes = pool.map(hash_stored_passages, scored.group_by_shard(heldout), "Held-out passages")
    np.save(heldout_file, np.unique(np.concatenate(hashes)))

    training = np.unique(np.concatenate(list(proposed.training.values())))
    tasks = [(*shard, heldout_file) for shard in scored.group_by_shard(training)]
    shares = np.zeros(len(tokens))
    shares[training] = np.nan_to_num(np.concatenate(pool.map(find_heldout_shares, tasks, "Decontaminating")))
    return splits.decontaminate(proposed, shares >= LIMIT, tokens, parameters.seed)


def hash_stored_passages(file: Path, rows: np.ndarray) -> np.ndarray:
    """13-gram hashes of some documents of an Arrow file."""
    return np.concatenate([np.empty(0, np.uint64), *(hash_passages(t)[0] for t in read_stored_texts(file, rows))])


def find_heldout_shares(file: Path, rows: np.ndarray, heldout_file: Path) -> np.ndarray:
    """Share of each of some documents' 13-grams that is in `heldout_file`, NaN for under 13 words."""
    heldout = Passages(np.load(heldout_file))
    return np.concatenate([np.empty(0), *(heldout.find_shares(texts) for texts in read_stored_texts(file, rows))])


def describe_splits(scored: Documents, chosen: splits.Splits, bytes_: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Documents, tokens, bytes and mean originality of each split, by `<config>/<split>`."""
    ngram = np.where(scored.tokens >= MIN_TOKENS, scored.ngram, np.nan)
    return {
        name: {
            "documents": len(part),
            "tokens": int(scored.tokens[part].sum()),
            "bytes": bytes_[name],
            "originality": mean_known(scored.header[part], 2),
            "ngram_originality": mean_known(ngram[part], 2),
            "size": chosen.notes.get(name, "all"),
        }
        for name, part in (chosen.parts() | {"index/train": np.arange(len(scored))}).items()
    }
