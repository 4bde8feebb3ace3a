"""Fetches from the Hugging Face Hub, and says in one line why something could not be fetched or sent."""

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from flexqwen.cli import InputError, is_shortage, suggest_path

T = TypeVar("T")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
NAMES = "names there are <user or organisation>/<name>"
PATIENCE = 5  # seconds in which an action is begun again


def with_retries(action: Callable[[], T]) -> T:
    """Calls `action()` until it comes through, and raises its last error `PATIENCE` seconds after the first call.

    The client itself tries most requests again, for longer: only what it gives up at once comes a second time.
    """
    start, wait = time.monotonic(), 0.5
    while True:
        try:
            return action()
        except Exception as error:
            if is_permanent(error) or time.monotonic() - start + wait > PATIENCE:
                raise
        time.sleep(wait)
        wait *= 2


def is_permanent(error: BaseException) -> bool:
    """Whether a second try is no use: the Hub refuses what was asked, or this machine's disk is the trouble."""
    error = _unwrap(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 409, 412, 429)
    if isinstance(error, OfflineModeIsEnabled):  # a ConnectionError, but the user wants it so
        return True
    # Neither an InputError nor a wrong argument nor a full disk passes; a lost connection, which is an OSError, does.
    is_passing = isinstance(error, (ConnectionError, TimeoutError))
    return isinstance(error, (OSError, ValueError, InputError)) and not is_passing


def reason(error: BaseException) -> str:
    """What went wrong, in one short line without a token."""
    error = _unwrap(error)
    if isinstance(error, HFValidationError):
        return NAMES
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "401: there is no token, or a wrong one; log in with hf auth login, or set HF_TOKEN"
    if status == 403:
        return "403: the token may not write there; make one that may, at huggingface.co/settings/tokens"
    if isinstance(error, UnpicklingError):  # torch would advise to run what is in it
        return "a file of it is no pickle of tensors alone, and is not loaded"
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"hf_\w+|\?X-Amz\S+", "…", text)[:200]


@contextmanager
def explain_failure(what: str, remedy: str) -> Iterator[None]:
    """Turns every exception in the block into an InputError: `what` (the reason); `remedy`."""
    try:
        yield
    except Exception as error:
        is_other = what.endswith("damaged") and is_shortage(error)  # which damages nothing
        if isinstance(error, (InputError, MemoryError)) or is_other:
            raise
        raise InputError(f"{what} ({reason(error)}); {remedy}") from error


def _unwrap(error: BaseException) -> BaseException:
    """What is behind an error of the client or of transformers: an upload's, a download's or a name's own."""
    cause = error.__cause__ or error.__context__
    is_wrapper = isinstance(error, (RuntimeError, LocalEntryNotFoundError)) or isinstance(cause, HFValidationError)
    return cause if is_wrapper and cause is not None else error


def is_reachable() -> bool:
    """Whether there is a connection to the Hub. The client itself would try for half a minute, for each file anew."""
    return _is_reachable(constants.ENDPOINT)


@functools.cache
def _is_reachable(endpoint: str) -> bool:
    try:
        get_session().head(endpoint, timeout=(3, 10, 10, 10))  # seconds to connect, read, write, wait for a connection
    except Exception as error:
        return type(error).__name__ not in ("ConnectError", "ConnectTimeout", "ProxyError", "OfflineModeIsEnabled")
    return True


def check_place(name: str | Path) -> None:
    """`InputError`, within seconds, for a model that is no folder, is not fetched, and could not be."""
    if os.path.exists(name):
        return
    try:
        found = [try_to_load_from_cache(str(name), file) for file in ("config.json", "tokenizer.json")]
        why = "" if any(isinstance(path, str) for path in found) or is_reachable() else "be reached"
    except HFValidationError:
        why = f"have it ({NAMES})"
    if why:
        raise InputError(f"{name} is no folder here, and the Hub cannot {why}{suggest_path(name)}")


def fetch_snapshot(name: str, kind: str, patterns: list[str], token: str | None = None) -> str:
    """`name` itself if it is a folder; if it names a repository of the Hub, a local copy of these of its files.

    Where they cannot be fetched, a note says so, and `name` is returned as it is.
    """
    if os.path.exists(name) or not REPO_ID.fullmatch(name):
        return name
    try:
        return with_retries(lambda: HfApi(token=token).snapshot_download(name, repo_type=kind, allow_patterns=patterns))
    except Exception as error:
        why = f"could not be fetched from the Hub: {reason(error)}{suggest_path(name)}"
        print(f"note: {name} is no folder, and {why}", file=sys.stderr)
        return name
