"""Fine-tunes a checkpoint on a labelled task with transformers' Trainer, and predicts.

The learning rate is chosen on the development set with the first seed; the other seeds are trained with the chosen one.
The test set is predicted after that choice and decides nothing. A FlexQwen attends bidirectionally under every head; a
model of another kind runs as its own class does (a BERT bidirectionally, a plain Qwen3 causally).

Same checkpoint, data and settings: same bits on CPU.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback

from flexqwen import loading
from flexqwen.cli import InputError
from flexqwen.data import overlap

Item = TypeVar("Item")
Row = dict[str, Any]
"""One input of the model as the tokenizer gives it (`input_ids`, `attention_mask`, ...), and labels where it trains."""


@dataclass(frozen=True)
class Settings:
    """How the fine-tuned tasks are trained.

    Attributes:
        seeds: one run each; the seed decides the head's first weights, the order of the examples and dropout.
        learning_rates: the first seed tries each; the best on the development set is kept.
        num_train_epochs: None for the task's own number.
        max_length: tokens of an input, special tokens included; no more than the model takes.
        limit: for quick runs: at most so many items of each split, chosen at random, always the same.
        dataset: what the checkpoint was pre-trained on, a folder made by carolina_originality.py; None if not known.
        exclude_seen: leave out test items of which a 13-gram stands there.
        trust_remote_code: run the code that a checkpoint brings along, if it is no FlexQwen.

    Raises:
        InputError: a value that cannot be.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    learning_rates: tuple[float, ...] = (5e-5, 1.5e-4, 5e-4)
    num_train_epochs: float | None = None
    per_device_train_batch_size: int = 16
    max_length: int = 256
    limit: int | None = None
    dataset: str | None = None
    exclude_seen: bool = False
    trust_remote_code: bool = False

    def __post_init__(self):
        for name in ("seeds", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name} is {values}; give one or more, each once")
        if min(self.learning_rates) <= 0:
            raise InputError(f"learning_rates is {self.learning_rates}; each must be above 0")
        for name, minimum in (("per_device_train_batch_size", 1), ("max_length", 32), ("limit", 2)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise InputError(f"{name} is {value}; it must be at least {minimum}")
        if self.num_train_epochs is not None and self.num_train_epochs <= 0:
            raise InputError(f"num_train_epochs is {self.num_train_epochs}; it must be above 0")


@dataclass(frozen=True)
class Head:
    """A kind of task: the Auto class of the model, the collator of its batches, and what the config needs to know."""

    auto_class: type
    collator: type
    options: dict[str, Any]


def classification(labels: int) -> Head:
    return Head(AutoModelForSequenceClassification, DataCollatorWithPadding, {"num_labels": labels})


def regression() -> Head:
    options = {"num_labels": 1, "problem_type": "regression"}
    return Head(AutoModelForSequenceClassification, DataCollatorWithPadding, options)


def token_classification(labels: int) -> Head:
    return Head(AutoModelForTokenClassification, DataCollatorForTokenClassification, {"num_labels": labels})


def question_answering() -> Head:
    return Head(AutoModelForQuestionAnswering, DataCollatorWithPadding, {})


@dataclass
class FineTuned:
    """What a fine-tuned checkpoint predicts.

    Attributes:
        outputs: for each seed, for each test row, its float32 logits: `(labels,)` of a classified row, `(length,
            labels)` of classified tokens, `(length, 2)` for start and end of an answer. Padding is cut off.
        details: how it was trained, for `Result.details`.
    """

    outputs: list[list[np.ndarray]]
    details: dict[str, Any]


def sample(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` of the items, in their order; the same ones in every run."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number] for number in sorted(random.Random(0).sample(range(len(items)), limit))]


def unseen(test: list[Item], texts: list[str], settings: Settings) -> tuple[list[Item], dict[str, Any]]:
    """The test items that are scored, and what the training splits of `settings.dataset` hold of their texts.

    Raises:
        InputError: all were to be excluded.
    """
    if settings.dataset is None:
        return test, {}
    shares = overlap.seen_shares(texts, settings.dataset)
    kept = np.flatnonzero(~(shares > 0)) if settings.exclude_seen else np.arange(len(test))
    if not len(kept):
        raise InputError("a 13-gram of every test item was trained on; leave the task or --exclude_seen out")
    return [test[number] for number in kept], overlap.details(shares[kept], len(test) - len(kept))


def load_tokenizer(model_folder: str, settings: Settings):
    """The checkpoint's tokenizer: padding on the right, `model_max_length` the tokens that an input may have.

    Raises:
        InputError: no model with a tokenizer there, or a tokenizer that cannot say which word a token comes from.
    """
    config = loading.load(AutoConfig, model_folder, settings.trust_remote_code)
    tokenizer = loading.load(AutoTokenizer, model_folder, settings.trust_remote_code)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {model_folder} has no tokenizer.json; save it as a fast tokenizer")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of {model_folder} has neither a padding nor an end-of-text token; give it one")
    positions = getattr(config, "max_position_embeddings", None) or settings.max_length
    tokenizer.model_max_length = min(settings.max_length, tokenizer.model_max_length, positions)
    return tokenizer


def separated(tokenizer, first: list[str]) -> list[str]:
    """The first texts of pairs, with a line break where the tokenizer itself puts nothing between the two."""
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return first
    return [text + "\n" for text in first]


def load_model(model_folder: str, head: Head, tokenizer, trust_remote_code: bool = False):
    """The checkpoint under a new head, in float32. The head's weights depend on torch's seed.

    Raises:
        InputError: the architecture has no such head, or the weights are not those of its base model.
    """
    model = loading.load_model(
        head.auto_class, model_folder, new_head=True, trust_remote_code=trust_remote_code, **head.options
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


class _Progress(ProgressCallback):
    """The Trainer's bars under a name of their own, and no log lines."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)

    def on_log(self, args, state, control, **kwargs):
        pass


class _Trainer(Trainer):
    """Predicts in the order of the rows: with batches grouped by length, the Trainer would shuffle these too."""

    def _get_eval_sampler(self, eval_dataset):
        return torch.utils.data.SequentialSampler(eval_dataset)


def train(
    name: str,
    model_folder: str,
    head: Head,
    tokenizer,
    rows: list[Row],
    learning_rate: float,
    seed: int,
    num_train_epochs: float,
    batch_size: int,
    trust_remote_code: bool = False,
) -> Trainer:
    """One run: AdamW, 10 % of the steps to warm up, then linear decay to 0; bfloat16 where CUDA has it."""
    set_seed(seed)
    model = load_model(model_folder, head, tokenizer, trust_remote_code)
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    with tempfile.TemporaryDirectory() as folder:  # the Trainer wants one; nothing is saved
        arguments = TrainingArguments(
            output_dir=folder,
            seed=seed,
            learning_rate=learning_rate,
            num_train_epochs=num_train_epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=2 * batch_size,
            train_sampling_strategy="group_by_length",
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=half,
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        trainer = _Trainer(model=model, args=arguments, train_dataset=rows, data_collator=head.collator(tokenizer))
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(_Progress(name))
        trainer.train()
    return trainer


def predict(trainer: Trainer, rows: list[Row]) -> list[np.ndarray]:
    """Logits of rows without labels, as in `FineTuned.outputs`; NaN, of a run that diverged, is 0: no preference."""
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))  # less padding
    logits = trainer.predict([rows[number] for number in order]).predictions
    if isinstance(logits, tuple):  # start and end of an answer
        logits = np.stack(logits, axis=-1)
    outputs = [np.empty(0)] * len(rows)
    for number, row in zip(order, np.nan_to_num(logits), strict=True):
        outputs[number] = row[: len(rows[number]["input_ids"])] if row.ndim > 1 else row
    return outputs


def fine_tune(
    name: str,
    model_folder: str,
    head: Head,
    tokenizer,
    train_rows: list[Row],
    dev_rows: list[Row],
    test_rows: list[Row],
    dev_score: Callable[[list[np.ndarray]], float],
    dev_metric: str,
    settings: Settings,
    num_train_epochs: float,
) -> FineTuned:
    """Chooses the learning rate and predicts the test rows with each seed.

    Args:
        name: for the progress bars.
        dev_score: from the logits of the development rows to a number, higher is better; `dev_metric` is its name.
        num_train_epochs: the task's own; `settings.num_train_epochs` goes before it.
    """
    epochs = settings.num_train_epochs or num_train_epochs
    batch_size = settings.per_device_train_batch_size

    def run(rate: float, seed: int) -> Trainer:
        bar = f"{name}, learning rate {rate:g}, seed {seed}"
        trust = settings.trust_remote_code
        return train(bar, model_folder, head, tokenizer, train_rows, rate, seed, epochs, batch_size, trust)

    dev_scores: dict[float, float] = {}
    chosen, outputs = None, []
    for learning_rate in settings.learning_rates:
        trainer = run(learning_rate, settings.seeds[0])
        dev_scores[learning_rate] = float(dev_score(predict(trainer, dev_rows)))
        if chosen is None or dev_scores[learning_rate] > dev_scores[chosen]:
            chosen, outputs = learning_rate, [predict(trainer, test_rows)]
    outputs += [predict(run(chosen, seed), test_rows) for seed in settings.seeds[1:]]
    details = {
        "model_class": type(trainer.model).__name__,
        "seeds": list(settings.seeds),
        "learning_rate": chosen,
        "dev_metric": dev_metric,
        "dev_scores": {f"{rate:g}": score for rate, score in dev_scores.items()},
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "max_length": tokenizer.model_max_length,
        "limit": settings.limit,
        "rows": {"train": len(train_rows), "dev": len(dev_rows), "test": len(test_rows)},
    }
    return FineTuned(outputs, details)
