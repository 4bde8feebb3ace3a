"""Evaluation tasks, found by name: `load_task("wsc_pt")` gives `WSC_PT` of the module that is named here.

Modules are imported when they are asked for, since the libraries of some are many.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flexqwen.cli import InputError
from flexqwen.evaluation import MODES

if TYPE_CHECKING:
    from flexqwen.evaluation.likelihood import Request, Scorer
    from flexqwen.evaluation.results import Result

OPTIONAL = ("multiblimp_por", "calame_pt", "memorisation")  # of the Hub alone, or of a model in its run's folder
FINE_TUNED = ("assin2", "harem", "bosque_pos", "hatebr", "toldbr", "faquad")
MODULES = {  # of tasks that are not named as theirs
    **dict.fromkeys(("minimal_pairs", "wsc_pt", "mpararel_pt", "arc_pt", "multiblimp_por", "calame_pt"), "choices"),
    **dict.fromkeys(("hatebr", "toldbr"), "offensive"),
    "bits_per_byte_ud": "bits_per_byte",
    "assin2_embeddings": "assin2",
}
_LIKELIHOOD = ("minimal_pairs", "wsc_pt", "mpararel_pt", "arc_pt", "assin2_embeddings", "multiblimp_por", "calame_pt")
NAMES = ("bits_per_byte", "bits_per_byte_ud", *_LIKELIHOOD, "ud_probe", "memorisation", *FINE_TUNED)


@dataclass(frozen=True)
class Context:
    """What an evaluation is told besides its model."""

    dataset: str = "carolina_originality"  # folder made by carolina_originality.py
    split: str = "test"  # of its held-out config
    documents: int = 500  # of that split, at most
    within_word: bool = False  # mask all tokens of a word together
    mask_groups: int | None = None  # masked scoring with so many copies of a text; None for one a token
    limit: int | None = None  # items of a task, and of each split of a fine-tuned one, at most
    exclude_seen: bool = False  # leave out items of which a 13-gram stands in the dataset's training splits
    seeds: int = 3  # of a fine-tuned task: one decides the head's first weights, the order of examples and dropout
    learning_rates: Sequence[float] = (5e-5, 1.5e-4, 5e-4)  # the first seed tries each; the best on dev is kept
    num_train_epochs: float | None = None  # None for the task's own number
    per_device_train_batch_size: int = 16
    max_length: int = 256  # tokens of an input of a fine-tuned task; no more than the model takes
    trust_remote_code: bool = False  # run the code that a checkpoint brings along, if it is no FlexQwen
    model: str = ""  # the checkpoint, or its name on the Hub

    def __post_init__(self):
        least = {"documents": 1, "limit": 1, "seeds": 1, "mask_groups": 2, "max_length": 32}
        for name, minimum in {**least, "per_device_train_batch_size": 1}.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise InputError(f"--{name} is {value}; it must be at least {minimum}")
        if not self.learning_rates or len(set(self.learning_rates)) < len(self.learning_rates):
            raise InputError(f"--learning_rates is {self.learning_rates}; give one or more, each once")
        for name, value in (("learning_rates", min(self.learning_rates)), ("num_train_epochs", self.num_train_epochs)):
            if value is not None and value <= 0:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be above 0")

    @property
    def has_dataset(self) -> bool:
        return (Path(self.dataset) / "manifest.json").is_file()


@dataclass
class Item:
    """One item of a likelihood task."""

    id: str
    text: str  # what a model must not have been trained on; looked for in the training splits
    # What is scored, where that is not `text` itself: each question's options, always as many, the right one first.
    questions: Sequence[Sequence[Request]] = ()
    groups: Sequence[str] = ("all",)  # subsets of the task that the item counts in
    cluster: str | None = None  # items of one cluster depend on each other; by default each is one by itself
    commit: str | None = None  # of the Hub's data set that it is from
    seen: float = math.nan  # the share of its 13-grams that stand in the training splits, where that is known
    label: float | None = None  # what people said of it


@dataclass(frozen=True)
class Task:
    """What `NAMES` names: a likelihood task, or a fine-tuned one."""

    name: str
    version: int  # to be raised whenever the task's figures change
    load: Callable[[Context], list[Item]] | None = None
    score: Callable[[Task, Scorer, list[Item], str, Context], list[Result]] | None = None  # in one mode
    fine_tune: Callable[[str, Context], list[Result]] | None = None  # of the checkpoint's folder
    modes: Sequence[str] = MODES
    groups: Sequence[str] = ("all",)  # the order in which subsets of items are shown; others follow, by the alphabet
    has_limit: bool = True  # `Context.limit` holds for it
    by_kind: bool = False  # a model that is no FlexQwen is scored otherwise
    sources: str = ""  # the folder of what it is fine-tuned on, in the layout of the sources
    settings: Sequence[str] = ()  # names in `Context` that decide its figures, besides those that always do

    def find_modes(self, modes: Sequence[str]) -> list[str]:
        return ["finetuned"] if self.fine_tune else [mode for mode in modes if mode in self.modes]

    def load_items(self, context: Context) -> list[Item]:
        from flexqwen.subsampling import subsample  # not above: names of tasks are known before libraries are imported

        return subsample(self.load(context), context.limit if self.has_limit else None)

    def evaluate(self, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
        """Results of a likelihood task in one mode; none where it has no such mode."""
        return self.score(self, scorer, items, mode, context) if mode in self.modes else []

    def mean_result(self, items: list[Item], values: Sequence[float], **fields) -> Result:
        """The `Result` of a metric that is the mean of the items' values."""
        from flexqwen.evaluation.results import mean_result

        clusters = [item.cluster or item.id for item in items] if any(item.cluster for item in items) else None
        if items[0].commit:
            fields["details"] = {**fields.get("details", {}), "commit": items[0].commit}
        fields |= {"clusters": clusters, "task": self.name, "version": self.version}
        return mean_result(values, [item.id for item in items], **fields)


def load_task(name: str) -> Task:
    """The task of that name, one of `NAMES`, or of that file or data set, as `own` reads them."""
    if name not in NAMES:
        return importlib.import_module(f"{__name__}.own").make_task(name)
    return getattr(importlib.import_module(f"{__name__}.{MODULES.get(name, name)}"), name.upper())
