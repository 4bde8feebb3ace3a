"""Winograd schemas in Portuguese (Melo, Imaizumi and Cozman, 2019): whom does the pronoun mean?

Each schema is two sentences in which the pronoun is replaced by the right and by the wrong antecedent; the corrected
versions are used, as PoETa v2 does.
"""

import json

from flexqwen.evaluation import sources
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.choices import choose, make_pair


def load(context: Context) -> list[Item]:
    """The 285 schemas."""
    schemas = json.loads(sources.read("wsc_pt/portuguese_wsc.json"))
    names = ("manually_fixed_correct_sentence", "manually_fixed_incorrect_sentence")
    return [make_pair(f"{number}", *(schema[name] for name in names)) for number, schema in enumerate(schemas)]


TASK = Task("wsc_pt", 1, load, choose)
