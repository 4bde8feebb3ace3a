"""The metrics as modules of `evaluate`: known answers, the field's own scorers, no network."""

import math
import re
import string
from collections import Counter
from pathlib import Path

import evaluate
import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score

from flexqwen.evaluation import metrics
from flexqwen.evaluation.metrics.bpb.bpb import bits_per_byte
from flexqwen.evaluation.metrics.choice_accuracy.choice_accuracy import score_choice
from flexqwen.evaluation.metrics.entity_f1.entity_f1 import count_entities, entity_f1
from flexqwen.evaluation.metrics.squad_pt import squad_pt
from tests.helpers.runs import forked_context

FOLDER = Path(metrics.__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/README.md"))


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Loads by path, with a cache of its own."""

    def make(name):
        return evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path))

    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", lambda: _make_package(tmp_path, monkeypatch))
    return make


def _make_package(folder, monkeypatch):
    package = folder / f"evaluate_modules_{folder.name}"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    return str(package)


def test_every_metric_has_a_card_whose_example_is_true(load):
    assert NAMES == ["bpb", "choice_accuracy", "entity_f1", "squad_pt"]
    for name in NAMES:
        card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\ntitle: ") and f'evaluate.load("flexqwen/evaluation/metrics/{name}")' in card
        call, expected = re.search(r"compute\((.*)\)(?:  |\n)# (\{.*\})", card).groups()
        found = load(name).compute(**eval(f"dict({call})"))
        for key, value in eval(expected.replace("…", "")).items():
            assert found[key] == pytest.approx(value, abs=0.01), name


def test_they_load_without_network(load, monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert len({load(name).name for name in NAMES}) == len(NAMES)


def test_training_does_not_wait_for_evaluate():
    code = "import sys, train; sys.exit('evaluate' in sys.modules)"
    process = forked_context().Process(target=exec, args=(code, {}))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_ties_share_the_point():
    assert score_choice([-1.0, -2.0], 0) == (1, False) and score_choice([-1.0, -2.0], 1) == (0, False)
    assert score_choice([-1.0, -1.00005], 1) == (0.5, True) and score_choice([-1.0, -1.0002], 1) == (0, False)
    assert score_choice([0, 0, -1, 0], 3) == (pytest.approx(1 / 3), True) and score_choice([0, 0, -1], 2) == (0, True)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 4)).round(1)  # some equal
    right = rng.integers(0, 4, 500)
    chosen = [np.mean([right[n] == c for c in np.flatnonzero(row == row.max())]) for n, row in enumerate(scores)]
    assert np.mean([score_choice(row, r)[0] for row, r in zip(scores, right, strict=True)]) == pytest.approx(
        np.mean(chosen)
    )


def test_a_uniform_model_of_bytes_needs_8_bits_a_byte(load):
    texts = ["Olá, mundo", "é", "uma casa"]
    nats = [len(text.encode()) * math.log(256) for text in texts]
    assert load("bpb").compute(predictions=nats, references=texts) == {"bits_per_byte": pytest.approx(8)}
    assert bits_per_byte([math.log(2), 3 * math.log(2)], [1, 6]).tolist() == [1, 0.5]
    uneven = load("bpb").compute(predictions=[math.log(2), 3 * math.log(2)], references=["a", "aaaaaa"])
    assert uneven["bits_per_byte"] == pytest.approx(4 / 7)  # all bits over all bytes


def test_entity_f1_is_seqevals(load):
    gold = [["B-A", "B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    predicted = [["B-A", "I-A", "I-A", "O", "I-B"], ["O", "B-B"]]  # neighbours of one class stay apart
    assert count_entities(gold, predicted).tolist() == [[1, 2, 3], [0, 1, 1]]
    rng = np.random.default_rng(0)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    gold += rng.choice(tags, (40, 12)).tolist()
    predicted += rng.choice(tags, (40, 12)).tolist()
    assert entity_f1(count_entities(gold, predicted)) == pytest.approx(f1_score(gold, predicted))
    found = load("entity_f1").compute(predictions=predicted, references=gold)
    for name, scorer in {"f1": f1_score, "precision": precision_score, "recall": recall_score}.items():
        assert found[name] == pytest.approx(scorer(gold, predicted)), name
    assert entity_f1(count_entities([["O"]], [["O"]])) == 0


def squads_f1(prediction, answer):
    """F1 and normalisation as in SQuAD's evaluate-v1.1.py, but with Portuguese articles."""

    def normalize_answer(text):
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(o|a|os|as|um|uma|uns|umas)\b", " ", text).split())

    said, true = normalize_answer(prediction).split(), normalize_answer(answer).split()
    same = sum((Counter(said) & Counter(true)).values())
    if same == 0:
        return 0, normalize_answer(prediction) == normalize_answer(answer)
    precision, recall = same / len(said), same / len(true)
    return 2 * precision * recall / (precision + recall), normalize_answer(prediction) == normalize_answer(answer)


def test_answers_are_scored_as_squads_script_does(load):
    rng = np.random.default_rng(0)
    words = ["o", "a", "os", "uma", "casa", "Casa,", "rio", "(pedra)", "da", "umbral", "à"]
    predicted = [" ".join(rng.choice(words, rng.integers(3, 6))) + " mar" for _ in range(200)]
    answers = [[" ".join(rng.choice(words, 4)) + " rio" for _ in range(2)] for _ in predicted]
    official = [[squads_f1(said, answer) for answer in given] for said, given in zip(predicted, answers, strict=True)]
    found = load("squad_pt").compute(predictions=predicted, references=answers)
    assert found["f1"] == pytest.approx(np.mean([max(f1 for f1, _ in pairs) for pairs in official]))
    assert found["exact_match"] == pytest.approx(np.mean([max(match for _, match in pairs) for pairs in official]))
    again = load("squad_pt").compute(predictions=[given[1].upper() for given in answers], references=answers)
    assert again == {"exact_match": 1, "f1": 1}


def test_portuguese_normalisation():
    assert squad_pt.normalize_answer("  As “Normas” da UFMS, uma  a uma! ") == "normas da ufms"
    assert squad_pt.normalize_answer("à casa do Ó e os umbrais") == "à casa do ó e umbrais"
    assert squad_pt.exact_match("o Brasil.", "brasil") == 1 and squad_pt.exact_match("brasil", "o rio") == 0
    assert squad_pt.token_f1("casa da pedra", "pedra da rua da casa") == pytest.approx(2 * 3 / 8)
    assert squad_pt.token_f1("a", "casa") == squad_pt.token_f1("casa", "") == squad_pt.exact_match("os", "a") == 0
    assert squad_pt.score_answers("f1", [("casa", "casa velha")], ["casa velha"]).tolist() == [1]
