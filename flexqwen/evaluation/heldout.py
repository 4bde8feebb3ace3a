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
from tqdm import tqdm

from flexqwen.data.packing import cut, encode_documents
from flexqwen.data.texts import read_texts

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


def held_out(dataset: str, split: str, tokenizer, sequence_length: int, limit: int | None = None) -> HeldOut:
    """Reads and tokenizes `heldout/<split>` of a dataset, at most `limit` documents."""
    return tokenized([text for _, text in read_texts(dataset, "heldout", split, limit)], tokenizer, sequence_length)


def tokenized(texts: list[str], tokenizer, sequence_length: int) -> HeldOut:
    """Tokenizes documents and cuts those that are longer than `sequence_length`."""
    documents = list(encode_documents(tokenizer, texts))
    sizes = [len(text.encode()) for text in texts]
    return HeldOut.of(documents, sizes, sequence_length, tokenizer.eos_token_id, tokenizer.mask_token_id)


@torch.no_grad()  # not inference_mode: its tensors would stay in FSDP's buffers, and training could not use them
def score(model, text: HeldOut, mode: str, batch_tokens: int | None = None, progress: bool = False) -> np.ndarray:
    """Scores every document with a `FlexQwenForCausalLM`.

    Args:
        mode: "causal" or "masked".
        batch_tokens: tokens of a batch, padding included; 8,192 by default.

    Returns:
        float64 `(documents,)`: minus the log-probability of each document's tokens, in nats.
    """
    masked = mode == "masked"
    copies = [(piece, group) for piece in range(len(text.pieces)) for group in range(MASK_GROUPS if masked else 1)]
    copies.sort(key=lambda copy: -len(text.pieces[copy[0]]))
    nats = np.zeros(len(text))
    training, device = model.training, next(model.parameters()).device
    model.eval()
    bar = tqdm(total=len(copies), desc=f"held-out, {mode}", unit="row", disable=not progress, leave=False)
    start = 0
    while start < len(copies):
        longest = len(text.pieces[copies[start][0]])
        batch = copies[start : start + max(1, (batch_tokens or 8192) // longest)]
        input_ids = np.zeros((len(batch), longest), dtype=np.int64)
        labels = np.full((len(batch), longest), -100, dtype=np.int64)
        lengths = np.zeros(len(batch), dtype=np.int64)
        for row, (number, group) in enumerate(batch):
            piece = text.pieces[number]
            lengths[row] = len(piece)
            chosen = piece != text.eos_token_id
            chosen[0] = False
            if masked:
                dealt = np.random.default_rng([MASK_GROUPS, number]).permutation(len(piece)) % MASK_GROUPS
                chosen &= dealt == group
            labels[row, : len(piece)][chosen] = piece[chosen]
            input_ids[row, : len(piece)] = np.where(chosen & masked, text.mask_token_id, piece)
        row_losses = model(
            input_ids=torch.from_numpy(input_ids).to(device),
            attention_mask=torch.from_numpy(np.arange(longest) < lengths[:, None]).long().to(device),
            labels=torch.from_numpy(labels).to(device),
            is_causal=not masked,
            use_cache=False,
            logits_to_keep=1,  # the losses are made where the labels are; no other logits are wanted
        ).row_losses
        np.add.at(nats, [text.piece_documents[number] for number, _ in batch], row_losses.double().cpu().numpy())
        start += len(batch)
        bar.update(len(batch))
    bar.close()
    model.train(training)
    return nats


def unigram(dataset: str, tokenizer, text: HeldOut) -> np.ndarray:
    """The same documents under a unigram model of the same tokenizer: float64 `(documents,)`, in nats.

    Token frequencies are counted, with one added to each, on the first 20,000 documents of the dataset's `tokenizer`
    split, which shares no document with the held-out ones.
    """
    cost = _unigram_costs(dataset, tokenizer)
    nats = np.zeros(len(text))
    for piece, owner in zip(text.pieces, text.piece_documents, strict=True):
        nats[owner] += cost[piece[1:][piece[1:] != text.eos_token_id]].sum()
    return nats


@functools.lru_cache(maxsize=1)
def _unigram_costs(dataset: str, tokenizer) -> np.ndarray:
    counts = np.ones(len(tokenizer))
    texts = (text for _, text in read_texts(dataset, "tokenizer", "train", UNIGRAM_DOCUMENTS))
    for document in encode_documents(tokenizer, texts):
        np.add.at(counts, document[1:-1], 1)
    return -np.log(counts / counts.sum())
