"""mParaRel in Portuguese (Fierro and Søgaard, 2022): facts by cloze, ranking a relation's objects.

Of each relation 10 facts, 3 templates (checked by people where there are any) and 20 objects at most, the right one
among them, drawn by hash: always the same. Causal: the log-probability of the sentence from the object on. Masked: of
the object's tokens. What is counted is a fact: the share of its templates in which the right object is first. The
facts of a relation share its templates and objects, so they are one cluster.
"""

import hashlib
import json
from collections import defaultdict

import numpy as np

from flexqwen.evaluation import sources
from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.results import Result, mean_result
from flexqwen.evaluation.tasks.item import Context, Item, credit, some

VERSION = 2
FACTS, TEMPLATES, OBJECTS = 10, 3, 20


def _drawn(values, number: int, salt: str) -> list:
    """`number` of the values, in the order of their hashes."""
    return sorted(set(values), key=lambda value: hashlib.sha256(f"{salt}|{value}".encode()).digest())[:number]


def load(context: Context) -> list[Item]:
    """The facts, each with its sentences: `requests[template][object]`, the right object first."""
    patterns, tuples = defaultdict(list), defaultdict(list)
    for line in sources.read("mpararel_pt/patterns_pt.jsonl").decode().splitlines():
        row = json.loads(line)
        patterns[row["relation"]].append((not row["checked-by-human"], row["pattern"]))
    for line in sources.read("mpararel_pt/tuples_pt.jsonl.gz").decode().splitlines():
        row = json.loads(line)
        tuples[row["relation"]].append((row["sub_label"], row["obj_label"]))
    items = []
    for relation, facts in tuples.items():
        templates = [pattern for _, pattern in sorted(patterns[relation])[:TEMPLATES]]
        answers = defaultdict(set)
        for subject, answer in facts:
            answers[subject].add(answer)
        for subject, right in _drawn(facts, FACTS, relation):
            wrong = _drawn({answer for _, answer in facts} - answers[subject], OBJECTS - 1, f"{relation}|{subject}")
            requests = [[_request(template, subject, name) for name in (right, *wrong)] for template in templates]
            item = Item(f"{relation}:{subject}:{right}", requests[0][0].text, relation, {"requests": requests})
            items.append(item)
    return some(items, context.limit)


def _request(template: str, subject: str, name: str) -> Request:
    before, after = template.replace("[X]", subject).split("[Y]")
    return Request(before + name + after, len(before), len(before) + len(name))


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy: how often the right object is first."""
    requests = [request for item in items for template in item.data["requests"] for request in template]
    scores = iter(scorer.score(requests, mode, context.within_word, progress="mpararel_pt"))
    points, ties, chances = [], 0, []
    for item in items:
        credits = [credit([next(scores) for _ in template], 0) for template in item.data["requests"]]
        points.append(float(np.mean([point for point, _ in credits])))
        ties += sum(tie for _, tie in credits)
        chances.append(1 / len(item.data["requests"][0]))
    return [
        mean_result(
            points,
            [item.id for item in items],
            clusters=[item.group for item in items],
            task="mpararel_pt",
            version=VERSION,
            mode=mode,
            metric="accuracy",
            baseline=float(np.mean(chances)),
            baseline_name="chance",
            details={"ties": ties, "sentences": len(requests)},
        )
    ]
