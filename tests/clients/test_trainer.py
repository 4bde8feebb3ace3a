"""transformers: its own Trainer, collators, metrics and smoothed labels, torch.export, assisted generation."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from flexqwen.evaluation.metrics.choice_accuracy import choice_accuracy
from modeling_flexqwen import FlexQwenForCausalLM, FlexQwenForMaskedLM, FlexQwenForSequenceClassification
from tests.helpers.tiny import SHAPE, make_ids, make_model, make_qwen3

CLIENTS = ("transformers", "evaluate")

WORDS = [{"input_ids": [1, *range(start, start + 10)]} for start in range(4, 54)]  # each token tells the next


def make_arguments(folder, **options):
    common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 1}
    return TrainingArguments(str(folder), **common, **options)


def train(model, folder, rows, collator=None, **options):
    """The Trainer after 100 steps."""
    settings = {"learning_rate": 0.02, "per_device_train_batch_size": 16, "max_steps": 100, **options}
    trainer = Trainer(model, make_arguments(folder, **settings), collator, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("mlm", [True, False])
def test_the_stock_trainer_teaches_either_objective(tokenizer, tmp_path, mlm, options):
    torch.manual_seed(0)
    model = (FlexQwenForMaskedLM if mlm else FlexQwenForCausalLM)(make_model(vocab_size=len(tokenizer)).config)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=mlm, mlm_probability=0.2)
    trainer = train(model, tmp_path, WORDS, collator, **options)
    assert trainer.evaluate()["eval_loss"] < 3  # of ln 1024 = 6.9, of knowing nothing


def test_labels_are_smoothed_as_for_qwen3(tmp_path):
    model, ids = make_model(), make_ids(batch=4)
    rows = [{"input_ids": row, "labels": row} for row in ids.tolist()]
    losses = [
        Trainer(one, make_arguments(tmp_path, label_smoothing_factor=0.1), eval_dataset=rows).evaluate()["eval_loss"]
        for one in (model, make_qwen3(model))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("head", [FlexQwenForCausalLM, FlexQwenForMaskedLM])
def test_metrics_are_computed_from_logits(tmp_path, head):
    seen = []
    rows = [{"input_ids": row, "labels": row} for row in make_ids(batch=4).tolist()]
    Trainer(
        make_model(head),
        make_arguments(tmp_path),
        eval_dataset=rows,
        compute_metrics=lambda found: seen.append(found.predictions.shape) or {},
    ).evaluate()
    assert seen == [(4, 12, SHAPE["vocab_size"])]


def test_a_classifier_learns_with_the_stock_trainer_and_a_metric_of_evaluate(tmp_path):
    metric = evaluate.load(str(Path(choice_accuracy.__file__).parent), cache_dir=str(tmp_path))
    generator = np.random.default_rng(0)
    rows = [{"input_ids": row, "labels": int(max(row) > 40)} for row in generator.integers(4, 64, (64, 3)).tolist()]
    model = make_model(FlexQwenForSequenceClassification, num_labels=2)
    trainer = train(model, tmp_path, rows)
    trainer.compute_metrics = lambda found: metric.compute(predictions=found.predictions, references=found.label_ids)
    assert trainer.evaluate()["eval_accuracy"] > 0.9


@pytest.mark.parametrize("masked", [True, False])
def test_an_exported_program_is_the_model(masked):
    model, ids = make_model(FlexQwenForMaskedLM if masked else FlexQwenForCausalLM), make_ids(batch=3, length=7)
    model.config.use_cache = False
    shapes = {"input_ids": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=512)}}
    program = torch.export.export(model, (make_ids(),), dynamic_shapes=shapes, strict=False)
    torch.testing.assert_close(program.module()(ids).logits, model(ids).logits)


def test_generation_is_assisted_by_the_plain_qwen3():
    model, ids = make_model(), make_ids(batch=1, length=5)
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, assistant_model=make_qwen3(model)), plain)
