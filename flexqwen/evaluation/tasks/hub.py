"""Data sets that live on the Hub only."""

from typing import Any

from flexqwen.cli import InputError
from flexqwen.remote import explain_failure


def read_rows(repository: str, config: str, split: str, columns: tuple[str, ...]) -> tuple[list[dict[str, Any]], str]:
    """The rows of a data set, and the commit that they are from: the newest, or that in the local cache.

    Raises:
        InputError: it can be had neither from the Hub nor from the local cache, or lacks a column.
    """
    from datasets import load_dataset_builder  # slow to import, and needed by these tasks alone

    remedy = "try again with a network, or leave its task out"
    with explain_failure(f"{repository} cannot be loaded from the Hub", remedy):
        builder = load_dataset_builder(repository, config)
        builder.download_and_prepare()
        found = builder.as_dataset(split=split).to_list()
    for column in columns:
        if not found or column not in found[0]:
            raise InputError(f"{repository} has no column {column!r} any more; leave its task out")
    return found, builder.hash
