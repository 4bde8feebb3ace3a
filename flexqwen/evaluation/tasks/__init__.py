"""Evaluation tasks, found by name: `load_task("wsc_pt")` imports that module here and gives its `TASK`.

A new task is a module with a `TASK` and a place in one of the two lists. Modules are imported when they are asked for,
since the libraries of some are many.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexqwen.evaluation.likelihood import MODES, Request, Scorer
from flexqwen.evaluation.results import Result, mean_result
from flexqwen.subsampling import subsample

HUB = ("multiblimp_por", "calame_pt")  # their data live on the Hub only
ZERO_SHOT = ("bits_per_byte", "bits_per_byte_ud", "minimal_pairs", "wsc_pt", "mpararel_pt", "arc_pt", *HUB)
ZERO_SHOT += ("assin2_embeddings",)
FINE_TUNED = ("assin2", "harem", "bosque_pos", "hatebr", "toldbr", "faquad")
NAMES = (*ZERO_SHOT, *FINE_TUNED)


@dataclass(frozen=True)
class Context:
    """What an evaluation is told besides its model.

    Attributes:
        dataset: folder made by carolina_originality.py; split: of its held-out config; documents: of it, at most.
        within_word: mask all tokens of a word together.
        limit: items of a task, at most.
    """

    dataset: str = "carolina_originality"
    split: str = "test"
    documents: int = 500
    within_word: bool = False
    limit: int | None = None


@dataclass
class Item:
    """One item of a likelihood task.

    Attributes:
        text: what a model must not have been trained on; looked for in the training splits.
        questions: what is scored, where that is not `text` itself: for each question of the item its options, all
            questions having as many; the right option comes first.
        groups: subsets of the task that the item counts in.
        cluster: items of one cluster depend on each other; by default each is one by itself.
        commit: of the Hub's data set that it is from.
        label: what people said of it.
    """

    id: str
    text: str
    questions: Sequence[Sequence[Request]] = ()
    groups: Sequence[str] = ("all",)
    cluster: str | None = None
    commit: str | None = None
    label: float | None = None


@dataclass(frozen=True)
class Task:
    """What `NAMES` names.

    Attributes:
        version: to be raised whenever the task's figures change.
        load: the items of a likelihood task.
        score: their results in one mode, of `(task, scorer, items, mode, context)`.
        fine_tune: the results of a fine-tuned task, of `(folder of the checkpoint, folder of the data, Settings)`.
        folder: a fine-tuned task's part of the evaluation data; its name by default.
        modes: those of a likelihood task.
        groups: the order in which subsets of items are shown; others follow, by the alphabet.
        has_limit: `Context.limit` holds for it.
    """

    name: str
    version: int
    load: Callable[[Context], list[Item]] | None = None
    score: Callable[["Task", Scorer, list[Item], str, Context], list[Result]] | None = None
    fine_tune: Callable[..., list[Result]] | None = None
    folder: str | None = None
    modes: Sequence[str] = MODES
    groups: Sequence[str] = ("all",)
    has_limit: bool = True

    def load_items(self, context: Context) -> list[Item]:
        """The items of a likelihood task, at most `context.limit`."""
        return subsample(self.load(context), context.limit if self.has_limit else None)

    def evaluate(self, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
        """Results of a likelihood task in one mode; none where it has no such mode."""
        return self.score(self, scorer, items, mode, context) if mode in self.modes else []

    def mean_result(self, items: list[Item], values: Sequence[float], **fields) -> Result:
        """The `Result` of a metric that is the mean of the items' values."""
        clusters = [item.cluster or item.id for item in items] if any(item.cluster for item in items) else None
        if items[0].commit:
            fields["details"] = {**fields.get("details", {}), "commit": items[0].commit}
        fields |= {"clusters": clusters, "task": self.name, "version": self.version}
        return mean_result(values, [item.id for item in items], **fields)


def load_task(name: str) -> Task:
    """The task of that name, one of `NAMES`."""
    return importlib.import_module(f"{__name__}.{name}").TASK
