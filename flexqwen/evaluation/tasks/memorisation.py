"""How much of what a model writes stands in what it was trained on, and how much better it knows it: docs/tasks.md."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flexqwen.cli import InputError
from flexqwen.data.ngrams import cut_batches, hash_ngrams, number_texts
from flexqwen.data.packing import describe_rows, encode_documents, find_folder
from flexqwen.data.passages import Passages
from flexqwen.data.texts import dataset_digest, read_texts
from flexqwen.evaluation.heldout import HeldOut, score
from flexqwen.evaluation.likelihood import Scorer
from flexqwen.evaluation.metrics.bpb.bpb import bits_per_byte
from flexqwen.evaluation.results import Result
from flexqwen.evaluation.statistics import mean_interval
from flexqwen.evaluation.tasks import Context, Item, Task
from flexqwen.files import digest, read_json

PROMPT, NEW = 16, 48  # tokens
BATCH = 128  # continuations sampled at a time
_BATCH_CHARACTERS = 1 << 22


def load(context: Context) -> list[Item]:
    """The held-out documents that surely have tokens enough for a prompt and its continuation."""
    TrainingTexts(context.model, context.dataset)  # says what is wrong with them
    texts = read_texts(context.dataset, "heldout", context.split)
    return [Item(name, text) for name, text in texts if len(text.split()) >= PROMPT + NEW]


def measure(task: Task, scorer: Scorer, items: list[Item], mode: str, context: Context) -> list[Result]:
    """The gap in bits per byte; in causal mode also what the continuations have copied."""
    texts, trained = [item.text for item in items], TrainingTexts(context.model, context.dataset)
    sizes = [len(text.encode()) for text in trained]
    places = match_sizes([len(text.encode()) for text in texts], sizes)
    known, other = (measure_rows(scorer, those, mode) for those in (trained.pick(places), texts))
    shared = {"mode": mode, "baseline": 0.0, "details": {"training_documents": len(sizes)}}
    pairs = [replace(item, cluster=str(place)) for item, place in zip(items, places, strict=True)]
    fields = {"metric": "gap_bits_per_byte", "subset": "documents", "baseline_name": "no gap", **shared}
    results = [task.mean_result(pairs, other - known, **fields)]
    if mode == "causal":
        starts = [ids[1 : 1 + PROMPT + NEW] for ids in encode_documents(scorer.tokenizer, texts)]
        prompts = np.array([[scorer.prefix[0], *ids[:PROMPT]] for ids in starts])
        written = sample_continuations(scorer, prompts, [item.id for item in items])
        real = np.array([ids[PROMPT:] for ids in starts])
        found = find_copied([*decode_words(scorer, written), *decode_words(scorer, real)], trained)
        copied, level = found[: len(items)], found[len(items) :]
        fields |= {"metric": "copied_7grams", "subset": "continuations", "baseline": float(level.mean())}
        fields |= {"baseline_name": "the documents' own", "details": {"baseline_interval": mean_interval(level)}}
        results.append(task.mean_result(items, copied, **fields))
    return results


class TrainingTexts:
    """The documents that a run was trained on, read from its dataset each time anew."""

    def __init__(self, checkpoint: str, dataset: str):
        path, self.dataset, self.ids = Path(checkpoint).parent / "run.json", dataset, None
        if (run := read_json(path)) is None:
            raise InputError(f"no {path}, which says what {checkpoint} was trained on; evaluate it in its run's folder")
        settings, digests = run["settings"], run["digests"]
        if digests["dataset"] != dataset_digest(dataset):
            raise InputError(f"{checkpoint} was not trained on {dataset}; pass the --dataset of its run")
        self.config, tokens = settings["dataset_config"], settings.get("unique_tokens")
        sample = settings["sequence_length"], tokens, settings["seed"]
        key = describe_rows(digests["dataset"], self.config, digests["tokenizer"], *sample)
        store = Path(settings.get("token_store") or find_folder(settings["token_stores"], key))
        if (names := store / "documents.txt").is_file():
            self.ids = set(names.read_text(encoding="utf-8").splitlines())
        elif tokens is not None:
            raise InputError(f"no {names}, which names the documents of {checkpoint}; train.py makes it again")

    def __iter__(self) -> Iterator[str]:
        for name, text in read_texts(self.dataset, self.config, "train"):
            if self.ids is None or name in self.ids:
                yield text

    def pick(self, places: Sequence[int]) -> list[str]:
        """Those at these places, which may come several times."""
        wanted = set(places)
        found = {place: text for place, text in enumerate(self) if place in wanted}
        return [found[place] for place in places]


def match_sizes(sizes: Sequence[int], among: Sequence[int]) -> list[int]:
    """For each size the place of the nearest among others, the first of those that are even."""
    order = np.argsort(among, kind="stable")
    ordered = np.append(np.asarray(among, np.float64)[order], np.inf)
    after = np.searchsorted(ordered, sizes).clip(1)
    nearer = np.abs(ordered[after - 1] - sizes) <= np.abs(ordered[after] - sizes)
    return order[after - nearer].tolist()


def measure_rows(scorer: Scorer, texts: list[str], mode: str) -> np.ndarray:
    """Bits per byte of the first row of each text: float64 `(texts,)`."""
    rows = [ids[: scorer.length] for ids in encode_documents(scorer.tokenizer, texts)]
    sizes = [len(text.encode()) for text in scorer.tokenizer.batch_decode(rows, skip_special_tokens=True)]
    held_out = HeldOut.of(rows, sizes, scorer.length, scorer.tokenizer)
    return bits_per_byte(score(scorer.model, held_out, mode, scorer.batch_tokens, progress=True), held_out.bytes)


@torch.inference_mode()
def sample_continuations(scorer: Scorer, prompts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Tokens drawn one after another from the model at temperature 1, no special token among them: int64 `(prompts,
    NEW)`. The prompts are int64 `(prompts, length)`, BOS included; a prompt's draws depend on its name alone.
    """
    model, never = scorer.model, scorer.tokenizer.all_special_ids
    draws = np.stack([np.random.default_rng(int(digest(name)[:16], 16)).random(NEW) for name in names])
    written = []
    for start in range(0, len(prompts), BATCH):
        tokens, past, columns = torch.from_numpy(prompts[start : start + BATCH]).to(model.device), None, []
        for step in range(NEW):
            output = model(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
            logits, past = output.logits[:, -1].double(), output.past_key_values
            logits[:, never] = -torch.inf
            summed = logits.softmax(-1).cumsum(-1)
            drawn = torch.from_numpy(draws[start : start + BATCH, step, None]).to(model.device) * summed[:, -1:]
            tokens = torch.searchsorted(summed, drawn, right=True).clamp(max=summed.shape[-1] - 1)
            columns.append(tokens)
        written.append(torch.cat(columns, 1).cpu().numpy())
    return np.concatenate(written)


def decode_words(scorer: Scorer, continuations: np.ndarray) -> list[str]:
    """The whole words of each: not the last, and not the first where no space is before it."""
    texts = scorer.tokenizer.batch_decode(continuations, clean_up_tokenization_spaces=False)
    return [" ".join(text.split()[not text[:1].isspace() : -1]) for text in texts]


def find_copied(texts: list[str], trained: TrainingTexts) -> np.ndarray:
    """Share of each text's word 7-grams that stand in a training document: float64 `(texts,)`."""
    grams, total = hash_ngrams(texts)
    wanted = Passages(np.unique(grams))
    is_known = np.zeros(len(wanted.hashes), bool)
    for batch in cut_batches(trained, _BATCH_CHARACTERS):
        is_known[wanted.find(hash_ngrams(batch)[0])[1]] = True
    copied = number_texts(total)[is_known[np.searchsorted(wanted.hashes, grams)]]
    return np.bincount(copied, minlength=len(texts)) / np.maximum(total, 1)


MEMORISATION = Task("memorisation", 2, load, measure, modes=("causal", "masked"), settings=("split",))
