"""How well a FlexQwen predicts documents, causally and masked; each token once: docs/tasks.md."""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from flexqwen.data.packing import IGNORE, cut, encode_documents
from flexqwen.data.texts import read_texts
from flexqwen.evaluation.likelihood import Row, make_batches

MODES = ("causal", "masked")
MASK_GROUPS = 7
UNIGRAM_DOCUMENTS = 20_000
BATCH_TOKENS = {"cpu": 8192, "cuda": 65_536}  # by device


@dataclass
class HeldOut:
    """Tokenized held-out documents."""

    # Documents or, of those longer than a row, stretches that begin with BOS; and the number of the document.
    pieces: list[tuple[np.ndarray, int]]  # int64 `(length,)`
    tokens: np.ndarray  # int64 `(documents,)`, predicted tokens of each
    bytes: np.ndarray  # int64 `(documents,)`, of the text in UTF-8
    eos_token_id: int
    mask_token_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, documents, sizes, sequence_length: int, tokenizer) -> "HeldOut":
        """Cuts documents (`BOS tokens EOS` each) that are longer than a row; `sizes` are their bytes."""
        numbered = ((number, piece) for number, text in enumerate(documents) for piece in cut(text, sequence_length))
        pieces = [(np.array(piece, np.int64), number) for number, piece in numbered]
        tokens = np.array([len(document) - 2 for document in documents])
        return cls(pieces, tokens, np.asarray(sizes), tokenizer.eos_token_id, tokenizer.mask_token_id)


def tokenize_texts(texts: list[str], tokenizer, sequence_length: int) -> HeldOut:
    """Tokenizes documents and cuts those that are longer than `sequence_length`."""
    sizes = [len(text.encode()) for text in texts]
    return HeldOut.of(list(encode_documents(tokenizer, texts)), sizes, sequence_length, tokenizer)


@torch.no_grad()  # not inference_mode: its tensors would stay in FSDP's buffers, and training could not use them
def score(model, text: HeldOut, mode: str, batch_tokens: int | None = None, progress: bool = False) -> np.ndarray:
    """Minus the log-probability of each document's tokens for a `FlexQwenForCausalLM`: float64 `(documents,)`, in nats.

    A batch has at most `batch_tokens` tokens, padding included; BATCH_TOKENS by default.
    """
    masked = mode == "masked"
    nats, training, device = np.zeros(len(text)), model.training, next(model.parameters()).device
    model.eval()
    title = f"held-out, {mode}" if progress else None
    mask_token_id = text.mask_token_id if masked else None
    tokens = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    for batch in make_batches(make_rows(text, masked), tokens, mask_token_id, title):
        labels = torch.full_like(batch.input_ids, IGNORE)
        labels[batch.predicted] = batch.targets
        ids, mask, labels = (part.to(device) for part in (batch.input_ids, batch.attention_mask, labels))
        # The losses are made where the labels are; no other logits are wanted.
        options = {"is_causal": not masked, "use_cache": False, "logits_to_keep": 1}
        row_losses = model(input_ids=ids, attention_mask=mask, labels=labels, **options).row_losses
        np.add.at(nats, batch.owners, row_losses.cpu().double().numpy())
    model.train(training)
    return nats


def make_rows(text: HeldOut, masked: bool) -> list[Row]:
    """A row a piece, in which all tokens are predicted; masked, a row for each group of a piece's tokens."""
    rows, parts = [], MASK_GROUPS if masked else 1
    for number, (piece, owner) in enumerate(text.pieces):
        places = 1 + np.flatnonzero(piece[1:] != text.eos_token_id)
        groups = np.random.default_rng([MASK_GROUPS, number]).permutation(len(piece))[places] % parts
        rows += [Row(piece, places[groups == group], owner) for group in range(parts)]
    return rows


def score_unigram(dataset: str, tokenizer, text: HeldOut) -> np.ndarray:
    """The same documents under a unigram model of the same tokenizer: float64 `(documents,)`, in nats.

    Token frequencies are counted, with one added to each, on the first 20,000 documents of the dataset's `tokenizer`
    split, which shares no document with the held-out ones.
    """
    cost = _count_costs(dataset, tokenizer)
    nats = np.zeros(len(text))
    for piece, owner in text.pieces:
        nats[owner] += cost[piece[1:][piece[1:] != text.eos_token_id]].sum()
    return nats


@functools.lru_cache(maxsize=1)
def _count_costs(dataset: str, tokenizer) -> np.ndarray:
    counts = np.ones(len(tokenizer))
    texts = (text for _, text in read_texts(dataset, "tokenizer", "train", UNIGRAM_DOCUMENTS))
    for document in encode_documents(tokenizer, texts):
        np.add.at(counts, document[1:-1], 1)
    return -np.log(counts / counts.sum())
