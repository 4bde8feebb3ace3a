"""What frozen states of words know of grammar: parts of speech and heads in UD Bosque, by probes: docs/tasks.md."""

from collections import Counter
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from flexqwen.evaluation.likelihood import BATCH_TOKENS, Row, Scorer, make_batches
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.evaluation.tasks.bosque_pos import FILES
from flexqwen.evaluation.treebanks import Sentence, read_sentences
from flexqwen.subsampling import subsample

TRAIN, RIDGE = 2000, 1.0
RANK, REACH, EPOCHS, BATCH, RATE = 64, 10, 15, 64, 3e-3


class Words:
    """The words of a sentence that are probed: their forms, tags, and the characters of the text at which they end.

    `heads`: int64, of each word the place of its head among them; -1 where it is the root or its head is left out.
    """

    def __init__(self, sentence: Sentence):
        tokens = [token for number, token in sentence.tokens.items() if number not in sentence.contracted]
        places = {token["id"]: place for place, token in enumerate(tokens)}
        self.id, self.text = sentence.id, sentence.text
        self.forms, self.tags = ([token[name] for token in tokens] for name in ("lower", "upos"))
        self.ends = [sentence.starts[token["id"]] + len(token["form"]) for token in tokens]
        self.heads = torch.tensor([places.get(token["head"], -1) for token in tokens], dtype=torch.int64)


@torch.inference_mode()
def find_states(scorer: Scorer, sentences: list[Words], mode: str) -> list[torch.Tensor]:
    """The states of each sentence's words, float32 `(words, hidden)`, on the CPU; of a long sentence, its beginning."""
    rows, states, device = [], [torch.empty(0)] * len(sentences), scorer.model.device
    for owner, words in enumerate(sentences):
        encoding = scorer.backend.encode(words.text, add_special_tokens=False)
        tokens = np.array([*scorer.prefix, *encoding.ids, *scorer.suffix])[: scorer.length]
        begins = [begin for begin, _ in encoding.offsets]
        last = np.searchsorted(begins, words.ends) - 1 + len(scorer.prefix)
        rows.append(Row(tokens, np.minimum(last, len(tokens) - 1), owner))
    options = {"is_causal": mode == "causal", "use_cache": False} if scorer.kind == "flexqwen" else {}
    for batch in make_batches(rows, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"]), None):
        options["attention_mask"] = batch.attention_mask.to(device)
        found = scorer.model.base_model(batch.input_ids.to(device), output_hidden_states=True, **options).hidden_states
        mean = torch.stack(found).mean(0)[batch.predicted].float().cpu()
        for line, owner in enumerate(batch.owners):
            states[owner] = mean[batch.predicted[0] == line]
    return states


def predict_tags(train: torch.Tensor, tags: list[str], test: torch.Tensor) -> list[str]:
    """By ridge regression with a constant, in closed form."""
    names = sorted(set(tags))
    train, test = (F.pad(states, (0, 1), value=1.0) for states in (train, test))
    wanted = F.one_hot(torch.tensor([names.index(tag) for tag in tags]), len(names)).float()
    weights = torch.linalg.solve(train.T @ train + RIDGE * torch.eye(train.shape[1]), train.T @ wanted)
    return [names[place] for place in (test @ weights).argmax(-1)]


class ArcProbe(torch.nn.Module):
    """Scores of each word of a sentence as another's head: `(sentences, words, words)`."""

    def __init__(self, hidden: int):
        super().__init__()
        self.dependent, self.head = torch.nn.Linear(hidden, RANK), torch.nn.Linear(hidden, RANK)
        self.distance = torch.nn.Parameter(torch.zeros(2 * REACH + 1))

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        padded, lengths = pad_sequence(states, batch_first=True), torch.tensor([len(part) for part in states])
        places = torch.arange(padded.shape[1])
        distance = self.distance[(places - places[:, None]).clamp(-REACH, REACH) + REACH]
        scores = self.dependent(padded) @ self.head(padded).transpose(1, 2) / RANK**0.5 + distance
        return scores.masked_fill((places >= lengths[:, None])[:, None] | (places == places[:, None]), -1e9)


def fit_arcs(states: list[torch.Tensor], sentences: list[Words]) -> ArcProbe:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        probe = ArcProbe(states[0].shape[-1])
    optimizer, generator = torch.optim.AdamW(probe.parameters(), lr=RATE), torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(states), generator=generator).split(BATCH):
            heads = pad_sequence([sentences[n].heads for n in part], batch_first=True, padding_value=-1)
            scores = probe([states[n] for n in part])
            optimizer.zero_grad()
            F.cross_entropy(scores.flatten(0, 1), heads.flatten(), ignore_index=-1).backward()
            optimizer.step()
    return probe


def load(context: Context) -> list[Item]:
    """The sentences of the test set."""
    return [Item(sentence.id, sentence.text) for sentence in read_sentences(FILES["test"], "")]


def probe(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """Accuracy of tags, and of heads (unlabelled attachment, roots left out); an item is a sentence."""
    kept = {item.id for item in items}
    test = [Words(sentence) for sentence in read_sentences(FILES["test"], "") if sentence.id in kept]
    train = subsample(list(map(Words, read_sentences(FILES["train"], ""))), min(context.limit or TRAIN, TRAIN))
    known, states = find_states(scorer, train, mode), find_states(scorer, test, mode)
    tags, forms = ([*chain(*(getattr(words, name) for words in train))] for name in ("tags", "forms"))
    found = iter(predict_tags(torch.cat(known), tags, torch.cat(states)))
    common = dict(pair for pair, _ in sorted(Counter(zip(forms, tags, strict=True)).items(), key=lambda p: p[1]))
    often = Counter(tags).most_common(1)[0][0]
    arcs = fit_arcs(known, train)
    distances = Counter(chain(*((w.heads - torch.arange(len(w.heads)))[w.heads >= 0].tolist() for w in train)))
    step = distances.most_common(1)[0][0]
    rows = {"upos": [], "arcs": []}  # of each sentence: words, those that are right, and right by the baseline
    for words, part in zip(test, states, strict=True):
        right = [next(found) == tag for tag in words.tags]
        guessed = [common.get(form, often) == tag for form, tag in zip(words.forms, words.tags, strict=True)]
        rows["upos"].append((len(right), sum(right), sum(guessed)))
        with torch.no_grad():
            heads, has_head = arcs([part])[0].argmax(-1), words.heads >= 0
        right, guessed = heads == words.heads, torch.arange(len(heads)) + step == words.heads
        rows["arcs"].append((int(has_head.sum()), int((right & has_head).sum()), int((guessed & has_head).sum())))
    results = []
    for subset, name in (("upos", "each word's most frequent tag in train"), ("arcs", "the most frequent distance")):
        those = [(words, row) for words, row in zip(test, rows[subset], strict=True) if row[0]]
        sizes, right, guessed = np.array([row for _, row in those]).T
        fields = {"baseline": float(guessed.sum() / sizes.sum()), "baseline_name": name, "subset": subset, "mode": mode}
        members = [Item(words.id, "") for words, _ in those]
        details = {"words": int(sizes.sum()), "train_sentences": len(train)}
        fields |= {"weights": sizes, "metric": "accuracy", "details": details}
        results.append(task.mean_result(members, right / sizes, **fields))
    return results


UD_PROBE = Task("ud_probe", 1, load, probe, modes=("causal", "masked"))
