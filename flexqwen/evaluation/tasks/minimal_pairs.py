"""Agreement in Portuguese: is a real sentence likelier than the same with one word's number, person or gender changed?

The pairs are those of `flexqwen.evaluation.pair_generation`. Figures are of all pairs, of each phenomenon, with and
without attractors, and by distance.
"""

from flexqwen.evaluation import pair_generation
from flexqwen.evaluation.pair_generation import PHENOMENA, Pair
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.choices import choose, make_pair

ATTRACTORS = ("no attractor", "attractors")
DISTANCES = ("distance 0", "distance 1-3", "distance 4+")


def load(context: Context) -> list[Item]:
    """The pairs, made from their sources at first use."""
    return [make_pair(pair.id, pair.good, pair.bad, list_groups(pair)) for pair in pair_generation.load()]


def list_groups(pair: Pair) -> tuple[str, ...]:
    """The subsets that a pair counts in."""
    return "all", pair.phenomenon, ATTRACTORS[pair.attractors > 0], DISTANCES[(pair.distance > 0) + (pair.distance > 3)]


TASK = Task("minimal_pairs", 2, load, choose, groups=("all", *PHENOMENA, *ATTRACTORS, *DISTANCES))
