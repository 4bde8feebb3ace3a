"""Tasks of choice: which of several texts does a model find likeliest? A pair of sentences is a choice between two."""

from collections.abc import Sequence

import numpy as np

from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.metrics.minimal_pair_accuracy.minimal_pair_accuracy import credit
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task


def make_pair(id: str, good: str, bad: str, groups: Sequence[str] = ("all",), commit: str | None = None) -> Item:
    """An item of two sentences. Pairs made from one good sentence are one cluster."""
    return Item(id, good, [[Request(good), Request(bad)]], groups, good, commit)


def choose(
    task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context, by_length: bool = False
) -> list[Result]:
    """Accuracy over all items and over groups of them; an item with several questions counts with their mean.

    Args:
        by_length: give the accuracy of log-probabilities per byte of the options, too.
    """
    requests = [option for item in items for question in item.questions for option in question]
    scores = iter(scorer.score(requests, mode, context.within_word, progress=task.name))
    scored = [[[next(scores) for _ in question] for question in item.questions] for item in items]
    groups = {group for item in items for group in item.groups}
    results = []
    for metric in ("accuracy", "accuracy_by_length")[: 1 + by_length]:
        credits = []  # of each item: for each of its questions the point, and whether it is a tie
        for item, questions in zip(items, scored, strict=True):
            if metric == "accuracy_by_length":
                questions = [np.divide(*both) for both in zip(questions, map(_lengths, item.questions), strict=True)]
            credits.append(np.array([credit(question) for question in questions]))
        for group in [*(name for name in task.groups if name in groups), *sorted(groups - set(task.groups))]:
            members = [pair for pair in zip(items, credits, strict=True) if group in pair[0].groups]
            those, found = zip(*members, strict=True)
            fields = {"mode": mode, "metric": metric, "subset": group, "baseline_name": "chance"}
            fields["baseline"] = float(np.mean([1 / len(item.questions[0]) for item in those]))
            sentences = sum(len(question) for item in those for question in item.questions)
            fields["details"] = {"ties": int(sum(part[:, 1].sum() for part in found)), "sentences": sentences}
            results.append(task.mean_result(those, [part[:, 0].mean() for part in found], **fields))
    return results


def _lengths(options: Sequence[Request]) -> list[int]:
    """Bytes of the scored part of each option, without the space before it."""
    return [len(option.text[option.start : option.end].removeprefix(" ").encode()) for option in options]
