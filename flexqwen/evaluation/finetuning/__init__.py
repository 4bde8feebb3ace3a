"""Fine-tunes a checkpoint on a labelled task with transformers' Trainer, and scores it over seeds.

A run ends when a third of its epochs in a row were no better on the development set than the best one, whose weights
count. The learning rate is chosen there, too, with the first seed; the other seeds are trained with the chosen one. The
test set is predicted after that choice and decides nothing. A FlexQwen attends bidirectionally under every head; a
model of another kind runs as its own class does (a BERT bidirectionally, a plain Qwen3 causally).

Same checkpoint, data and settings: same bits on CPU.
"""

import math
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from flexqwen import loading
from flexqwen.cli import InputError
from flexqwen.data import passages
from flexqwen.evaluation.results import Result, is_share
from flexqwen.evaluation.statistics import FEW, mean_interval, over_seeds
from flexqwen.evaluation.tasks import Context, Task
from flexqwen.subsampling import subsample

Row = dict[str, Any]
"""One input of the model as the tokenizer gives it (`input_ids`, `attention_mask`, ...), and labels where it trains."""


class Head(NamedTuple):
    """A kind of task: the Auto class of the model, and what its config needs to know, such as `num_labels`."""

    auto_class: type
    options: dict[str, Any] = {}  # noqa: RUF012


def prepare_splits(
    splits: dict[str, list], get_text: Callable[[Any], str], context: Context
) -> tuple[dict[str, list], dict[str, Any]]:
    """The items that are used, and what the training splits of `context.dataset` hold of the texts of test."""
    splits = {split: subsample(items, context.limit) for split, items in splits.items()}
    if not context.has_dataset:
        return splits, {}
    test = splits["test"]
    shares = passages.find_seen_shares([get_text(item) for item in test], context.dataset)
    kept = np.flatnonzero(~(shares > 0)) if context.exclude_seen else np.arange(len(test))
    if not len(kept):
        raise InputError("a 13-gram of every test item was trained on; leave the task or --exclude_seen out")
    details = passages.describe_seen(shares[kept], len(test) - len(kept))
    return {**splits, "test": [test[number] for number in kept]}, details


def encode_splits(encode: Callable, tokenizer, splits: dict[str, list]) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """For each split the rows, and what else `encode(tokenizer, items)` gives."""
    encoded = {split: encode(tokenizer, items) for split, items in splits.items()}
    return {split: rows for split, (rows, _) in encoded.items()}, {split: more for split, (_, more) in encoded.items()}


def load_tokenizer(model_folder: str, context: Context):
    """The checkpoint's tokenizer: padding on the right, `model_max_length` the tokens that an input may have."""
    config = loading.load(AutoConfig, model_folder, context.trust_remote_code)
    tokenizer = loading.load(AutoTokenizer, model_folder, context.trust_remote_code)
    loading.check_tokenizer(tokenizer, config, model_folder)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer of {model_folder} has no tokenizer.json; save it as a fast tokenizer")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of {model_folder} has neither a padding nor an end-of-text token; give it one")
    positions = getattr(config, "max_position_embeddings", None) or context.max_length
    tokenizer.model_max_length = min(context.max_length, tokenizer.model_max_length, positions)
    return tokenizer


def separate_pairs(tokenizer, first: list[str]) -> list[str]:
    """The first texts of pairs, with a line break where the tokenizer itself puts nothing between the two."""
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return first
    return [text + "\n" for text in first]


def load_model(model_folder: str, head: Head, tokenizer, trust_remote_code: bool = False):
    """The checkpoint under a new head, in float32. The head's weights depend on torch's seed."""
    options = {"new_head": True, "trust_remote_code": trust_remote_code, **head.options}
    model = loading.load_model(head.auto_class, model_folder, **options)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


class _Progress(ProgressCallback):
    """The Trainer's bars, without log lines."""

    def on_log(self, *args, **kwargs):
        pass


class _BestEpoch(TrainerCallback):
    """Scores the development set after each epoch; ends training when a third of all epochs did not raise the best."""

    def __init__(self, score: Callable[[], float]):
        self.score, self.best, self.weights, self.waited = score, -math.inf, {}, 0

    def on_epoch_end(self, args, state, control, model, **kwargs):
        if (score := self.score()) > self.best:
            self.best, self.weights = score, {name: weight.clone() for name, weight in model.state_dict().items()}
            self.waited = 0
        else:
            self.waited += 1
            control.should_training_stop |= self.waited >= args.num_train_epochs / 3


def train(
    model_folder: str, head: Head, tokenizer, rows: list[Row], context: Context, score=lambda trainer: 0.0, **choices
) -> tuple[Trainer, float]:
    """The Trainer with the model of a run's best epoch, and that epoch's score (higher is better).

    AdamW, 10 % of the steps to warm up, then linear decay to 0; bfloat16 where CUDA has it. `choices` are `seed`,
    `learning_rate` and `num_train_epochs` of `TrainingArguments`.
    """
    transformers.set_seed(choices["seed"])
    model = load_model(model_folder, head, tokenizer, context.trust_remote_code)
    is_token_task = head.auto_class is AutoModelForTokenClassification
    collator = "DataCollatorForTokenClassification" if is_token_task else "DataCollatorWithPadding"
    collator = getattr(transformers, collator)(tokenizer)
    with tempfile.TemporaryDirectory() as folder:  # the Trainer wants one; nothing is saved
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=context.per_device_train_batch_size,
            per_device_eval_batch_size=2 * context.per_device_train_batch_size,
            train_sampling_strategy="group_by_length",
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            **choices,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
        trainer.pop_callback(ProgressCallback)
        trainer.add_callback(_Progress)
        trainer.add_callback(epochs := _BestEpoch(lambda: float(score(trainer))))
        trainer.train()
    trainer.model.load_state_dict(epochs.weights)
    return trainer, epochs.best


def predict(trainer: Trainer, rows: list[Row]) -> list[np.ndarray]:
    """Logits of rows without labels, as `fine_tune` gives them; NaN, of a run that diverged, is 0: no preference."""
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))  # less padding
    grouped, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "sequential"  # else shuffled
    logits = trainer.predict([rows[number] for number in order]).predictions
    trainer.args.train_sampling_strategy = grouped
    if isinstance(logits, tuple):  # start and end of an answer
        logits = np.stack(logits, axis=-1)
    outputs = [np.empty(0)] * len(rows)
    for number, row in zip(order, np.nan_to_num(logits), strict=True):
        outputs[number] = row[: len(rows[number]["input_ids"])] if row.ndim > 1 else row
    return outputs


def fine_tune(
    name,
    model_folder: str,
    head: Head,
    tokenizer,
    rows: dict,
    dev_score: Callable,
    dev_metric,
    context: Context,
    epochs,
) -> tuple[list[list[np.ndarray]], dict[str, Any]]:
    """Chooses the learning rate and predicts the test rows with each seed.

    Rows of `train` have labels, of `dev` and `test` none. `dev_score` goes from the logits of the development rows to a
    number, higher is better; `dev_metric` is its name. `context.num_train_epochs` goes before `epochs`.

    Gives for each seed, for each test row, its float32 logits: `(labels,)` of a classified row, `(length, labels)` of
    classified tokens, `(length, 2)` for start and end of an answer, padding cut off; and `Result.details`.
    """
    epochs, rates = context.num_train_epochs or epochs, context.learning_rates
    bar = tqdm(total=len(rates) + context.seeds - 1, desc=name, unit="run", leave=False)

    def score(trainer: Trainer) -> float:
        return dev_score(predict(trainer, rows["dev"]))

    def run(rate: float, seed: int) -> tuple[Trainer, float]:
        choices, start = {"learning_rate": rate, "seed": seed, "num_train_epochs": epochs}, time.monotonic()
        found = train(model_folder, head, tokenizer, rows["train"], context, score, **choices)
        bar.update()
        left = (time.monotonic() - start) * (bar.total - 1) / 60
        if bar.n == 1 and left > 1:
            print(f"{name}: {bar.total - 1} more runs, about {left:.0f} minutes", flush=True)
        return found

    dev_scores: dict[float, float] = {}
    for rate in rates:
        trainer, dev_scores[rate] = run(rate, 0)
        if max(dev_scores, key=dev_scores.get) == rate:  # the first of those that are even
            chosen, outputs = rate, [predict(trainer, rows["test"])]
    outputs += [predict(run(chosen, seed)[0], rows["test"]) for seed in range(1, context.seeds)]
    bar.close()
    details = {
        "model_class": type(trainer.model).__name__,
        "seeds": list(range(context.seeds)),
        "learning_rate": chosen,
        "dev_metric": dev_metric,
        "dev_scores": {f"{rate:g}": score for rate, score in dev_scores.items()},
        "num_train_epochs": epochs,
        "per_device_train_batch_size": context.per_device_train_batch_size,
        "max_length": tokenizer.model_max_length,
        "limit": context.limit,
        "rows": {split: len(rows[split]) for split in ("train", "dev", "test")},
    }
    return outputs, details


def seeds_result(
    task: Task, metric: str, compute: Callable, gold: np.ndarray, predicted: np.ndarray, drawn_together=None, **fields
) -> Result:
    """The `Result` of a metric over seeds, of `compute(gold, predicted)`: `(units, ...)` and `(seeds, units, ...)`.

    The interval draws units, or groups of those whose names in `drawn_together` are the same; `n` counts units.
    """

    def measure(seed: int, drawn: np.ndarray) -> float:
        return compute(gold[drawn], predicted[seed, drawn])

    values, interval = over_seeds(measure, len(predicted), len(gold), drawn_together)
    few = len(set(drawn_together if drawn_together is not None else range(len(gold)))) < FEW
    if few and is_share(metric):  # a bootstrap of few right answers would say [1, 1]
        low, high = mean_interval(fields["items"], None, fields.get("clusters") or drawn_together, (0, 1))
        interval = [min(interval[0], low), max(interval[1], high)]
    fields = {"n": len(gold), **fields, "details": {**fields["details"], "per_seed": values}}
    return Result(task.name, task.version, "finetuned", metric, float(np.mean(values)), interval, **fields)
