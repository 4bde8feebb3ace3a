"""How well a FlexQwen predicts documents, causally and masked.

Every token of the text is predicted exactly once in either mode, so that the two, and the unigram baseline, speak of
the same tokens and the same bytes. Causally: each token from those before it. Masked: the tokens of a document are
dealt at random into 7 groups and one copy of the document is scored for each, with that group masked (14 % of the
tokens, near the share at the end of training). The end-of-text token is seen but not counted.
"""

from dataclasses import dataclass

import numpy as np

from flexqwen.likelihood import Row, log_probabilities
from flexqwen.packing import cut, encode_documents
from flexqwen.texts import read_texts

MODES = ("causal", "masked")
MASK_GROUPS = 7
UNIGRAM_DOCUMENTS = 20_000


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


def held_out(dataset: str, split: str, tokenizer, sequence_length: int, limit: int | None = None) -> HeldOut:
    """Reads and tokenizes `heldout/<split>` of a dataset, at most `limit` documents."""
    return tokenized([text for _, text in read_texts(dataset, "heldout", split, limit)], tokenizer, sequence_length)


def tokenized(texts: list[str], tokenizer, sequence_length: int) -> HeldOut:
    """Tokenizes documents and cuts those that are longer than `sequence_length`."""
    documents = list(encode_documents(tokenizer, texts))
    pieces, owners = [], []
    for number, document in enumerate(documents):
        for piece in cut(document, sequence_length):
            pieces.append(np.array(piece, dtype=np.int64))
            owners.append(number)
    return HeldOut(
        pieces,
        owners,
        np.array([len(document) - 2 for document in documents]),
        np.array([len(text.encode()) for text in texts]),
        tokenizer.eos_token_id,
        tokenizer.mask_token_id,
    )


def score(model, text: HeldOut, mode: str, batch_tokens: int | None = None, progress: bool = False) -> np.ndarray:
    """Scores every document with a `FlexQwenForCausalLM`.

    Args:
        mode: "causal" or "masked".
        batch_tokens: tokens of a batch, padding included; by default what suits the device.

    Returns:
        float64 `(documents,)`: minus the log-probability of each document's tokens, in nats.
    """
    masked = mode == "masked"
    rows = []
    for number, (piece, owner) in enumerate(zip(text.pieces, text.piece_documents, strict=True)):
        counted = np.flatnonzero(piece[1:] != text.eos_token_id) + 1
        if masked:
            dealt = np.random.default_rng([MASK_GROUPS, number]).permutation(len(piece)) % MASK_GROUPS
            rows += [Row(piece, counted[dealt[counted] == group], owner) for group in range(MASK_GROUPS)]
        else:
            rows.append(Row(piece, counted, owner))
    rows = [row for row in rows if len(row.positions)]
    title = f"held-out, {mode}" if progress else None
    return -log_probabilities(model, rows, len(text), masked, text.mask_token_id, batch_tokens, title)[0]


def unigram(dataset: str, tokenizer, text: HeldOut) -> np.ndarray:
    """The same documents under a unigram model of the same tokenizer: float64 `(documents,)`, in nats.

    Token frequencies are counted, with one added to each, on the first 20,000 documents of the dataset's `tokenizer`
    split, which shares no document with the held-out ones.
    """
    counts = np.ones(len(tokenizer))
    texts = (text for _, text in read_texts(dataset, "tokenizer", "train", UNIGRAM_DOCUMENTS))
    for document in encode_documents(tokenizer, texts):
        np.add.at(counts, document[1:-1], 1)
    cost = -np.log(counts / counts.sum())
    nats = np.zeros(len(text))
    for piece, owner in zip(text.pieces, text.piece_documents, strict=True):
        nats[owner] += cost[piece[1:][piece[1:] != text.eos_token_id]].sum()
    return nats
