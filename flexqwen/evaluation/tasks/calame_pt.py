"""CALAME-PT (Lopes, Magalhães and Semedo, 2024), from the Hub: does the last word of a passage come to mind?

A passage is right if each token of its last word is the likeliest. Masked: with all tokens of the word masked.
"""

from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.results import Result, mean_result
from flexqwen.evaluation.tasks.hub import rows
from flexqwen.evaluation.tasks.item import Context, Item, some

VERSION = 1


def load(context: Context) -> list[Item]:
    """The passages.

    Raises:
        InputError: the Hub cannot be reached and the data set is not in its cache.
    """
    items = []
    found, commit = rows("NOVA-vision-language/calame-pt", "all", "train", ("sentence", "last_word"))
    for number, row in enumerate(found):
        start = row["sentence"].rstrip()
        items.append(Item(f"{number}", f"{start} {row['last_word']}", data={"start": len(start), "commit": commit}))
    return some(items, context.limit)


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy; chance is next to nothing. There is no fused mode: two models name two words."""
    if mode == "fused":
        return []
    requests = [Request(item.text, item.data["start"]) for item in items]
    _, greedy = scorer.run(requests, mode == "masked", within_word=True, progress="calame_pt")
    shared = {"task": "calame_pt", "version": VERSION, "mode": mode, "metric": "accuracy"}
    shared["details"] = {"commit": items[0].data["commit"]}
    ids = [item.id for item in items]
    return [mean_result(greedy.astype(float), ids, baseline=0.0, baseline_name="chance", **shared)]
