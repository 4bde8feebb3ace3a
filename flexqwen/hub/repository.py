"""A repository on the Hugging Face Hub: made, read and committed to through the official client."""

import fnmatch
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from flexqwen.cli import InputError
from flexqwen.files import remove_path
from flexqwen.remote import REPO_ID, with_retries

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}  # of addresses
CONTACT = 10  # seconds that the Hub has to answer the first request


class Repository:
    """One model or dataset repository, or a Space of Gradio. Every method tries again for a few seconds what may pass.

    `token` is by default the one that `hf auth login` or `HF_TOKEN` left; `revision`, the branch to write to, "main".
    """

    def __init__(self, repo_id: str, kind="model", token=None, private: bool | None = None, revision=None):
        if not REPO_ID.fullmatch(repo_id):
            raise InputError(f"{repo_id!r} names no repository of the Hub; give <user or organisation>/<name>")
        self.repo_id, self.kind, self.private, self.revision = repo_id, kind, private, revision
        self._api = HfApi(token=token)
        self._place = {"repo_id": repo_id, "repo_type": kind}

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{PREFIXES[self.kind]}{self.repo_id}"

    def create(self) -> None:
        """Makes the repository, and its branch, unless they are there."""
        options = {"private": self.private, "space_sdk": "gradio" if self.kind == "space" else None}
        with_retries(lambda: self._api.create_repo(**self._place, **options, exist_ok=True))
        if self.revision:
            with_retries(lambda: self._api.create_branch(**self._place, branch=self.revision, exist_ok=True))

    def list_files(self, branch: str | None = None) -> set[str]:
        """Paths of all files but the `.gitattributes` that the Hub itself puts there; none without a repository.

        A branch that is not there yet has the files of main, from which `create` will make it. This is the first
        request of all work here, since it fails soon where the Hub cannot be reached.
        """
        return self._find(branch or self.revision)[1] - {".gitattributes"}

    def fetch(self, patterns: list[str], folder: Path, revision: str | None = None) -> None:
        """Downloads the files of these patterns into `folder`; called again it resumes where it was cut."""
        commit, files = self._find(revision or self.revision)
        folder.mkdir(parents=True, exist_ok=True)
        if any(fnmatch.fnmatch(file, pattern) for file in files for pattern in patterns):
            # Of a commit, since of a branch the client takes half of a folder for all of it where it cannot ask.
            what = {"revision": commit, "allow_patterns": patterns, "local_dir": folder}
            with_retries(lambda: self._api.snapshot_download(**self._place, **what))
            remove_path(folder / ".cache")

    def _find(self, revision: str | None) -> tuple[str | None, set[str]]:
        """The commit of a revision, or else of main, and the paths of its files."""
        for name in dict.fromkeys((revision, None)):
            what = {**self._place, "revision": name, "timeout": CONTACT}
            with suppress(RepositoryNotFoundError, RevisionNotFoundError):
                found = with_retries(lambda what=what: self._api.repo_info(**what))
                return found.sha, {file.rfilename for file in found.siblings}
        return None, set()

    def commit(
        self, files: dict[str, Path], message: str, deleted: set[str] = frozenset(), branch: str | None = None
    ) -> str:
        """Makes one commit of the files that changed, by their paths there, all or none; returns the last commit's id.

        A `branch` that is not there is made from this repository's.
        """
        if branch:
            start = {"branch": branch, "revision": self.revision, "exist_ok": True}
            with_retries(lambda: self._api.create_branch(**self._place, **start))

        def create_commit():
            operations = [CommitOperationDelete(path) for path in sorted(deleted)]
            operations += [CommitOperationAdd(path, str(file)) for path, file in files.items()]
            # Not upload_folder, which may divide a folder over several commits: half a checkpoint would be there.
            return self._api.create_commit(
                **self._place, operations=operations, commit_message=message, revision=branch or self.revision
            )

        return with_retries(create_commit).oid

    def blob_ids(self, paths: Iterable[str], revision: str | None = None) -> dict[str, str]:
        """What tells whether the content of files is the same, by their paths; without those that are not there."""
        what = {**self._place, "paths": list(paths), "revision": revision or self.revision}
        return {file.path: file.blob_id for file in with_retries(lambda: self._api.get_paths_info(**what))}

    def list_tags(self) -> dict[str, str]:
        """Tags, each with the id of its commit."""
        refs = with_retries(lambda: self._api.list_repo_refs(**self._place))
        return {ref.name: ref.target_commit for ref in refs.tags}

    def delete_tag(self, name: str) -> None:
        """Deletes a tag."""
        with_retries(lambda: self._api.delete_tag(**self._place, tag=name))

    def tag(self, name: str, commit: str) -> None:
        """Tags a commit; where the tag is there, as when an answer was lost, it stays."""
        with_retries(lambda: self._api.create_tag(**self._place, tag=name, revision=commit, exist_ok=True))
