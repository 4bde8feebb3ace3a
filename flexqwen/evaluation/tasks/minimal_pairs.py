"""Agreement in Portuguese: is a real sentence likelier than the same with one word's number, person or gender changed?

The pairs are those of `flexqwen.minimal_pairs`.
"""

from flexqwen.evaluation import pair_generation
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks.item import Context, Item, some
from flexqwen.evaluation.tasks.pairs import accuracies

VERSION = 2


def load(context: Context) -> list[Item]:
    """The pairs, made from their sources at first use."""
    pairs = pair_generation.load()
    items = [Item(pair.id, pair.good, pair.phenomenon, vars(pair)) for pair in pairs]
    return some(items, context.limit)


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy: of all pairs, of each phenomenon, with and without attractors, and by distance."""
    subsets = {name: [item.group == name for item in items] for name in pair_generation.PHENOMENA}
    subsets["no attractor"] = [item.data["attractors"] == 0 for item in items]
    subsets["attractors"] = [item.data["attractors"] > 0 for item in items]
    for name, low, high in (("distance 0", 0, 0), ("distance 1-3", 1, 3), ("distance 4+", 4, 10**6)):
        subsets[name] = [low <= item.data["distance"] <= high for item in items]
    return accuracies("minimal_pairs", VERSION, scorer, items, mode, context, subsets)
