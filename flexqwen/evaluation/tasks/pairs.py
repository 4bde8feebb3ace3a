"""Tasks of sentence pairs: which of two does the model find likelier? One point for the right one, half for a tie.

Pairs made from one sentence are one cluster.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.results import Result, mean_result
from flexqwen.evaluation.tasks.item import Context, Item, credit


def accuracies(
    task: str,
    version: int,
    scorer: Scorer,
    items: list[Item],
    mode: str,
    context: Context,
    subsets: Mapping[str, Sequence[bool]] | None = None,
) -> list[Result]:
    """Accuracy over all items and over subsets of them.

    Args:
        items: with `good` and `bad` sentences in their data.
        subsets: name and, for each item, whether it belongs to it; empty ones are left out.
    """
    sentences = [item.data["good"] for item in items] + [item.data["bad"] for item in items]
    scores = scorer.score(sentences, mode, context.within_word, progress=task)
    credits = [credit(pair, 0) for pair in zip(scores[: len(items)], scores[len(items) :], strict=True)]
    results = []
    for subset, members in {"all": [True] * len(items), **(subsets or {})}.items():
        chosen = np.flatnonzero(members)
        if not len(chosen):
            continue
        results.append(
            mean_result(
                [credits[place][0] for place in chosen],
                [items[place].id for place in chosen],
                clusters=[items[place].text for place in chosen],
                task=task,
                version=version,
                mode=mode,
                metric="accuracy",
                subset=subset,
                baseline=0.5,
                baseline_name="chance",
                details={"ties": sum(credits[place][1] for place in chosen)},
            )
        )
    return results
