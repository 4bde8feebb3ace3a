"""How likely a language model finds a text: causally, masked, or both, for FlexQwen and for transformers' own models.

- causal: the sum of each token's log-probability given those before it.
- masked: the sum of each token's log-probability given all others, one copy of the text a token, in which that token
  is masked (the pseudo-log-likelihood of Salazar et al., ACL 2020). `within_word`: one copy a word, all of whose tokens
  are masked together, since a token is easy to guess from the rest of its word (Kauf and Ivanova, ACL 2023).
- fused: the sum of the two (as GPT-BERT, arXiv 2410.24159).

Log-probabilities are natural logarithms at temperature 1, in float32. They do not depend on the order of the texts,
nor, but for rounding, on the size of the batches.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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


@dataclass
class Row:
    """A sequence to be run through the model.

    Attributes:
        tokens: int64 `(length,)`.
        positions: int64, the tokens that are predicted; in masked mode they are masked. There may be none.
        owner: what their log-probabilities are added to.
    """

    tokens: np.ndarray
    positions: np.ndarray
    owner: int


@dataclass
class Batch:
    """Rows as one array, padded with 0 on the right.

    Attributes:
        input_ids: int64 `(rows, longest)`.
        lengths, owners: int64 `(rows,)`.
        predicted: rows and columns of the predicted tokens, int64 `(positions,)` each.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    owners: np.ndarray
    predicted: tuple[np.ndarray, np.ndarray]

    def attention_mask(self) -> torch.Tensor:
        """int64 `(rows, longest)`: 1 where there is no padding."""
        return torch.from_numpy(np.arange(self.input_ids.shape[1]) < self.lengths[:, None]).long()


def make_batches(
    rows: Sequence[Row], batch_tokens: int, most_positions: float = math.inf, progress: str | None = None
) -> Iterator[Batch]:
    """Yields the rows, longest first.

    Args:
        batch_tokens, most_positions: tokens, padding included, and predicted tokens of a batch that has more than one
            row, at most.
        progress: title of a progress bar; no bar by default.
    """
    order, start = sorted(rows, key=lambda row: -len(row.tokens)), 0
    with tqdm(total=len(rows), desc=progress, unit="row", disable=progress is None, leave=False) as bar:
        while start < len(order):
            longest = len(order[start].tokens)
            those = order[start : start + max(1, batch_tokens // longest)]
            ends = np.cumsum([len(row.positions) for row in those])
            those = those[: max(1, int(np.searchsorted(ends, most_positions, side="right")))]
            start += len(those)
            input_ids = np.zeros((len(those), longest), dtype=np.int64)
            for place, row in enumerate(those):
                input_ids[place, : len(row.tokens)] = row.tokens
            line = np.repeat(np.arange(len(those)), [len(row.positions) for row in those])
            column = np.concatenate([row.positions for row in those])
            lengths, owners = (np.array(side) for side in zip(*((len(r.tokens), r.owner) for r in those), strict=True))
            if len(line):
                yield Batch(input_ids, lengths, owners, (line, column))
            bar.update(len(those))


@torch.inference_mode()
def log_probabilities(
    model,
    rows: Sequence[Row],
    owners: int,
    masked: bool,
    mask_token_id: int | None = None,
    batch_tokens: int | None = None,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Runs rows through a model; logits are computed at the predicted positions only.

    Args:
        batch_tokens: tokens of a batch, padding included; by default what suits the device.
        progress: title of a progress bar; no bar by default.

    Returns:
        For each owner the summed log-probability of its rows' predicted tokens (float64, nats), and whether each of
        them was the likeliest token (bool).
    """
    is_flexible = model.config.model_type == "flexqwen"
    shift = 0 if masked and getattr(model.config, "masked_prediction", "in_place") == "in_place" else 1
    nats, greedy = np.zeros(owners), np.ones(owners, bool)
    training, device = model.training, model.device
    batch_tokens = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    model.eval()
    for batch in make_batches(rows, batch_tokens, LOGITS // model.config.vocab_size, progress):
        line, column = batch.predicted
        targets = torch.from_numpy(batch.input_ids[line, column]).to(device)
        options = {}
        if masked:
            batch.input_ids[line, column] = mask_token_id
            if batch.lengths.min() < batch.lengths.max():  # causally, no token sees the padding, which is on the right
                options["attention_mask"] = batch.attention_mask().to(device)
        if is_flexible:
            options["is_causal"] = not masked
        if is_flexible or not masked:
            options["use_cache"] = False
        with keep_positions(model, line, column - shift):
            logits = model(input_ids=torch.from_numpy(batch.input_ids).to(device), **options).logits[0].float()
        chosen = logits.gather(-1, targets[:, None])[:, 0]
        values = (chosen - logits.logsumexp(-1)).double().cpu().numpy()
        np.add.at(nats, batch.owners[line], values)
        np.logical_and.at(greedy, batch.owners[line], (chosen == logits.amax(-1)).cpu().numpy())
    model.train(training)
    return nats, greedy


@contextmanager
def keep_positions(model, rows: np.ndarray, columns: np.ndarray) -> Iterator[None]:
    """Within it the head sees the hidden states of these positions only, as one row: `(1, positions, hidden)`.

    Every head of transformers works on each position by itself, so the logits are those of the whole.
    """

    def gather(module, args, output):
        output.last_hidden_state = output.last_hidden_state[rows, columns][None]
        return output

    hook = model.base_model.register_forward_hook(gather)
    try:
        yield
    finally:
        hook.remove()


class Scorer:
    """A language model and its tokenizer.

    Attributes:
        kind: "flexqwen", "causal" or "masked".
        modes: those of MODES that the model has.
        length: tokens that it takes at a time.
    """

    def __init__(self, model, tokenizer, kind: str, batch_tokens: int | None = None):
        self.model, self.tokenizer, self.kind, self.batch_tokens = model, tokenizer, kind, batch_tokens
        self._last: dict[bool, tuple] = {}  # of each mode, what was asked last and the answer: fused asks again
        self.modes = MODES if kind == "flexqwen" else (kind,)
        self.backend = tokenizer.backend_tokenizer
        self.backend.encode_special_tokens = True  # "<mask>" typed by an author is text
        self.backend.no_truncation()
        self.backend.no_padding()
        self.prefix, self.suffix = self._frame()
        self.length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        if "masked" in self.modes and tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, which masked scoring needs; pass --modes causal")

    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens around a text. A causal model needs one before it, to predict the first token from."""
        encoding = self.backend.encode("a")
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        prefix, suffix = encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
        if self.kind == "masked":
            return prefix, suffix
        first = self.tokenizer.bos_token_id
        if first is None:
            first = self.tokenizer.eos_token_id
        if not prefix and first is None:
            raise InputError("the tokenizer has neither a BOS nor an EOS token to predict the first token from")
        return prefix or [first], []

    def score(
        self, requests: Sequence[Request | str], mode: str, within_word: bool = False, progress: str | None = None
    ) -> np.ndarray:
        """Log-probability of each request: float64 `(requests,)`, in nats."""
        if mode not in self.modes:
            raise InputError(f"this model is not scored in mode {mode!r}; it has: {', '.join(self.modes)}")
        requests = [Request(request) if isinstance(request, str) else request for request in requests]
        modes = ("causal", "masked") if mode == "fused" else (mode,)
        return sum(self.run(requests, part == "masked", within_word, progress)[0] for part in modes)

    def forget(self) -> None:
        """Lets go of the last scores, which `fused` would otherwise take from `causal` and `masked`."""
        self._last.clear()

    def run(
        self, requests: Sequence[Request], masked: bool, within_word: bool = False, progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each request, and whether every token of it was the likeliest: see `log_probabilities`."""
        asked = (tuple(requests), masked and within_word)
        if masked in self._last and self._last[masked][0] == asked:
            return self._last[masked][1]
        rows = []
        distinct = {request: number for number, request in enumerate(dict.fromkeys(requests))}
        encodings = self.backend.encode_batch([request.text for request in distinct], add_special_tokens=False)
        for (request, owner), encoding in zip(distinct.items(), encodings, strict=True):
            begin, end = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
            stop = len(request.text) if request.end is None or not masked else request.end
            scored = np.flatnonzero((end > request.start) & (begin < stop))
            words = _words(request.text, begin, end) if masked and within_word else np.arange(len(begin))
            for tokens, positions, offset in self.windows(np.array(encoding.ids, dtype=np.int64), scored):
                if masked:
                    groups = words[positions - len(self.prefix) + offset]
                    rows += [Row(tokens, positions[groups == group], owner) for group in np.unique(groups)]
                else:
                    rows.append(Row(tokens, positions, owner))
        title = progress and f"{progress}, {'masked' if masked else 'causal'}"
        mask = self.tokenizer.mask_token_id
        scores = log_probabilities(self.model, rows, len(distinct), masked, mask, self.batch_tokens, title)
        if not np.isfinite(scores[0]).all():  # a choice between such scores would look like a figure
            texts = [request.text for request in distinct]
            text, number = next(pair for pair in zip(texts, scores[0], strict=True) if not np.isfinite(pair[1]))
            raise InputError(
                f"{title or 'scores'}: the log-probability of {text[:60]!r} is {number}, which is not finite; look for "
                "such numbers in the model's weights"
            )
        order = [distinct[request] for request in requests]
        self._last[masked] = (asked, tuple(side[order] for side in scores))
        return self._last[masked][1]

    def windows(self, ids: np.ndarray, scored: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Cuts a text that is longer than the model takes; each window begins half a window after the last one.

        Args:
            ids: int64 `(tokens,)`, without special tokens.
            scored: int64, the tokens to be predicted.

        Yields:
            Tokens with special tokens around them, the predicted ones among them, and how many of `ids` stand before
            the window. Each of `scored` is predicted once, in the first window that holds it.
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
    numbers = []
    for place, (start, stop) in enumerate(zip(begin, end, strict=True)):
        token = text[start:stop]
        first = start + len(token) - len(token.lstrip())
        numbers.append(np.searchsorted(starts, first, side="right") if first < stop else -1 - place)
    return np.array(numbers, dtype=np.int64)


def load(path: str, batch_tokens: int | None = None, trust_remote_code: bool = False) -> Scorer:
    """Loads a checkpoint, from a folder or the Hub, in float32, on the GPU if there is one.

    Args:
        trust_remote_code: run the code that a checkpoint brings along, if it is no FlexQwen.

    Raises:
        InputError: there is none, it is neither a FlexQwen nor a causal or masked model, it needs code of its own
            without `trust_remote_code`, or its weights are not those of its class.
    """
    if Path(path).is_dir() and not list(Path(path).glob("*.safetensors")) and not list(Path(path).glob("*.bin")):
        raise InputError(f"no checkpoint in {path}: model.safetensors is missing")
    config = loading.load(AutoConfig, path, trust_remote_code)
    architecture = (config.architectures or [""])[0]
    if config.model_type == "flexqwen":
        kind, auto = "flexqwen", AutoModelForCausalLM
    elif architecture.endswith("ForMaskedLM"):
        kind, auto = "masked", AutoModelForMaskedLM
    elif architecture.endswith(("ForCausalLM", "LMHeadModel")):
        kind, auto = "causal", AutoModelForCausalLM
    else:
        raise InputError(
            f"{path} is a {architecture or 'model of unnamed class'}; scoring needs a FlexQwen, a …ForCausalLM or a "
            "…ForMaskedLM"
        )
    tokenizer = loading.load(AutoTokenizer, path, trust_remote_code)
    model = loading.load_model(auto, path, trust_remote_code=trust_remote_code)
    return Scorer(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, kind, batch_tokens)
