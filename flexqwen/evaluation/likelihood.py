"""How likely a language model finds a text: causally, masked, or both, for FlexQwen and for transformers' own models.

- causal: the sum of each token's log-probability given those before it.
- masked: the sum of each token's log-probability given all others, one copy of the text a token, in which that token
  is masked (the pseudo-log-likelihood of Salazar et al., ACL 2020). `within_word`: one copy a word, all of whose tokens
  are masked together, since a token is easy to guess from the rest of its word (Kauf and Ivanova, ACL 2023).
  `mask_groups`: that many copies, in each of which one token of that many is masked: an estimate, in less time.
- fused: the sum of the two (as GPT-BERT, arXiv 2410.24159).

Log-probabilities are natural logarithms at temperature 1, in float32. They do not depend on the order of the texts,
nor, but for rounding, on the size of the batches.
"""

import copy
import functools
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, Qwen3Model

from flexqwen import loading
from flexqwen.cli import InputError
from flexqwen.evaluation import MODES
from flexqwen.evaluation.bidirectional import Encoder
from flexqwen.files import digest, read_json, write_json

BATCH_TOKENS = {"cpu": 512, "cuda": 32_768}  # by device; on a CPU what a batch makes should stay in the caches
HEAD_ROWS = 64  # predicted tokens of batches that share a pass through the head, on a CPU; for few it is slow
LOGITS = 2**26  # of a batch, at most, where it has more than one row: 256 MiB in float32
BLOCK_TOKENS = 2**18  # of requests that are scored, and kept, together
UNBOUNDED = 1024  # tokens at a time, for models that have no last position
LONG = 60  # seconds from which on it is said how long scoring takes
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Request:
    """A text and the part of it that is scored, in characters.

    Masked scoring counts the tokens of this part (all by default); causal scoring those from `start` to the end of the
    text, since what follows the part depends on it.
    """

    text: str
    start: int = 0
    end: int | None = None


class Row(NamedTuple):
    """A sequence to be run through the model."""

    tokens: np.ndarray  # int64 `(length,)`
    positions: np.ndarray  # int64, of the tokens that are predicted, in masked mode masked; there may be none
    owner: int  # what their log-probabilities are added to


class Batch(NamedTuple):
    """Rows as one array, padded with 0 on the right."""

    input_ids: torch.Tensor  # int64 `(rows, longest)`, as the next
    attention_mask: torch.Tensor
    owners: np.ndarray  # int64 `(rows,)`
    predicted: tuple[np.ndarray, np.ndarray]  # rows and columns of the predicted tokens, int64 `(positions,)` each
    targets: torch.Tensor  # the predicted tokens, int64 `(positions,)`; in `input_ids` masked, if they are to be


def make_batches(
    rows: list[Row], batch_tokens: int, mask_token_id: int | None, progress=None, positions=math.inf, rectangular=False
) -> Iterator[Batch]:
    """Yields the rows, longest first; the predicted tokens masked, if `mask_token_id` is given.

    A batch of more than one row has at most `batch_tokens` tokens, padding included, and `positions` predicted ones. In
    `rectangular` ones all rows have one length and as many predicted tokens; those in which the same are predicted
    stand together. `progress` is the title of a bar.
    """

    def shape(row: Row) -> tuple[int, int]:
        return -len(row.tokens), len(row.positions) if rectangular else 0

    rows, start = sorted(rows, key=lambda row: (*shape(row), row.positions.tolist() if rectangular else 0)), 0
    with tqdm(total=len(rows), desc=progress, unit="row", disable=progress is None, leave=False) as bar:
        while start < len(rows):
            part = rows[start : start + max(1, batch_tokens // len(rows[start].tokens))]
            ends = np.cumsum([len(row.positions) for row in part])
            part = part[: max(1, int(np.searchsorted(ends, positions, side="right")))]
            if rectangular:
                part = [row for row in part if shape(row) == shape(part[0])]
            tokens, places, owners = zip(*part, strict=True)
            start += len(tokens)
            input_ids = pad_sequence([torch.from_numpy(ids) for ids in tokens], batch_first=True)
            attention_mask = pad_sequence([torch.ones(len(ids), dtype=torch.int64) for ids in tokens], batch_first=True)
            predicted = np.repeat(np.arange(len(tokens)), [len(row) for row in places]), np.concatenate(places)
            targets = input_ids[predicted]
            if mask_token_id is not None:
                input_ids[predicted] = mask_token_id
            if len(targets):
                yield Batch(input_ids, attention_mask, np.array(owners), predicted, targets)
            bar.update(len(tokens))


def _group(batches: Iterator[Batch], positions: int) -> Iterator[list[Batch]]:
    """Batches as they come, as many together as predict no more than so many tokens, but at least one."""
    group: list[Batch] = []
    for batch in batches:
        if group and sum(len(part.targets) for part in (*group, batch)) > positions:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


class Scorer:
    """A language model and its tokenizer; `kind` is "flexqwen", "causal" or "masked".

    `modes` are those of MODES that the model has, `length` is how many tokens it takes at a time, and `prefix` and
    `suffix` are the special tokens around a text. Scored blocks of requests are kept in `folder`, if there is one, so
    that interrupted scoring goes on. Scores are remembered: a model whose weights change needs another `Scorer`.
    """

    def __init__(self, model, tokenizer, kind: str, batch_tokens: int | None = None):
        # A tokenizer of its own: padding that the caller sets on theirs would change scores.
        tokenizer = copy.deepcopy(tokenizer)
        self.model, self.tokenizer, self.kind, self.batch_tokens = model.eval(), tokenizer, kind, batch_tokens
        self.run = functools.lru_cache(maxsize=2)(self.run)  # fused asks again for what causal and masked were
        self.folder: Path | None = None
        self.modes = MODES if kind == "flexqwen" else (kind,)
        if kind == "flexqwen" and (
            tokenizer.mask_token_id is None or getattr(model.base_model, "has_sliding_layers", False)
        ):
            self.modes = ("causal",)
        self.backend = tokenizer.backend_tokenizer
        self.backend.encode_special_tokens = True  # "<mask>" typed by an author is text
        self.backend.no_truncation()
        self.backend.no_padding()
        positions = getattr(model.config, "max_position_embeddings", None) or UNBOUNDED
        self.length = min(tokenizer.model_max_length, positions)
        if "masked" in self.modes and tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, which masked scoring needs")
        encoding = self.backend.encode("a")
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        self.prefix, self.suffix = encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
        if kind != "masked":  # the first token is predicted from one before it
            known = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
            self.prefix, self.suffix = self.prefix or known[:1], []
            if not self.prefix:
                raise InputError("the tokenizer has neither a BOS nor an EOS token to predict the first token from")

    def score(
        self, requests: Sequence[Request | str], mode: str, within_word=False, progress=None, mask_groups=None
    ) -> np.ndarray:
        """Log-probability of each request: float64 `(requests,)`, in nats."""
        if mode not in self.modes:
            raise InputError(f"this model is not scored in mode {mode!r}; it has: {', '.join(self.modes)}")
        requests = tuple(Request(request) if isinstance(request, str) else request for request in requests)
        how = {"causal": [(False, False, progress, None)], "masked": [(True, within_word, progress, mask_groups)]}
        how["fused"] = how["causal"] + how["masked"]
        return sum(self.run(requests, *options)[0] for options in how[mode])

    def run(
        self, requests: tuple[Request, ...], masked: bool, within_word=False, progress=None, mask_groups=None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each request, and whether every token of it was the likeliest: see `run_rows`."""
        distinct = list(dict.fromkeys(requests))
        rows = [self.make_rows(request, masked, within_word, mask_groups) for request in distinct]
        sizes = np.array([sum(len(row.tokens) for row in part) for part in rows])
        order = np.argsort([-max((len(row.tokens) for row in part), default=0) for part in rows], kind="stable")
        blocks = np.cumsum(sizes[order]) // BLOCK_TOKENS
        nats, greedy = np.zeros(len(distinct)), np.ones(len(distinct), bool)
        title, is_said = progress and f"{progress}, {'masked' if masked else 'causal'}", False
        quiet = {"disable": not title, "leave": False}
        with tqdm(total=int(sizes.sum()), desc=title, unit="token", unit_scale=True, **quiet) as bar:
            for block in np.unique(blocks):
                members = order[blocks == block]
                key = digest([masked, within_word, mask_groups, [astuple(distinct[member]) for member in members]])
                file = self.folder and self.folder / f"{key}.json"
                if found := file and read_json(file):
                    nats[members], greedy[members] = found
                else:
                    start = time.monotonic()
                    owned = [row._replace(owner=owner) for owner, member in enumerate(members) for row in rows[member]]
                    nats[members], greedy[members] = self.run_rows(owned, len(members), masked)
                    if len(wrong := members[~np.isfinite(nats[members])]):  # a choice between such would look like one
                        what = f"the log-probability of {distinct[wrong[0]].text[:60]!r} is {nats[wrong[0]]}"
                        remedy = "look for such numbers in the model's weights"
                        raise InputError(f"{title or 'scores'}: {what}, which is not finite; {remedy}")
                    if file:
                        write_json(file, [nats[members].tolist(), greedy[members].tolist()])
                    done, ahead = sizes[members].sum(), sizes[order][blocks > block].sum()
                    left = (time.monotonic() - start) / max(1, done) * ahead
                    if title and left > LONG and not is_said:
                        print(f"{title}: about {left / 60:.0f} minutes", flush=True)
                        is_said = True
                bar.update(int(sizes[members].sum()))
        places = {request: place for place, request in enumerate(distinct)}
        back = [places[request] for request in requests]
        return nats[back], greedy[back]

    def make_rows(self, request: Request, masked: bool, within_word: bool, mask_groups: int | None) -> list[Row]:
        """What is run for a request; the rows' owner is 0."""
        encoding = self.backend.encode(request.text, add_special_tokens=False)
        begin, end = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        stop = len(request.text) if request.end is None or not masked else request.end
        scored = np.flatnonzero((end > request.start) & (begin < stop))
        groups = np.arange(len(begin)) if masked else np.zeros(len(begin), np.int64)
        if masked and (within_word or mask_groups):
            groups = _words(request.text, begin, end)
            if mask_groups:  # the tokens of one word apart; the same places in two sentences that differ in a word
                place = np.arange(len(begin)) - np.searchsorted(np.maximum.accumulate(groups), groups)
                groups = (groups + (0 if within_word else place * (mask_groups // 2))) % mask_groups
        rows = []
        for tokens, positions, offset in self.windows(np.array(encoding.ids, dtype=np.int64), scored):
            own = groups[positions - len(self.prefix) + offset]
            rows += [Row(tokens, positions[own == group], 0) for group in np.unique(own)]
        return rows

    @torch.inference_mode()
    def run_rows(self, rows: Sequence[Row], owners: int, masked: bool) -> tuple[np.ndarray, np.ndarray]:
        """For each owner the summed log-probability of its rows' predicted tokens (float64, nats), and whether each of
        them was the likeliest token (bool). Logits are computed at the predicted positions only.

        On a CPU each of torch's threads takes batches of its own: threads that share a batch wait for each other at
        every step, for long where another program has the core.
        """
        device, places = self.model.device, threading.local()
        batch_tokens = self.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
        mask_token_id = self.tokenizer.mask_token_id if masked else None
        most, encoder = LOGITS // self.model.config.vocab_size, self.encoder if masked else None
        batches = make_batches(rows, batch_tokens, mask_token_id, positions=most, rectangular=encoder is not None)
        groups = _group(batches, min(most, HEAD_ROWS) if encoder and device.type == "cpu" else 0)

        def keep_positions(module, args, output):
            """The head sees the hidden states of these positions only, as one row; every head works on each alone."""
            output.last_hidden_state = output.last_hidden_state[places.read][None]
            return output

        def predict(group: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
            with torch.inference_mode():
                if encoder:
                    logits = encoder.find_logits([self._find_columns(batch) for batch in group]).float()
                else:
                    logits = self._find_logits(*group, masked, places)
                chosen = logits.gather(-1, torch.cat([batch.targets for batch in group]).to(device)[:, None])[:, 0]
                return (chosen - logits.logsumexp(-1)).double().cpu().numpy(), (chosen == logits.amax(-1)).cpu().numpy()

        nats, greedy, threads = np.zeros(owners), np.ones(owners, bool), torch.get_num_threads()
        workers = threads if device.type == "cpu" else 1
        hook = self.model.base_model.register_forward_hook(keep_positions)
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,))
        try:
            # The first groups are run while the next are made.
            for group, future in [(group, pool.submit(predict, group)) for group in groups]:
                values, hits = future.result()
                owner = np.concatenate([batch.owners[batch.predicted[0]] for batch in group])
                np.add.at(nats, owner, values)
                np.logical_and.at(greedy, owner, hits)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # which those of the pool have set for all that come
            hook.remove()
        return nats, greedy

    @functools.cached_property
    def encoder(self) -> Encoder | None:
        """What scores a FlexQwen in masked mode."""
        is_known = self.kind == "flexqwen" and isinstance(self.model.base_model, Qwen3Model)
        return Encoder(self.model) if is_known else None

    def _find_columns(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A rectangular batch's `input_ids`, and where each of its rows is read: int64 `(rows, positions)`."""
        column = torch.from_numpy(batch.predicted[1] - self._find_shift(masked=True))
        return batch.input_ids.to(self.model.device), column.view(len(batch.input_ids), -1).to(self.model.device)

    def _find_shift(self, masked: bool) -> int:
        """How many places before a token it is predicted."""
        return 0 if masked and getattr(self.model.config, "masked_prediction", "in_place") == "in_place" else 1

    def _find_logits(self, batch: Batch, masked: bool, places: threading.local) -> torch.Tensor:
        """Float32 `(positions, vocabulary)`."""
        device, (line, column) = self.model.device, batch.predicted
        places.read = line, column - self._find_shift(masked)
        options = {"is_causal": not masked} if self.kind == "flexqwen" else {}
        if masked and not batch.attention_mask.all():  # causally, no token sees the padding, which is on the right
            options["attention_mask"] = batch.attention_mask.to(device)
        if self.kind != "masked":
            options["use_cache"] = False
        return self.model(input_ids=batch.input_ids.to(device), **options).logits[0].float()

    def windows(self, ids: np.ndarray, scored: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Cuts a text that is longer than the model takes; each window begins half a window after the last one.

        Yields tokens with special tokens around them, the places of the predicted ones, and how many of `ids` stand
        before the window. Each of `scored` (numbers of tokens) is predicted once, in the first window that holds it.
        """
        room = self.length - len(self.prefix) - len(self.suffix)
        done = start = 0
        while done < len(ids):
            end = min(start + room, len(ids))
            inside = scored[(scored >= done) & (scored < end)]
            if len(inside):
                yield np.array([*self.prefix, *ids[start:end], *self.suffix]), inside - start + len(self.prefix), start
            done, start = end, start + max(1, room // 2)


def _words(text: str, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The word that each token belongs to: int64 `(tokens,)`. A word is a run of letters and digits, or one sign.

    A token of nothing but space is a word by itself, and has a number below 0.
    """
    starts = [match.start() for match in _WORD.finditer(text)]
    tokens = [text[start:stop] for start, stop in zip(begin, end, strict=True)]
    first = begin + np.array([len(token) - len(token.lstrip()) for token in tokens], dtype=np.int64)
    return np.where(first < end, np.searchsorted(starts, first, side="right"), -1 - np.arange(len(begin)))


def load(path: str, batch_tokens: int | None = None, trust_remote_code: bool = False) -> Scorer:
    """Loads a checkpoint, from a folder or the Hub, in float32, on the GPU if there is one, as `loading.load_model`."""
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")) and not list(Path(path).glob("*.bin")):
        raise InputError(f"no checkpoint in {path}: model.safetensors is missing")
    config = loading.load(AutoConfig, path, trust_remote_code)
    architecture = (config.architectures or ["model of unnamed class"])[0]
    endings = {"ForMaskedLM": "masked", "ForCausalLM": "causal", "LMHeadModel": "causal"}
    kind = next((kind for ending, kind in endings.items() if architecture.endswith(ending)), None)
    if config.model_type == "flexqwen":
        kind = "flexqwen"
    if kind is None:
        raise InputError(f"{path} is a {architecture}; scoring needs a FlexQwen, a …ForCausalLM or a …ForMaskedLM")
    auto = AutoModelForMaskedLM if kind == "masked" else AutoModelForCausalLM
    tokenizer = loading.load(AutoTokenizer, path, trust_remote_code)
    loading.check_tokenizer(tokenizer, config, path)
    if torch.cuda.is_available():  # in TF32, of which GPUs have far more arithmetic; results say so
        torch.set_float32_matmul_precision("high")
    model = loading.load_model(auto, path, trust_remote_code=trust_remote_code)
    return Scorer(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, kind, batch_tokens)
