"""Winograd schemas in Portuguese (Melo, Imaizumi and Cozman, 2019): whom does the pronoun mean?

Each schema is two sentences in which the pronoun is replaced by the right and by the wrong antecedent; the corrected
versions are used, as PoETa v2 does.
"""

import json

from flexqwen.evaluation import sources
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks.item import Context, Item, some
from flexqwen.evaluation.tasks.pairs import accuracies

VERSION = 1


def load(context: Context) -> list[Item]:
    """The 285 schemas."""
    schemas = json.loads(sources.read("wsc_pt/portuguese_wsc.json"))
    items = []
    for number, schema in enumerate(schemas):
        good, bad = schema["manually_fixed_correct_sentence"], schema["manually_fixed_incorrect_sentence"]
        items.append(Item(f"{number}", good, data={"good": good, "bad": bad}))
    return some(items, context.limit)


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy; chance is one half."""
    return accuracies("wsc_pt", VERSION, scorer, items, mode, context)
