"""How likely a language model finds a text: causally, masked, or both, for FlexQwen and for transformers' own models.

- causal: the sum of each token's log-probability given those before it.
- masked: the sum of each token's log-probability given all others, one copy of the text a token, in which that token
  is masked (the pseudo-log-likelihood of Salazar et al., ACL 2020). `within_word`: one copy a word, all of whose tokens
  are masked together, since a token is easy to guess from the rest of its word (Kauf and Ivanova, ACL 2023).
- fused: the sum of the two (as GPT-BERT, arXiv 2410.24159).

Log-probabilities are natural logarithms at temperature 1, in float32. They do not depend on the order of the texts,
nor, but for rounding, on the size of the batches.
"""

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from flexqwen import loading
from flexqwen.cli import InputError

MODES = ("causal", "masked", "fused")
BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768}  # by device; on a CPU what a batch makes should stay in the caches
LOGITS = 2**26  # of a batch, at most, where it has more than one row: 256 MiB in float32
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Request:
    """A text and the part of it that is scored.

    Attributes:
        start, end: characters. Masked scoring counts the tokens of this part (all by default); causal scoring those
            from `start` to the end of the text, since what follows the part depends on it.
    """

    text: str
    start: int = 0
    end: int | None = None


class Row(NamedTuple):
    """A sequence to be run through the model.

    Attributes:
        tokens: int64 `(length,)`.
        positions: int64, the tokens that are predicted; in masked mode they are masked. There may be none.
        owner: what their log-probabilities are added to.
    """

    tokens: np.ndarray
    positions: np.ndarray
    owner: int


class Batch(NamedTuple):
    """Rows as one array, padded with 0 on the right.

    Attributes:
        input_ids, attention_mask: int64 `(rows, longest)`.
        owners: int64 `(rows,)`.
        predicted: rows and columns of the predicted tokens, int64 `(positions,)` each.
        targets: the predicted tokens, int64 `(positions,)`; in `input_ids` they are masked, if they are to be.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    owners: np.ndarray
    predicted: tuple[np.ndarray, np.ndarray]
    targets: torch.Tensor


def make_batches(
    rows: Sequence[Row],
    batch_tokens: int,
    mask_token_id: int | None,
    progress: str | None = None,
    most_positions: float = math.inf,
) -> Iterator[Batch]:
    """Yields the rows, longest first.

    Args:
        batch_tokens, most_positions: tokens, padding included, and predicted tokens of a batch that has more than one
            row, at most.
        mask_token_id: what the predicted tokens are masked with; None leaves them as they are.
        progress: title of a progress bar; no bar by default.
    """
    rows, start = sorted(rows, key=lambda row: -len(row.tokens)), 0
    with tqdm(total=len(rows), desc=progress, unit="row", disable=progress is None, leave=False) as bar:
        while start < len(rows):
            part = rows[start : start + max(1, batch_tokens // len(rows[start].tokens))]
            ends = np.cumsum([len(row.positions) for row in part])
            part = part[: max(1, int(np.searchsorted(ends, most_positions, side="right")))]
            tokens, positions, owners = zip(*part, strict=True)
            start += len(tokens)
            input_ids = pad_sequence([torch.from_numpy(ids) for ids in tokens], batch_first=True)
            attention_mask = pad_sequence([torch.ones(len(ids), dtype=torch.int64) for ids in tokens], batch_first=True)
            predicted = np.repeat(np.arange(len(tokens)), [len(row) for row in positions]), np.concatenate(positions)
            targets = input_ids[predicted]
            if mask_token_id is not None:
                input_ids[predicted] = mask_token_id
            if len(targets):
                yield Batch(input_ids, attention_mask, np.array(owners), predicted, targets)
            bar.update(len(tokens))


def _keep_positions(rows: np.ndarray, columns: np.ndarray, module, args, output):
    """A forward hook: the head sees the hidden states of these positions only, as one row `(1, positions, hidden)`.

    Every head of transformers works on each position by itself, so the logits are those of the whole.
    """
    output.last_hidden_state = output.last_hidden_state[rows, columns][None]
    return output


class Scorer:
    """A language model and its tokenizer.

    Attributes:
        kind: "flexqwen", "causal" or "masked".
        modes: those of MODES that the model has.
        length: tokens that it takes at a time; prefix, suffix: the special tokens around a text.
    """

    def __init__(self, model, tokenizer, kind: str, batch_tokens: int | None = None):
        self.model, self.tokenizer, self.kind, self.batch_tokens = model.eval(), tokenizer, kind, batch_tokens
        self.run = functools.lru_cache(maxsize=2)(self.run)  # fused asks again for what causal and masked were
        self.modes = MODES if kind == "flexqwen" else (kind,)
        self.backend = tokenizer.backend_tokenizer
        self.backend.encode_special_tokens = True  # "<mask>" typed by an author is text
        self.backend.no_truncation()
        self.backend.no_padding()
        self.length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        if "masked" in self.modes and tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, which masked scoring needs; pass --modes causal")
        encoding = self.backend.encode("a")
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        self.prefix, self.suffix = encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
        if kind != "masked":  # the first token is predicted from one before it
            known = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
            self.prefix, self.suffix = self.prefix or known[:1], []
            if not self.prefix:
                raise InputError("the tokenizer has neither a BOS nor an EOS token to predict the first token from")

    def score(
        self, requests: Sequence[Request | str], mode: str, within_word: bool = False, progress: str | None = None
    ) -> np.ndarray:
        """Log-probability of each request: float64 `(requests,)`, in nats."""
        if mode not in self.modes:
            raise InputError(f"this model is not scored in mode {mode!r}; it has: {', '.join(self.modes)}")
        requests = tuple(Request(request) if isinstance(request, str) else request for request in requests)
        modes = ("causal", "masked") if mode == "fused" else (mode,)
        return sum(self.run(requests, part == "masked", within_word, progress)[0] for part in modes)

    def run(
        self, requests: tuple[Request, ...], masked: bool, within_word: bool = False, progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each request, and whether every token of it was the likeliest: see `run_rows`."""
        rows, distinct = [], list(dict.fromkeys(requests))
        encodings = self.backend.encode_batch([request.text for request in distinct], add_special_tokens=False)
        for owner, (request, encoding) in enumerate(zip(distinct, encodings, strict=True)):
            begin, end = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
            stop = len(request.text) if request.end is None or not masked else request.end
            scored = np.flatnonzero((end > request.start) & (begin < stop))
            words = _words(request.text, begin, end) if masked and within_word else np.arange(len(begin))
            for tokens, positions, offset in self.windows(np.array(encoding.ids, dtype=np.int64), scored):
                groups = words[positions - len(self.prefix) + offset] if masked else np.zeros(len(positions))
                rows += [Row(tokens, positions[groups == group], owner) for group in np.unique(groups)]
        title = progress and f"{progress}, {'masked' if masked else 'causal'}"
        nats, greedy = self.run_rows(rows, len(distinct), masked, title)
        if len(wrong := np.flatnonzero(~np.isfinite(nats))):  # a choice between such scores would look like a figure
            raise InputError(
                f"{title or 'scores'}: the log-probability of {distinct[wrong[0]].text[:60]!r} is {nats[wrong[0]]}, "
                "which is not finite; look for such numbers in the model's weights"
            )
        places = {request: place for place, request in enumerate(distinct)}
        order = [places[request] for request in requests]
        return nats[order], greedy[order]

    @torch.inference_mode()
    def run_rows(
        self, rows: Sequence[Row], owners: int, masked: bool, progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Runs rows through the model; logits are computed at the predicted positions only.

        Returns:
            For each owner the summed log-probability of its rows' predicted tokens (float64, nats), and whether each of
            them was the likeliest token (bool).
        """
        config, device = self.model.config, self.model.device
        shift = 0 if masked and getattr(config, "masked_prediction", "in_place") == "in_place" else 1
        nats, greedy = np.zeros(owners), np.ones(owners, bool)
        batch_tokens = self.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
        mask_token_id = self.tokenizer.mask_token_id if masked else None
        for batch in make_batches(rows, batch_tokens, mask_token_id, progress, LOGITS // config.vocab_size):
            line, column = batch.predicted
            options = {"is_causal": not masked} if self.kind == "flexqwen" else {}
            if masked and not batch.attention_mask.all():  # causally, no token sees the padding, which is on the right
                options["attention_mask"] = batch.attention_mask.to(device)
            if self.kind != "masked":
                options["use_cache"] = False
            keep = functools.partial(_keep_positions, line, column - shift)
            with self.model.base_model.register_forward_hook(keep):
                logits = self.model(input_ids=batch.input_ids.to(device), **options).logits[0].float()
            chosen = logits.gather(-1, batch.targets.to(device)[:, None])[:, 0]
            np.add.at(nats, batch.owners[line], (chosen - logits.logsumexp(-1)).double().cpu().numpy())
            np.logical_and.at(greedy, batch.owners[line], (chosen == logits.amax(-1)).cpu().numpy())
        return nats, greedy

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
    """Loads a checkpoint, from a folder or the Hub, in float32, on the GPU if there is one, as `loading.load_model`.

    Raises:
        InputError: as there; also if it is neither a FlexQwen nor a causal or masked model.
    """
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
    model = loading.load_model(auto, path, trust_remote_code=trust_remote_code)
    return Scorer(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, kind, batch_tokens)
