"""MultiBLiMP's Portuguese pairs (Jumelet, Weissweiler and Bisazza, 2025), from the Hub."""

from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.choices import choose, make_pair
from flexqwen.evaluation.tasks.hub import read_rows


def load(context: Context) -> list[Item]:
    """The pairs, as `read_rows` gives them."""
    rows, commit = read_rows("jumelet/multiblimp", "por", "train", ("sen", "wrong_sen"))
    return [
        make_pair(f"{number}", row["sen"], row["wrong_sen"], ("all", row.get("phenomenon") or "all"), commit)
        for number, row in enumerate(rows)
    ]


TASK = Task("multiblimp_por", 2, load, choose)
