"""How well a model predicts text: nats per predicted token and bits per byte, causally and masked."""

import math

import numpy as np

from flexqwen.data.texts import read_texts
from flexqwen.evaluation.heldout import MODES, score, score_unigram, tokenize_texts
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.metrics.bpb.bpb import bits_per_byte
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.treebanks import read_sentences

TREEBANKS = ("ud_bosque", "ud_porttinari", "ud_pud")


def load(context: Context) -> list[Item]:
    """The held-out documents of the dataset."""
    texts = read_texts(context.dataset, "heldout", context.split, context.documents)
    return [Item(name, text, groups=(context.split,)) for name, text in texts]


def load_ud(context: Context) -> list[Item]:
    """The sentences of the UD treebanks' test sets, each a document."""
    names = (f"{folder}/pt_{folder.removeprefix('ud_')}-ud-test.conllu" for folder in TREEBANKS)
    return [Item(sentence.id, sentence.text) for name in names for sentence in read_sentences(name)]


def predict_texts(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Nats per predicted token and bits per byte of texts, beside the unigram model of the same tokenizer.

    A model that is no FlexQwen is scored as `likelihood` does: windows overlap, and each token has a masked copy. That
    sees more of a text, so the figures do not compare with a FlexQwen's. Beside them, and where there is no dataset to
    count on, stands a model to which all bytes are alike.
    """
    texts = [item.text for item in items]
    if scorer.kind == "flexqwen":
        text = tokenize_texts(texts, scorer.tokenizer, scorer.length)
        nats = score(scorer.model, text, mode, scorer.batch_tokens, progress=True)
        tokens, sizes = text.tokens, text.bytes
    else:
        nats = -scorer.score(texts, mode, progress=task.name)
        tokens = np.array([len(ids.ids) for ids in scorer.backend.encode_batch(texts, add_special_tokens=False)])
        sizes = np.array([len(text.encode()) for text in texts])
    if scorer.kind == "flexqwen" and context.has_dataset:
        baseline, name = score_unigram(context.dataset, scorer.tokenizer, text), "unigram"
    else:
        baseline, name = sizes * math.log(256), "uniform bytes"
    details = {"tokens": int(tokens.sum()), "bytes": int(sizes.sum())}
    shared = {"mode": mode, "subset": items[0].groups[0], "baseline_name": name, "details": details}
    loss, bits = float(baseline.sum() / tokens.sum()), float(baseline.sum() / math.log(2) / sizes.sum())
    by_byte = bits_per_byte(nats, sizes)
    return [
        task.mean_result(items, nats / tokens, weights=tokens, metric="loss", baseline=loss, **shared),
        task.mean_result(items, by_byte, weights=sizes, metric="bits_per_byte", baseline=bits, **shared),
    ]


# Fused is no one model's; how many documents there are, `Context.documents` says.
BITS_PER_BYTE = Task(
    "bits_per_byte", 1, load, predict_texts, modes=MODES, has_limit=False, settings=("split", "documents"), by_kind=True
)
BITS_PER_BYTE_UD = Task("bits_per_byte_ud", 1, load_ud, predict_texts, modes=MODES, by_kind=True)
