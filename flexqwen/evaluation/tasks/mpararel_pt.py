"""mParaRel in Portuguese (Fierro and Søgaard, 2022): facts by cloze, ranking a relation's objects.

Of each relation 10 facts, 3 templates (checked by people where there are any) and 20 objects at most, the right one
among them, drawn by hash: always the same. Causal: the log-probability of the sentence from the object on. Masked: of
the object's tokens. What is counted is a fact: the share of its templates in which the right object is first. The
facts of a relation share its templates and objects, so they are one cluster.
"""

import hashlib
import json
from collections import defaultdict

from flexqwen.evaluation import sources
from flexqwen.evaluation.likelihood import Request
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.choices import choose

FACTS, TEMPLATES, OBJECTS = 10, 3, 20


def draw(values, number: int, salt: str) -> list:
    """`number` of the values, in the order of their hashes."""
    return sorted(set(values), key=lambda value: hashlib.sha256(f"{salt}|{value}".encode()).digest())[:number]


def load(context: Context) -> list[Item]:
    """The facts, each with a question a template: the sentences of the objects."""
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
        for subject, right in draw(facts, FACTS, relation):
            wrong = draw({answer for _, answer in facts} - answers[subject], OBJECTS - 1, f"{relation}|{subject}")
            questions = [[make_request(template, subject, name) for name in (right, *wrong)] for template in templates]
            name = f"{relation}:{subject}:{right}"
            items.append(Item(name, questions[0][0].text, questions, cluster=relation))
    return items


def make_request(template: str, subject: str, name: str) -> Request:
    """The sentence of a fact; its object is what is scored."""
    before, after = template.replace("[X]", subject).split("[Y]")
    return Request(before + name + after, len(before), len(before) + len(name))


MPARAREL_PT = Task("mpararel_pt", 2, load, choose)
