"""Choices among texts: ties, several questions an item, groups, options of different lengths."""

import numpy as np
import pytest

from flexqwen.evaluation.likelihood import Request
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.choices import choose, make_pair, score_choice


class Scores:
    """A scorer that finds each text as likely as it is told."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, requests, mode, within_word, progress, mask_groups):
        return np.array([self.scores[request.text] for request in requests])


def test_ties_share_the_point():
    assert score_choice([-3.0, -3.0], 0) == (0.5, True)
    assert score_choice([-3.0, -3.0, -3.0, -5.0], 2) == (pytest.approx(1 / 3), True)
    assert score_choice([-3.0, -3.0, -5.0], 2) == (0.0, True)
    assert score_choice([-3.0, -4.0], 0) == (1.0, False) and score_choice([-4.0, -3.0], 0) == (0.0, False)
    generator = np.random.default_rng(0)
    assert np.mean([score_choice(generator.normal(size=4), 1)[0] for _ in range(4000)]) == pytest.approx(0.25, abs=0.03)


def test_pairs_are_counted_in_all_and_in_their_groups():
    items = [make_pair("1", "a", "b", ("all", "y")), make_pair("2", "a", "c", ("all", "x")), make_pair("3", "d", "a")]
    task = Task("t", 3, lambda context: items, choose, groups=("all", "y"))
    results = task.evaluate(Scores({"a": -1, "b": -2, "c": -1, "d": -2}), items, "causal", Context())
    assert [(row.subset, row.value, row.n) for row in results] == [("all", 0.5, 3), ("y", 1, 1), ("x", 0.5, 1)]
    assert results[0].items == [1, 0.5, 0] and results[0].details["ties"] == 1
    assert results[0].clusters == [0, 0, 1]  # two are made from one sentence
    assert {(row.task, row.version, row.mode, row.baseline) for row in results} == {("t", 3, "causal", 0.5)}


def test_an_item_counts_with_the_mean_of_its_questions():
    questions = [[Request(text) for text in question] for question in ("abcd", "bacd", "cabd")]
    scores = Scores({"a": -1, "b": -2, "c": -1, "d": -3})
    (row,) = choose(Task("t", 1), scores, [Item("1", "a", questions)], "causal", Context())
    assert row.value == pytest.approx((1 / 2 + 0 + 1 / 2) / 3) and row.baseline == 1 / 4
    assert row.details == {"ties": 3, "sentences": 12}


def test_accuracy_by_length_divides_by_the_bytes_of_the_scored_part():
    requests = [Request("quem: não", 5), Request("quem: eu", 5)]  # 4 bytes and 2
    scores = Scores({"quem: não": -3, "quem: eu": -2})
    plain, by_length = choose(Task("t", 1), scores, [Item("1", "", [requests])], "causal", Context(), by_length=True)
    assert (plain.metric, plain.value) == ("accuracy", 0) and (by_length.metric, by_length.value) == (
        "accuracy_by_length",
        1,
    )
