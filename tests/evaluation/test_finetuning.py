"""Fine-tuning: any checkpoint, the learning rate chosen on dev, the same bits from the same seed."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from flexqwen.cli import InputError
from flexqwen.evaluation import statistics
from flexqwen.evaluation.finetuning import (
    Head,
    fine_tune,
    load_model,
    load_tokenizer,
    predict,
    separate_pairs,
    train,
)
from flexqwen.evaluation.tasks import Context, load_task
from tests.helpers.finetuned import SAVERS, WRITERS, read_from

CLASSIFICATION = Head(AutoModelForSequenceClassification, {"num_labels": 2})


@pytest.fixture(autouse=True)
def _few_bootstrap_samples(monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLES", 20)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("checkpoints") / name for name in SAVERS}
    for name, save in SAVERS.items():
        save(folders[name], tokenizer)
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture
def data(tmp_path, monkeypatch):
    def write(task):
        WRITERS[task](tmp_path)
        read_from(tmp_path, monkeypatch)

    return write


def quick(**changes):
    context = {"dataset": "none", "seeds": 1, "learning_rates": (1e-2,), "num_train_epochs": 6, "max_length": 64}
    return Context(**{**context, "per_device_train_batch_size": 8, **changes})


@pytest.mark.parametrize("kind", SAVERS)
def test_every_kind_of_model_learns_to_classify(checkpoints, data, kind):
    data("hatebr")
    context = quick(learning_rates=(1e-9, 1e-2), seeds=2, num_train_epochs=4)
    accuracy, macro_f1 = load_task("hatebr").fine_tune(checkpoints[kind], context)
    assert (accuracy.n, accuracy.details["majority"], macro_f1.metric) == (40, 0.5, "macro_f1")
    assert accuracy.interval[0] > 0.6 and accuracy.value > 0.8 and macro_f1.value > 0.8
    assert accuracy.value == pytest.approx(np.mean(accuracy.items)) and len(accuracy.item_ids) == 40
    details = accuracy.details
    assert details["learning_rate"] == 1e-2 and details["dev_scores"]["0.01"] > details["dev_scores"]["1e-09"]
    assert len(details["per_seed"]) == 2 and details["model_class"].endswith("ForSequenceClassification")
    json.dumps(details, allow_nan=False)


@pytest.mark.parametrize(
    ("kind", "task", "epochs"),
    [("flexqwen", "bosque_pos", 6), ("bert", "harem", 12), ("flexqwen", "faquad", 25), ("bert", "faquad", 40)],
)
def test_words_and_answers_are_learnt(checkpoints, data, kind, task, epochs):
    """Train and test are the same data, so a model that learns comes to know them."""
    data(task)
    context = quick(num_train_epochs=epochs, per_device_train_batch_size=4)
    for result in load_task(task).fine_tune(checkpoints[kind], context):
        assert result.value > 0.8 and result.interval[0] <= result.value <= result.interval[1], result


def test_assin2_gives_both_subtasks(checkpoints, data):
    data("assin2")
    results = load_task("assin2").fine_tune(checkpoints["flexqwen"], quick(num_train_epochs=1))
    assert [(r.subset, r.metric, r.n) for r in results] == [
        ("rte", "accuracy", 40),
        ("rte", "macro_f1", 40),
        ("sts", "pearson", 40),
        ("sts", "mse", 40),
    ]
    assert results[0].details["dev_metric"] == "macro_f1" and results[2].details["dev_metric"] == "pearson"


def test_same_seed_same_bits(checkpoints, tmp_path):
    tokenizer = load_tokenizer(checkpoints["flexqwen"], quick())
    rows = [dict(tokenizer(text)) for text in ("o rio bom", "a casa", "o livro de pedra", "noite", "um barco feio")]
    labelled = [{**row, "labels": number % 2} for number, row in enumerate(rows)]

    def run(seeds):
        context = quick(seeds=seeds, per_device_train_batch_size=2)
        splits = {"train": labelled, "dev": rows, "test": rows}
        model = checkpoints["flexqwen"]
        return fine_tune("test", model, CLASSIFICATION, tokenizer, splits, lambda _: 0.0, "none", context, 2)[0]

    first, second = run(2)
    assert np.array_equal(run(1)[0], first) and np.array_equal(run(2)[1], second)
    assert not np.array_equal(first, second)


def test_predictions_are_in_the_order_of_the_rows(checkpoints):
    """As of one row at a time, also where batches are grouped by length, which shuffles what the Trainer predicts."""
    tokenizer = load_tokenizer(checkpoints["flexqwen"], quick())
    rows = [dict(tokenizer("o rio " * (1 + 7 * number % 5) + str(number))) for number in range(20)]
    labelled = [{**row, "labels": 0.5} for row in rows[:4]]
    head = Head(AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"})
    context = quick(per_device_train_batch_size=2)
    choices = {"learning_rate": 1e-4, "seed": 0, "num_train_epochs": 1}
    trainer, _ = train(checkpoints["flexqwen"], head, tokenizer, labelled, context, **choices)
    alone = [trainer.model(**{k: torch.tensor([v]) for k, v in row.items()}).logits.item() for row in rows]
    assert np.allclose(np.concatenate(predict(trainer, rows)), alone, atol=1e-5) and np.std(alone) > 1e-3


def test_a_run_ends_after_an_epoch_that_is_no_better_and_gives_back_the_best(checkpoints):
    tokenizer, seen = load_tokenizer(checkpoints["flexqwen"], quick()), []
    rows = [{**tokenizer("o rio"), "labels": 1}]

    def score(trainer):
        seen.append(trainer.model.score.weight.detach().clone())
        return [0.1, 0.3, 0.3, 0.2, 0.9][len(seen) - 1]

    choices = {"learning_rate": 1e-2, "seed": 0, "num_train_epochs": 5}
    trainer, best = train(checkpoints["flexqwen"], CLASSIFICATION, tokenizer, rows, quick(), score, **choices)
    assert best == 0.3 and len(seen) == 4
    assert torch.equal(trainer.model.score.weight, seen[1]) and not torch.equal(seen[1], seen[2])


def test_the_learning_rate_is_chosen_on_dev_and_test_decides_nothing(checkpoints):
    """The rate that is best on dev is kept, be it the first or the last, and its own predictions are returned."""
    tokenizer = load_tokenizer(checkpoints["flexqwen"], quick())
    rows = [dict(tokenizer("o rio"))]
    labelled = [{**rows[0], "labels": 1}]
    found = {}
    for sign in (1, -1):
        context = quick(learning_rates=(1e-9, 1e-3, 1e-2))
        (outputs,), details = fine_tune(
            "test",
            checkpoints["flexqwen"],
            CLASSIFICATION,
            tokenizer,
            {"train": labelled, "dev": rows, "test": rows},
            lambda outputs, sign=sign: sign * (outputs[0][1] - outputs[0][0]),
            "margin",
            context,
            2,
        )
        assert list(details["dev_scores"]) == ["1e-09", "0.001", "0.01"]
        margin = outputs[0][1] - outputs[0][0]
        assert sign * margin == pytest.approx(max(details["dev_scores"].values()))
        found[sign] = details["learning_rate"]
    assert found == {1: 1e-2, -1: 1e-9}


@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        (CLASSIFICATION, ["logits"]),
        (Head(AutoModelForTokenClassification, {"num_labels": 4}), ["logits"]),
        (Head(AutoModelForQuestionAnswering), ["start_logits", "end_logits"]),
    ],
    ids=["classification", "token_classification", "question_answering"],
)
def test_flexqwen_is_bidirectional_under_every_head(checkpoints, head, outputs):
    tokenizer = load_tokenizer(checkpoints["flexqwen"], quick())
    model = load_model(checkpoints["flexqwen"], head, tokenizer).eval()
    ids = torch.tensor([[1, 20, 30, 40]])
    changed = torch.tensor([[1, 20, 30, 41]])
    one, other = (model(i, attention_mask=torch.ones_like(i)) for i in (ids, changed))
    causal = model(changed, attention_mask=torch.ones_like(ids), is_causal=True)
    for name in outputs:
        assert not torch.equal(one[name][:, :1], other[name][:, :1])
        assert not torch.equal(causal[name][:, :1], other[name][:, :1])


def test_a_tokenizer_is_prepared(checkpoints):
    assert load_tokenizer(checkpoints["flexqwen"], quick(max_length=64)).model_max_length == 64
    tokenizer = load_tokenizer(checkpoints["flexqwen"], quick(max_length=4096))
    assert tokenizer.model_max_length == 512 and separate_pairs(tokenizer, ["a"]) == ["a"]
    tokenizer.backend_tokenizer.post_processor = None
    assert separate_pairs(tokenizer, ["a"]) == ["a\n"]


def test_what_cannot_be_fine_tuned_is_one_clear_line(checkpoints, tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_tokenizer(str(tmp_path), quick())
    tokenizer = load_tokenizer(checkpoints["bert"], quick())
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    weights = {k: v for k, v in model.state_dict().items() if ".layer.1." not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(
        InputError, match=r"model\.safetensors lacks weights of BertForSequenceClassification: bert\.encoder"
    ):
        load_model(str(tmp_path), CLASSIFICATION, tokenizer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match="describes no AutoModelForQuestionAnswering"):
        load_model(str(tmp_path), Head(AutoModelForQuestionAnswering), tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"learning_rates": (1e-3, 1e-3)}, "each once"),
        ({"learning_rates": (0.0,)}, "above 0"),
        ({"limit": 0}, "limit is 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"max_length": 8}, "max_length is 8"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        Context(**changes)


def test_the_interval_is_over_items_and_seeds(monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLES", 1000)
    right = np.random.default_rng(0).random((1, 400)) < 0.7
    values, (low, high) = statistics.over_seeds(lambda seed, drawn: right[seed, drawn].mean(), 1, 400)
    assert values == [right.mean()] and low < values[0] < high
    assert high - low == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 400) ** 0.5, rel=0.1)
    copies = np.repeat(right, 9, axis=1)
    _, clustered = statistics.over_seeds(
        lambda seed, drawn: copies[seed, drawn].mean(), 1, 3600, np.repeat(np.arange(400), 9).tolist()
    )
    assert clustered == pytest.approx([low, high])  # copies of an item tell no more than the item
    _, (low, high) = statistics.over_seeds(lambda seed, drawn: float(seed), 3, 400)  # items do not matter, seeds do
    assert low < 0.5 and high > 1.5
