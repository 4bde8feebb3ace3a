"""Publishes a built dataset on the Hugging Face Hub."""

import re
import tempfile
from pathlib import Path

from flexqwen.cli import InputError
from flexqwen.data.build import NAME, read_manifest
from flexqwen.data.texts import count_texts
from flexqwen.files import file_digest, read_json
from flexqwen.hub.repository import Repository
from flexqwen.remote import explain_failure

PATTERNS = ("README.md", "manifest.json", "figures/*", "data/*/*.parquet")  # nothing else is uploaded


def publish(folder: Path, repository: Repository, tag: str | None = None) -> tuple[str, str, str]:
    """Makes one commit of what changed, and tags it; returns the tag, the commit, and that of the tag.

    The two differ where the tag was there and only the card has changed since. Files that only an earlier build had are
    deleted, and so is a `carolina_originality.py`: datasets takes it for a loader, and refuses to load.
    """
    with explain_failure(f"{folder} is damaged", "build it again"):
        files, manifest = built_files(folder), read_manifest(folder)
        tag = tag or f"v{manifest['versions']['flexqwen']}-{manifest['inputs'][:8]}"
    unfinished, remedy = f"not all of {folder} is on {repository.url}", "the same command uploads what is missing"
    with explain_failure(unfinished, remedy), tempfile.TemporaryDirectory() as temporary:
        there, place = repository.list_files(), Path(temporary)
        if there:
            repository.fetch(["manifest.json"], place / "there")
            found = read_json(place / "there" / "manifest.json")
            if not isinstance(found, dict) or found.get("dataset") != NAME:
                what = f"{repository.url} holds something else"
                raise InputError(f"{what}, which is not overwritten; give another --repo")
        tags = repository.list_tags() if there else {}
        if tag in tags:
            repository.fetch(["manifest.json"], place / "tagged", revision=tag)
            if file_digest(place / "tagged" / "manifest.json") != file_digest(files["manifest.json"]):
                raise InputError(f"the tag {tag} of {repository.url} is of another build; give another --tag")
        names = f'load_dataset("{NAME}"', f'load_dataset("{repository.repo_id}"'
        card = files["README.md"].read_text(encoding="utf-8").replace(*names)
        (place / "README.md").write_text(card, encoding="utf-8")
        stale = {file for file in there - files.keys() if re.match(rf"data/|figures/|.*{NAME}\.py$", file)}
        repository.create()
        commit = repository.commit(files | {"README.md": place / "README.md"}, f"Carolina Originality {tag}", stale)
        if tag not in tags:
            repository.tag(tag, commit)
        return tag, commit, tags.get(tag, commit)


def built_files(folder: Path) -> dict[str, Path]:
    """The files of a finished build, by their paths in it; `InputError` where documents of its manifest are missing."""
    manifest = read_manifest(folder)
    if manifest.get("dataset") != NAME or not (folder / "README.md").is_file():
        raise InputError(f"{folder}: holds no finished dataset; make it with carolina_originality.py build")
    for name, split in manifest["splits"].items():
        if split["documents"] and count_texts(folder, *name.split("/")) != split["documents"]:
            raise InputError(f"{folder}: {name} does not hold {split['documents']:,} documents; build again")
    return {file.relative_to(folder).as_posix(): file for pattern in PATTERNS for file in sorted(folder.glob(pattern))}
