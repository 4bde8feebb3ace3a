"""ASSIN 2's similarities without fine-tuning: the cosine of two sentences' embeddings. See docs/tasks.md."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from flexqwen.evaluation.finetuning.text_classification import Example
from flexqwen.evaluation.likelihood import Request, Scorer
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task, assin2

BATCH = 64  # sentences


def load(context: Context) -> list[Item]:
    """The pairs of the test set."""
    return [
        Item(example.id, " ".join(example.texts), [list(map(Request, example.texts))], label=example.label)
        for example in assin2.read()["sts"]["test"]
    ]


@torch.inference_mode()
def embed(scorer: Scorer, texts: Sequence[str], is_causal: bool) -> np.ndarray:
    """The mean of each text's last hidden states: float32 `(texts, hidden)`."""
    found, device = [], scorer.model.device
    options = {"is_causal": is_causal} if scorer.kind == "flexqwen" else {}
    for start in range(0, len(texts), BATCH):
        encodings = scorer.backend.encode_batch(list(texts[start : start + BATCH]))
        ids = [torch.tensor(encoding.ids[: scorer.length]) for encoding in encodings]
        real = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
        rows = pad_sequence(ids, batch_first=True).to(device)
        states = scorer.model.base_model(input_ids=rows, attention_mask=real, **options).last_hidden_state
        found.append(((states * real[..., None]).sum(1) / real.sum(1, keepdim=True)).float().cpu().numpy())
    return np.concatenate(found)


def score(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    pairs = [Example(item.id, tuple(request.text for request in item.questions[0]), item.label) for item in items]
    one, other = (embed(scorer, [pair.texts[place] for pair in pairs], mode == "causal") for place in (0, 1))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    gold = [pair.label for pair in pairs]
    items_of = [influences(gold, values) for values in (cosines, assin2.measure_overlap(pairs))]
    baseline = {"baseline": float(items_of[1].mean()), "baseline_name": "word overlap"}
    return [task.mean_result(items, items_of[0], mode=mode, metric="pearson", **baseline)]


def influences(one, other) -> np.ndarray:
    """What each pair of values does to Pearson's correlation r: float64 `(pairs,)`, whose mean is r.

    The influence function of r (Devlin, Gnanadesikan and Kettenring, 1975) plus r. The mean of the products of standard
    scores is r, too, but takes mean and spread for known: its interval is far too wide where r is high.
    """
    values = np.array([one, other], dtype=np.float64)
    spread = values.std(1, keepdims=True)
    scores = (values - values.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    r = scores.prod(0).mean()
    return scores.prod(0) - r * (scores**2).mean(0) + r


ASSIN2_EMBEDDINGS = Task("assin2_embeddings", 2, load, score, modes=("causal", "masked"))
