"""How well a model predicts held-out text: nats per predicted token and bits per byte, causally and masked."""

import math

import numpy as np

from flexqwen.data.texts import read_texts
from flexqwen.evaluation.heldout import MODES, score, tokenized, unigram
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.results import Result, mean_result
from flexqwen.evaluation.tasks.item import Context, Item

VERSION = 1


def load(context: Context) -> list[Item]:
    """The held-out documents of the dataset."""
    texts = read_texts(context.dataset, "heldout", context.split, context.documents)
    return [Item(name, text, context.split) for name, text in texts]


def evaluate(scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Nats per predicted token and bits per byte. There is no fused mode: the two halves are no one model's."""
    return figures("bits_per_byte", scorer, items, mode, context)


def figures(task: str, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Both metrics of documents in one mode, beside the unigram model of the same tokenizer where there is a dataset.

    A model that is no FlexQwen is scored as `flexqwen.likelihood` does: whole documents, one masked copy a token.
    """
    if mode not in MODES:
        return []
    texts = [item.text for item in items]
    if scorer.kind == "flexqwen":
        text = tokenized(texts, scorer.tokenizer, scorer.length)
        nats = score(scorer.model, text, mode, scorer.batch_tokens, progress=True)
        tokens, sizes = text.tokens, text.bytes
        baseline, name = unigram(context.dataset, scorer.tokenizer, text), "unigram"
    else:
        nats = -scorer.score(texts, mode, progress=task)
        tokens = np.array([len(ids.ids) for ids in scorer.backend.encode_batch(texts, add_special_tokens=False)])
        sizes = np.array([len(text.encode()) for text in texts])
        baseline, name = sizes * math.log(256), "uniform bytes"
    shared = {"task": task, "version": VERSION, "mode": mode, "baseline_name": name, "subset": items[0].group}
    shared["details"] = {"tokens": int(tokens.sum()), "bytes": int(sizes.sum())}
    ids = [item.id for item in items]
    bits, bits_baseline = nats / math.log(2), float(baseline.sum() / math.log(2) / sizes.sum())
    return [
        mean_result(nats / tokens, ids, tokens, metric="loss", baseline=float(baseline.sum() / tokens.sum()), **shared),
        mean_result(bits / sizes, ids, sizes, metric="bits_per_byte", baseline=bits_baseline, **shared),
    ]
