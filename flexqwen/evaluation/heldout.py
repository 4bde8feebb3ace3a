"""How well a FlexQwen predicts documents, causally and masked.

Every token of the text is predicted exactly once in either mode, so that the two, and the unigram baseline, speak of
the same tokens and the same bytes. Causally: each token from those before it. Masked: the tokens of a document are
dealt at random into 7 groups and one copy of the document is scored for each, with that group masked (14 % of the
tokens, near the share at the end of training). The end-of-text token is seen but not counted.
"""

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
BATCH_TOKENS = 8192


@dataclass
class HeldOut:
    """Tokenized held-out documents.

    Attributes:
        pieces: int64 arrays `(length,)`, documents or, of those longer than a row, stretches; each begins with BOS.
        piece_documents: the document that each piece belongs to.
        tokens: int64 `(documents,)`, predicted tokens of each document.
        bytes: int64 `(documents,)`, UTF-8 bytes of each document's text.
        eos_token_id, mask_token_id: of the tokenizer.
    """

    pieces: list[np.ndarray]
    piece_documents: list[int]
    tokens: np.ndarray
    bytes: np.ndarray
    eos_token_id: int
    mask_token_id: int

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, documents, sizes, sequence_length: int, eos_token_id: int, mask_token_id: int) -> "HeldOut":
        """Cuts documents (`BOS tokens EOS` each) that are longer than a row; `sizes` are their bytes."""
        pieces, owners = [], []
        for number, document in enumerate(documents):
            for piece in cut(document, sequence_length):
                pieces.append(np.array(piece, dtype=np.int64))
                owners.append(number)
        tokens = np.array([len(document) - 2 for document in documents])
        return cls(pieces, owners, tokens, np.asarray(sizes), eos_token_id, mask_token_id)


def tokenize_texts(texts: list[str], tokenizer, sequence_length: int) -> HeldOut:
    """Tokenizes documents and cuts those that are longer than `sequence_length`."""
    documents = list(encode_documents(tokenizer, texts))
    sizes = [len(text.encode()) for text in texts]
    return HeldOut.of(documents, sizes, sequence_length, tokenizer.eos_token_id, tokenizer.mask_token_id)


@torch.no_grad()  # not inference_mode: its tensors would stay in FSDP's buffers, and training could not use them
def score(model, text: HeldOut, mode: str, batch_tokens: int | None = None, progress: bool = False) -> np.ndarray:
    """Scores every document with a `FlexQwenForCausalLM`.

    Args:
        mode: "causal" or "masked".
        batch_tokens: tokens of a batch, padding included; BATCH_TOKENS by default.

    Returns:
        float64 `(documents,)`: minus the log-probability of each document's tokens, in nats.
    """
    masked = mode == "masked"
    nats, training, device = np.zeros(len(text)), model.training, next(model.parameters()).device
    model.eval()
    title = f"held-out, {mode}" if progress else None
    for batch in make_batches(make_rows(text, masked), batch_tokens or BATCH_TOKENS, progress=title):
        labels = np.full_like(batch.input_ids, IGNORE)
        labels[batch.predicted] = batch.input_ids[batch.predicted]
        if masked:
            batch.input_ids[batch.predicted] = text.mask_token_id
        row_losses = model(
            input_ids=torch.from_numpy(batch.input_ids).to(device),
            attention_mask=batch.attention_mask().to(device),
            labels=torch.from_numpy(labels).to(device),
            is_causal=not masked,
            use_cache=False,
            logits_to_keep=1,  # the losses are made where the labels are; no other logits are wanted
        ).row_losses
        np.add.at(nats, batch.owners, row_losses.double().cpu().numpy())
    model.train(training)
    return nats


def make_rows(text: HeldOut, masked: bool) -> list[Row]:
    """A row a piece, in which all tokens are predicted; masked, a row for each group of a piece's tokens."""
    rows = []
    for number, (piece, owner) in enumerate(zip(text.pieces, text.piece_documents, strict=True)):
        places = 1 + np.flatnonzero(piece[1:] != text.eos_token_id)
        if masked:
            groups = np.random.default_rng([MASK_GROUPS, number]).permutation(len(piece))[places] % MASK_GROUPS
            rows += [Row(piece, places[groups == group], owner) for group in range(MASK_GROUPS)]
        else:
            rows.append(Row(piece, places, owner))
    return rows


def score_unigram(dataset: str, tokenizer, text: HeldOut) -> np.ndarray:
    """The same documents under a unigram model of the same tokenizer: float64 `(documents,)`, in nats.

    Token frequencies are counted, with one added to each, on the first 20,000 documents of the dataset's `tokenizer`
    split, which shares no document with the held-out ones.
    """
    cost = _count_costs(dataset, tokenizer)
    nats = np.zeros(len(text))
    for piece, owner in zip(text.pieces, text.piece_documents, strict=True):
        nats[owner] += cost[piece[1:][piece[1:] != text.eos_token_id]].sum()
    return nats


@functools.lru_cache(maxsize=1)
def _count_costs(dataset: str, tokenizer) -> np.ndarray:
    counts = np.ones(len(tokenizer))
    texts = (text for _, text in read_texts(dataset, "tokenizer", "train", UNIGRAM_DOCUMENTS))
    for document in encode_documents(tokenizer, texts):
        np.add.at(counts, document[1:-1], 1)
    return -np.log(counts / counts.sum())
