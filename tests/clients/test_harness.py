"""lm-evaluation-harness: `--model flexqwen` answers each item of a choice as eval.py does, ties included."""

import json

import pytest

from flexqwen.evaluation import likelihood
from flexqwen.evaluation.tasks import Context, load_task
from flexqwen.evaluation.tasks.choices import make_pair

lm_eval = pytest.importorskip("lm_eval")
CLIENTS = ("lm-eval",)


@pytest.mark.parametrize("mode", ["causal", "masked", "fused"])
def test_items_are_answered_as_by_eval(checkpoint, sample_documents, tmp_path, monkeypatch, mode):
    from lm_eval.tasks import TaskManager

    from flexqwen.evaluation.harness import ScoredLM
    from tests.helpers.runs import ROOT

    goods = list(dict.fromkeys(" ".join(document.text.split()[:8]) for document in sample_documents))[:40]
    pairs = [(good, " ".join(good.split()[::-1]) if number else good) for number, good in enumerate(goods)]  # one tie
    with open(tmp_path / "minimal_pairs.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"good": good, "bad": bad}) + "\n" for good, bad in pairs)
    monkeypatch.chdir(tmp_path)
    found = lm_eval.simple_evaluate(
        ScoredLM(str(checkpoint), mode=mode),
        tasks=["flexqwen_minimal_pairs"],
        task_manager=TaskManager(include_path=str(ROOT / "benchmarks" / "lm_eval")),
    )
    scorer = likelihood.load(str(checkpoint))
    items = [make_pair(f"{number}", *pair) for number, pair in enumerate(pairs)]
    (expected,) = load_task("wsc_pt").evaluate(scorer, items, mode, Context())
    samples = sorted(found["samples"]["flexqwen_minimal_pairs"], key=lambda sample: sample["doc_id"])
    assert [sample["acc"] for sample in samples] == expected.items and expected.items[0] == 0.5
    assert found["results"]["flexqwen_minimal_pairs"]["acc,none"] == pytest.approx(expected.value)
