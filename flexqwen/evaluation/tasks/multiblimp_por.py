"""MultiBLiMP's Portuguese pairs (Jumelet, Weissweiler and Bisazza, 2025), from the Hub."""

from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks.hub import rows
from flexqwen.evaluation.tasks.item import Context, Item, some
from flexqwen.evaluation.tasks.pairs import accuracies

VERSION = 2


def load(context: Context) -> list[Item]:
    """The pairs.

    Raises:
        InputError: the Hub cannot be reached and the data set is not in its cache.
    """
    items = []
    found, commit = rows("jumelet/multiblimp", "por", "train", ("sen", "wrong_sen"))
    for number, row in enumerate(found):
        data = {"good": row["sen"], "bad": row["wrong_sen"], "commit": commit}
        items.append(Item(f"{number}", row["sen"], row.get("phenomenon") or "all", data))
    return some(items, context.limit)


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy: of all pairs, and of each phenomenon."""
    groups = sorted({item.group for item in items} - {"all"})
    subsets = {group: [item.group == group for item in items] for group in groups}
    results = accuracies("multiblimp_por", VERSION, scorer, items, mode, context, subsets)
    for result in results:
        result.details["commit"] = items[0].data["commit"]
    return results
