"""A repository on the Hugging Face Hub: made, read and committed to through the official client."""

import fnmatch
import os
import re
import sys
import time
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flexqwen.cli import InputError
from flexqwen.files import remove_path

REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
WAITS = (1, 2, 4, 8, 16)  # seconds between tries, on top of those of the client itself


class Repository:
    """One model or dataset repository.

    Args:
        kind: "model" or "dataset".
        token: of a user; by default the one that `hf auth login` or `HF_TOKEN` left. It is never shown.
        revision: branch to write to; "main" by default.
    """

    def __init__(
        self,
        repo_id: str,
        kind: str = "model",
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
    ):
        if not REPO_ID.fullmatch(repo_id):
            raise InputError(f"{repo_id!r} names no repository of the Hub; give <user or organisation>/<name>")
        self.repo_id, self.kind, self.private, self.revision = repo_id, kind, private, revision
        self._readable = revision  # the branch that stands for it as long as it is not there
        self._api = HfApi(token=token)

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo_id}"

    def create(self) -> None:
        """Makes the repository, and its branch, unless they are there."""
        self._api.create_repo(self.repo_id, repo_type=self.kind, private=self.private, exist_ok=True)
        if self.revision:
            self._api.create_branch(self.repo_id, repo_type=self.kind, branch=self.revision, exist_ok=True)

    def files(self) -> set[str]:
        """Paths of all files; none where there is no such repository.

        A branch that is not there yet has those of main, from which `create` will make it.
        """
        for revision in dict.fromkeys((self.revision, None)):
            self._readable = revision
            try:
                return set(self._api.list_repo_files(self.repo_id, repo_type=self.kind, revision=revision))
            except (RepositoryNotFoundError, RevisionNotFoundError):
                continue
        return set()

    def fetch(self, patterns: list[str], folder: Path) -> None:
        """Downloads the files of these patterns into `folder`; called again it goes on where it was cut."""
        if not any(fnmatch.fnmatch(file, pattern) for file in self.files() for pattern in patterns):
            folder.mkdir(parents=True, exist_ok=True)
            return
        self._api.snapshot_download(
            self.repo_id, repo_type=self.kind, revision=self._readable, allow_patterns=patterns, local_dir=folder
        )
        remove_path(folder / ".cache")

    def commit(self, files: dict[str, Path], message: str, deleted: set[str] = frozenset()) -> str:
        """Makes one commit of the files that changed, all of them or none, and returns the id of the last commit.

        Args:
            files: by their paths in the repository. Without any change there is no commit.
            deleted: paths to remove in the same commit.
        """
        operations = [CommitOperationDelete(path) for path in sorted(deleted)]
        operations += [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        # create_commit, since upload_folder may divide a folder over several commits: half a checkpoint would be there.
        info = self._api.create_commit(
            self.repo_id, operations, commit_message=message, repo_type=self.kind, revision=self.revision
        )
        return info.oid

    def tags(self) -> dict[str, str]:
        """Tags, each with the id of its commit."""
        refs = self._api.list_repo_refs(self.repo_id, repo_type=self.kind)
        return {ref.name: ref.target_commit for ref in refs.tags}

    def tag(self, name: str, commit: str) -> None:
        """Tags a commit; where the tag is there, as when an answer was lost, it stays."""
        self._api.create_tag(self.repo_id, repo_type=self.kind, tag=name, revision=commit, exist_ok=True)


def reason(error: BaseException) -> str:
    """What went wrong, in one short line without a token."""
    error = _told(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "401: there is no token, or a wrong one; log in with hf auth login, or set HF_TOKEN"
    if status == 403:
        return "403: the token may not write there; make one that may, at huggingface.co/settings/tokens"
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"hf_\w+|\?X-Amz\S+", "…", text)[:200]


def _told(error: BaseException) -> BaseException:
    """What the client wrapped up in an error of its own: of a large file's upload, or of a download."""
    wrapped = isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None
    return error.__cause__ if wrapped else error


def is_permanent(error: BaseException) -> bool:
    """Whether trying again soon is no use: what was asked is refused, or this machine's disk is the trouble."""
    error = _told(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 409, 412, 429)
    if isinstance(error, OfflineModeIsEnabled):  # which is a ConnectionError, but as the user wants it
        return True
    return isinstance(error, (OSError, ValueError, InputError)) and not isinstance(
        error, (ConnectionError, TimeoutError)
    )


def with_retries(action):
    """Calls `action()` until it comes through, with longer and longer waits, and raises its last error."""
    for wait in (*WAITS, None):
        try:
            return action()
        except Exception as error:
            if wait is None or is_permanent(error):
                raise
            time.sleep(wait)


def fetched(name: str, kind: str, patterns: list[str], token: str | None = None) -> str:
    """`name` itself if it is a folder; if it names a repository of the Hub, a local copy of these of its files.

    Where they cannot be had, that is said, and `name` returned as it is. Where the Hub cannot be reached, the copy is
    what was fetched before, which may be less.
    """
    if os.path.exists(name) or not REPO_ID.fullmatch(name):
        return name
    try:
        return with_retries(lambda: HfApi(token=token).snapshot_download(name, repo_type=kind, allow_patterns=patterns))
    except Exception as error:
        print(f"note: {name} cannot be had from the Hub: {reason(error)}", file=sys.stderr)
        return name
