"""Tasks of choice: which of several texts does a model find likeliest? A pair of sentences is a choice between two."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np

from flexqwen.evaluation import pair_generation, sources
from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.metrics.choice_accuracy.choice_accuracy import score_choice
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task

ATTRACTORS = ("no attractor", "attractors")
DISTANCES = ("distance 0", "distance 1-3", "distance 4+")
LETTERS = "abcde"
FACTS, TEMPLATES, OBJECTS = 10, 3, 20


def choose(
    task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context, by_length: bool = False
) -> list[Result]:
    """Accuracy over all items and over groups of them; an item with several questions counts with their mean.

    `by_length` adds the accuracy of log-probabilities per byte of the options.
    """
    requests = [option for item in items for question in item.questions for option in question]
    scores = iter(scorer.score(requests, mode, context.within_word, task.name, context.mask_groups))
    scored = [[[next(scores) for _ in question] for question in item.questions] for item in items]
    groups = {group for item in items for group in item.groups}
    results = []
    for metric in ("accuracy", "accuracy_by_length")[: 1 + by_length]:
        points = []  # of each item: for each of its questions the point, and whether it is a tie
        for item, questions in zip(items, scored, strict=True):
            if metric == "accuracy_by_length":
                questions = [np.divide(*both) for both in zip(questions, map(_lengths, item.questions), strict=True)]
            points.append(np.array([score_choice(question) for question in questions]))
        for group in [*(name for name in task.groups if name in groups), *sorted(groups - set(task.groups))]:
            members = [pair for pair in zip(items, points, strict=True) if group in pair[0].groups]
            those, found = zip(*members, strict=True)
            fields = {"mode": mode, "metric": metric, "subset": group, "baseline_name": "chance"}
            fields["baseline"] = float(np.mean([1 / len(item.questions[0]) for item in those]))
            sentences = sum(len(question) for item in those for question in item.questions)
            fields["details"] = {"ties": int(sum(part[:, 1].sum() for part in found)), "sentences": sentences}
            results.append(task.mean_result(those, [part[:, 0].mean() for part in found], **fields))
    return results


def _lengths(options: Sequence[Request]) -> list[int]:
    """Bytes of the scored part of each option, without the space before it."""
    return [len(option.text[option.start : option.end].removeprefix(" ").encode()) for option in options]


def make_item(row: dict, number: int) -> Item:
    """An item of two sentences, `good` and `bad`; or of `context`, `options` and `answer`, the number of the right one.

    An option is scored after the context and a space. `id` (by default the item's number), `group` and `text`, what a
    model must not have been trained on, may be there. Raises KeyError, TypeError or ValueError.
    """
    if not isinstance(row, dict):
        raise TypeError("this is no JSON object")
    id, group = str(row.get("id", number)), row.get("group")
    groups = ("all",) if group in (None, "") else ("all", str(group))
    if "context" not in row:
        good, bad = row["good"], row["bad"]
        if not (isinstance(good, str) and isinstance(bad, str) and good and bad):
            raise TypeError("good and bad must be sentences")
        return make_pair(id, good, bad, groups)
    context, options, answer = row["context"], row["options"], row["answer"]
    if not (isinstance(context, str) and isinstance(options, list) and all(isinstance(o, str) and o for o in options)):
        raise TypeError("context must be a text, options a list of texts")
    if not isinstance(answer, int) or not 0 <= answer < len(options) or len(options) < 2:
        raise ValueError(f"answer is {answer!r}, and must be the number of one of two options or more, from 0")
    ordered = [options[answer], *options[:answer], *options[answer + 1 :]]
    requests = [Request(f"{context} {option}" if context else option, len(context)) for option in ordered]
    return Item(id, row.get("text", requests[0].text), [requests], groups)


def make_pair(id: str, good: str, bad: str, groups: Sequence[str] = ("all",), commit: str | None = None) -> Item:
    """An item of two sentences. Pairs made from one good sentence are one cluster."""
    return Item(id, good, [[Request(good), Request(bad)]], groups, good, commit)


def load_minimal_pairs(context: Context) -> list[Item]:
    """Agreement in Portuguese: real sentences, and the same with one word's number, person or gender changed.

    The pairs of `pair_generation`, in groups by phenomenon, by attractors and by distance.
    """
    items = []
    for pair in pair_generation.load():
        distance = DISTANCES[(pair.distance > 0) + (pair.distance > 3)]
        groups = "all", pair.phenomenon, ATTRACTORS[pair.attractors > 0], distance
        items.append(make_pair(pair.id, pair.good, pair.bad, groups))
    return items


def load_wsc_pt(context: Context) -> list[Item]:
    """Winograd schemas in Portuguese (Melo, Imaizumi and Cozman, 2019): whom does the pronoun mean?

    Each of the 285 is two sentences in which the pronoun is replaced by the right and by the wrong antecedent; the
    corrected versions are used, as PoETa v2 does.
    """
    names = {"good": "manually_fixed_correct_sentence", "bad": "manually_fixed_incorrect_sentence"}
    schemas = json.loads(sources.read("wsc_pt/portuguese_wsc.json"))
    rows = [{field: schema[name] for field, name in names.items()} for schema in schemas]
    return [make_item(row, number) for number, row in enumerate(rows)]


def load_multiblimp_por(context: Context) -> list[Item]:
    """MultiBLiMP's Portuguese pairs (Jumelet, Weissweiler and Bisazza, 2025), from the Hub."""
    rows, commit = sources.read_hub_rows("jumelet/multiblimp", "por", "train", ("sen", "wrong_sen"))
    groups = [("all", row.get("phenomenon") or "all") for row in rows]
    return [make_pair(f"{n}", row["sen"], row["wrong_sen"], groups[n], commit) for n, row in enumerate(rows)]


def load_arc_pt(context: Context) -> list[Item]:
    """ARC-Challenge in Portuguese (Okapi's translation): the 1,170 questions of the test set."""
    items = []
    for number, question in enumerate(json.loads(sources.read("okapi_pt/m_arc/pt_test.json"))):
        asked, answer = question["instruction"], LETTERS.index(question["answer"].lower())
        options = [question[f"option_{letter}"] for letter in LETTERS if question.get(f"option_{letter}")]
        row = {"id": question["id"], "context": f"Pergunta: {asked}\nResposta:", "options": options, "answer": answer}
        items.append(make_item({**row, "text": f"{asked} {options[answer]}"}, number))
    return items


def load_mpararel_pt(context: Context) -> list[Item]:
    """mParaRel in Portuguese (Fierro and Søgaard, 2022): facts, each with a question a template, of several objects.

    Facts, templates and objects of a relation are drawn by hash: docs/tasks.md.
    """
    patterns, tuples = defaultdict(list), defaultdict(list)
    for name, found, *fields in (
        ("mpararel_pt/patterns_pt.jsonl", patterns, "checked-by-human", "pattern"),
        ("mpararel_pt/tuples_pt.jsonl.gz", tuples, "sub_label", "obj_label"),
    ):
        for row in map(json.loads, sources.read(name).decode().splitlines()):
            found[row["relation"]].append([row[field] for field in fields])
    items = []
    for relation, facts in tuples.items():
        templates = [pattern for _, pattern in sorted(patterns[relation], key=lambda row: (not row[0], row[1]))]
        for subject, right in draw(map(tuple, facts), FACTS, relation):
            others = {answer for _, answer in facts} - {answer for name, answer in facts if name == subject}
            objects = right, *draw(others, OBJECTS - 1, f"{relation}|{subject}")
            questions = [[make_request(one, subject, name) for name in objects] for one in templates[:TEMPLATES]]
            name = f"{relation}:{subject}:{right}"
            items.append(Item(name, questions[0][0].text, questions, cluster=relation))
    return items


def draw(values, number: int, salt: str) -> list:
    """`number` of the values, in the order of their hashes."""
    return sorted(set(values), key=lambda value: hashlib.sha256(f"{salt}|{value}".encode()).digest())[:number]


def make_request(template: str, subject: str, name: str) -> Request:
    """The sentence of a fact; its object is what is scored."""
    before, after = template.replace("[X]", subject).split("[Y]")
    return Request(before + name + after, len(before), len(before) + len(name))


def load_calame_pt(context: Context) -> list[Item]:
    """CALAME-PT (Lopes, Magalhães and Semedo, 2024), from the Hub: does the last word of a passage come to mind?"""
    rows, commit = sources.read_hub_rows("NOVA-vision-language/calame-pt", "all", "train", ("sentence", "last_word"))
    starts = [row["sentence"].rstrip() for row in rows]
    asked = [Request(f"{start} {row['last_word']}", len(start)) for start, row in zip(starts, rows, strict=True)]
    return [Item(f"{number}", request.text, [[request]], commit=commit) for number, request in enumerate(asked)]


def guess(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy: is each token of the last word the likeliest? Masked, all of them are. Chance is next to nothing."""
    requests = tuple(item.questions[0][0] for item in items)
    _, greedy = scorer.run(requests, mode == "masked", within_word=True, progress=task.name)
    fields = {"mode": mode, "metric": "accuracy", "baseline": 0.0, "baseline_name": "no word guessed"}
    return [task.mean_result(items, greedy, **fields)]


MINIMAL_PAIR_GROUPS = ("all", *pair_generation.PHENOMENA, *ATTRACTORS, *DISTANCES)
MINIMAL_PAIRS = Task("minimal_pairs", 2, load_minimal_pairs, choose, groups=MINIMAL_PAIR_GROUPS)
WSC_PT = Task("wsc_pt", 1, load_wsc_pt, choose)
MULTIBLIMP_POR = Task("multiblimp_por", 2, load_multiblimp_por, choose)
ARC_PT = Task("arc_pt", 1, load_arc_pt, partial(choose, by_length=True))
MPARAREL_PT = Task("mpararel_pt", 2, load_mpararel_pt, choose)
CALAME_PT = Task("calame_pt", 1, load_calame_pt, guess, modes=("causal", "masked"))  # fused would name two words
