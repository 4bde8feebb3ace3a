"""ARC-Challenge in Portuguese (Okapi's translation): multiple choice by the answers' likelihoods.

Zero-shot. `accuracy` compares the log-probabilities of the answers, `accuracy_by_length` those per byte.
"""

import json

import numpy as np

from flexqwen.evaluation import sources
from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.results import Result, mean_result
from flexqwen.evaluation.tasks.item import Context, Item, credit, some

VERSION = 1
LETTERS = "abcde"


def load(context: Context) -> list[Item]:
    """The 1,170 questions of the test set."""
    items = []
    for question in json.loads(sources.read("okapi_pt/m_arc/pt_test.json")):
        options = [question[f"option_{letter}"] for letter in LETTERS if question.get(f"option_{letter}")]
        prompt = f"Pergunta: {question['instruction']}\nResposta:"
        right = LETTERS.index(question["answer"].lower())
        data = {"prompt": prompt, "options": options, "right": right}
        items.append(Item(question["id"], f"{question['instruction']} {options[right]}", data=data))
    return some(items, context.limit)


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Both accuracies."""
    requests = [
        Request(f"{item.data['prompt']} {option}", len(item.data["prompt"]))
        for item in items
        for option in item.data["options"]
    ]
    scores = scorer.score(requests, mode, context.within_word, progress="arc_pt")
    ends = np.cumsum([len(item.data["options"]) for item in items])
    groups = np.split(scores, ends[:-1])
    chance = float(np.mean([1 / len(item.data["options"]) for item in items]))
    results = []
    for metric in ("accuracy", "accuracy_by_length"):
        credits = []
        for item, group in zip(items, groups, strict=True):
            lengths = [len(option.encode()) for option in item.data["options"]]
            credits.append(credit(group / lengths if metric == "accuracy_by_length" else group, item.data["right"]))
        results.append(
            mean_result(
                [points for points, _ in credits],
                [item.id for item in items],
                task="arc_pt",
                version=VERSION,
                mode=mode,
                metric=metric,
                baseline=chance,
                baseline_name="chance",
                details={"ties": sum(tie for _, tie in credits)},
            )
        )
    return results
