"""ARC-Challenge in Portuguese (Okapi's translation): multiple choice by the answers' likelihoods.

Zero-shot. `accuracy` compares the log-probabilities of the answers, `accuracy_by_length` those per byte.
"""

import json
from functools import partial

from flexqwen.evaluation import sources
from flexqwen.evaluation.likelihood import Request
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.choices import choose

LETTERS = "abcde"


def load(context: Context) -> list[Item]:
    """The 1,170 questions of the test set."""
    items = []
    for question in json.loads(sources.read("okapi_pt/m_arc/pt_test.json")):
        options = [question[f"option_{letter}"] for letter in LETTERS if question.get(f"option_{letter}")]
        right = options.pop(LETTERS.index(question["answer"].lower()))
        prompt = f"Pergunta: {question['instruction']}\nResposta:"
        requests = [Request(f"{prompt} {option}", len(prompt)) for option in (right, *options)]
        items.append(Item(question["id"], f"{question['instruction']} {right}", [requests]))
    return items


TASK = Task("arc_pt", 1, load, partial(choose, by_length=True))
