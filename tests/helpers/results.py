"""Figures of evaluation whose items are given."""

from flexqwen.evaluation.results import mean_result

FIELDS = {"task": "t", "version": 1, "mode": "causal", "metric": "accuracy", "baseline": 0.5, "baseline_name": "chance"}


def result(items, ids=None, **changes):
    return mean_result(items, ids or [f"i{n}" for n in range(len(items))], **{**FIELDS, **changes})
