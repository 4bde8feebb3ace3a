"""Reads the texts of a built dataset folder; all that training and evaluation know of it."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from flexqwen.cli import InputError, suggest_path
from flexqwen.files import file_digest, read_object
from flexqwen.remote import explain_failure

REMEDY = "copy it again, or build the dataset again"


def dataset_digest(folder: str | Path) -> str:
    """SHA-256 of the dataset's `manifest.json`, which names all that it was built from; `InputError` without one."""
    manifest = Path(folder) / "manifest.json"
    if not manifest.is_file():
        what = f"no dataset in {folder}: {manifest} is missing"
        raise InputError(f"{what}{suggest_path(folder) or '; make it with carolina_originality.py build'}")
    return file_digest(manifest)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a built dataset; empty where there is none, `InputError` where it is damaged."""
    return read_object(Path(folder) / "manifest.json", REMEDY) or {}


def summarize(folder: str | Path, config: str) -> dict[str, Any] | None:
    """What the manifest says of a training config: `documents`, `tokens`, `generated`; None without the dataset.

    And the name of the `corpus`, if that is another than Corpus Carolina.
    """
    manifest = read_manifest(folder)
    with explain_failure(f"{Path(folder) / 'manifest.json'} is damaged", REMEDY):
        split = manifest.get("splits", {}).get(f"{config}/train")
        other = {"corpus": manifest["corpus"]} if "corpus" in manifest else {}
        numbers = split and {name: split[name] for name in ("documents", "tokens")}
        return split and {"generated": manifest["generated"], **numbers, **other}


def parquet_files(folder: str | Path, config: str, split: str) -> list[Path]:
    """The Parquet files of one split, in order; `InputError` where there is none."""
    files = sorted((Path(folder) / "data" / config).glob(f"{split}-*.parquet"))
    if not files:
        known = (f"{path.parent.name}/{path.name.split('-')[0]}" for path in Path(folder).glob("data/*/*.parquet"))
        raise InputError(f"no split {config}/{split} in {folder}; it has: {', '.join(sorted(known)) or 'none'}")
    return files


def count_texts(folder: str | Path, config: str, split: str) -> int:
    import pyarrow.parquet as pq  # here, not above: a machine that trains from a token store may lack it

    with explain_failure(f"{config}/{split} in {folder} is damaged", REMEDY):
        return sum(pq.read_metadata(file).num_rows for file in parquet_files(folder, config, split))


def check_whole(folder: str | Path, config: str, split: str) -> None:
    """Raises `InputError` where a split lacks documents of the manifest: a copy that was cut, or an old download."""
    found = count_texts(folder, config, split)
    with explain_failure(f"{Path(folder) / 'manifest.json'} is damaged", REMEDY):
        wanted = read_manifest(folder).get("splits", {}).get(f"{config}/{split}", {}).get("documents", found)
    if found != wanted:
        what = f"{config}/{split} in {folder} has {found:,} of the {wanted:,} documents of its manifest"
        raise InputError(f"{what}; copy it again, or run again where the Hub can be reached")


def read_texts(folder: str | Path, config: str, split: str, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """`(id, text)` of each document of a split in file order, at most `limit` of them."""
    return islice(chain.from_iterable(map(read_file, parquet_files(folder, config, split))), limit)


def read_file(file: Path) -> Iterator[tuple[str, str]]:
    """`(id, text)` of each document of a Parquet file."""
    import pyarrow.parquet as pq

    with explain_failure(f"{file} is damaged", REMEDY):
        content = pq.ParquetFile(file)
        if "text" not in content.schema_arrow.names:
            raise InputError(f"{file} holds no text; name another config than {file.parent.name}")
        for batch in content.iter_batches(columns=["id", "text"], batch_size=4096):
            for document, text in zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True):
                if not (isinstance(document, str) and isinstance(text, str)):
                    raise ValueError("a document has no id or no text")
                yield document, text
