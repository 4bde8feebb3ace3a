"""Documents -> fixed-length rows of tokens in one memory-mapped file; position ids restart at each document.

A document is `BOS tokens EOS`. One longer than a row is cut into pieces, each with a BOS of its own. Rows are written
once to a folder, the token store, which also holds the tokens of the validation documents: training from it needs
neither the dataset nor the libraries that read one.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flexqwen.cli import InputError, suggest_path
from flexqwen.data.texts import check_whole, count_texts, read_texts, summarize
from flexqwen.files import atomic_write, digest, file_digest, read_json, write_json
from flexqwen.remote import explain_failure

IGNORE = -100  # the label of a token that is not predicted
FORMAT = 3  # of the folder; a change makes old folders stale
FILES = ("rows.bin", "pieces.npy", "documents.txt", "validation.npz")  # whose digests info.json has
ENCODE_BATCH = 2048  # documents handed to the tokenizer's threads at once


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Lays pieces, 1 to `capacity` long, into rows by best-fit decreasing (Johnson, 1973): the pieces of each row."""
    rows: list[list[int]] = []
    rows_with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces: list[int] = []  # for which there are rows, sorted: at most `capacity` of them
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        row, space, found = len(rows), capacity, bisect.bisect_left(spaces, lengths[index])
        if found == len(spaces):
            rows.append([])
        else:
            space = spaces[found]
            row = rows_with_space[space].pop()
            if not rows_with_space[space]:
                del spaces[found]
        rows[row].append(index)
        if space := space - int(lengths[index]):
            if not rows_with_space[space]:
                bisect.insort(spaces, space)
            rows_with_space[space].append(row)
    return rows


def encode_documents(tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yields `BOS tokens EOS` of each text, as a list of ids. A special token's spelling in a text is plain text."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # "<mask>" typed by an author must not become the mask token
    backend.no_truncation()
    backend.no_padding()  # which a tokenizer that padded once is saved with
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = iter(texts)
    while batch := list(islice(texts, ENCODE_BATCH)):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield [bos, *encoding.ids, eos]


def cut(document: list[int], sequence_length: int) -> Iterator[list[int]]:
    """The pieces of a document that begins with BOS: itself if it fits, else stretches that each begin with BOS."""
    bos, tokens = document[0], document[1:]
    for start in range(0, len(tokens), sequence_length - 1):
        yield [bos, *tokens[start : start + sequence_length - 1]]


def position_ids(input_ids: np.ndarray, bos_token_id: int, pad_token_id: int) -> np.ndarray:
    """int64 positions `(..., sequence)` that restart at every BOS and at the first padding token of a row."""
    columns = np.arange(input_ids.shape[-1])
    is_pad = input_ids == pad_token_id
    first_pad = is_pad & np.diff(is_pad, prepend=False)
    starts = np.where((input_ids == bos_token_id) | first_pad, columns, 0)
    return columns - np.maximum.accumulate(starts, axis=-1)


class PackedRows:
    """Rows of a token store: `input_ids`, a `(rows, sequence_length)` memory map of uint16 or uint32.

    `info` has what the rows are made from, and counts (`rows`, `documents`, `tokens`, `padding`).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.info = read_json(self.folder / "info.json")
        if not self.info:
            remedy = suggest_path(folder) or "; remove it, and it is made again"
            raise InputError(f"no token store in {folder}: info.json is missing or broken{remedy}")
        with explain_failure(f"the token store {folder} is damaged", "remove it, and it is made again"):
            if self.info["format"] != FORMAT:
                found = self.info["format"]
                raise InputError(f"the token store {folder} has format {found}, not {FORMAT}; make it again")
            found = digest_files(self.folder, self.info)
            written = {"info.json": found["info.json"]} | self.info["files"]  # which the first stores leave out
            if wrong := [name for name in found if found[name] != written[name]]:
                raise ValueError(f"{wrong[0]} is not as it was written")
            rows = np.memmap(self.folder / "rows.bin", dtype=self.info["dtype"], mode="r")
            self.input_ids = rows.reshape(self.info["rows"], self.info["sequence_length"])

    def __len__(self) -> int:
        return self.info["rows"]

    def documents(self, row: int) -> list[str]:
        """Ids of the documents that stand, whole or cut, in a row."""
        ids = (self.folder / "documents.txt").read_text(encoding="utf-8").splitlines()
        piece_rows, piece_documents = np.load(self.folder / "pieces.npy")
        return [ids[document] for document in piece_documents[piece_rows == row]]

    def validation(self, limit: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The first `limit` validation documents: their tokens, and the UTF-8 bytes of their texts (int64)."""
        with np.load(self.folder / "validation.npz") as stored:
            ends = np.cumsum(stored["lengths"])[:limit]
            return np.split(stored["tokens"][: ends[-1]], ends[:-1]), stored["bytes"][:limit]


def open_token_store(folder: str | Path, **wanted) -> PackedRows:
    """A token store by its folder; `InputError` where it is not there, or its info has other values than `wanted`."""
    store = PackedRows(folder)
    for name, value in wanted.items():
        if (found := store.info.get(name)) != value:
            raise InputError(f"the token store {folder} has {name} {found}, and this run needs {value}")
    return store


def make_token_store(
    dataset: str | None,
    digest_of_dataset: str,
    config: str,
    tokenizer,
    tokenizer_folder: str,
    length: int,
    root: str,
    unique_tokens: int | None = None,
    seed: int = 0,
) -> PackedRows:
    """The packed rows of a dataset's `train` split, `length` tokens each: opened if they are there, made if not.

    The dataset's folder may be absent where the store is there, `<root>/<config>-<length>-<key>`. `tokenizer` is loaded
    from `tokenizer_folder`. `unique_tokens` and `seed` are as in `draw_documents`.
    """
    if length < 2:
        raise InputError(f"sequence_length is {length}; a row needs room for BOS and one token")
    tokenizer_digest = file_digest(Path(tokenizer_folder) / "tokenizer.json")
    key = describe_rows(digest_of_dataset, config, tokenizer_digest, length, unique_tokens, seed)
    folder = find_folder(root, key)
    if (folder / "info.json").is_file():
        print(f"tokens: {folder} is already there, made from the same dataset, tokenizer and length; reused")
        return open_token_store(folder, **key)
    if dataset is None or not Path(dataset).exists():
        remedy = "make the dataset with carolina_originality.py build, or bring the store"
        where = "" if dataset is None else f" in {dataset}"
        raise InputError(f"no dataset{where}, and no token store {folder}; {remedy}")
    check_whole(dataset, config, "train")
    if not count_texts(dataset, config, "train"):
        raise InputError(f"{config}/train in {dataset} holds no document; train on another --dataset_config")
    check_whole(dataset, "heldout", "validation")
    with atomic_write(folder) as partial:
        partial.mkdir()
        dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
        info = key | _write_rows(partial, dataset, config, tokenizer, length, dtype, unique_tokens, seed)
        info["data"] = summarize(dataset, config)
        _write_validation(partial, dataset, tokenizer, dtype)
        write_json(partial / "info.json", info | {"files": digest_files(partial, info)})
    what = "{rows:,} rows of {sequence_length}, {tokens:,} tokens, {padding:.2%} padding".format(**info)
    print(f"tokens: {folder} ({what})")
    return PackedRows(folder)


def digest_files(folder: Path, info: dict[str, Any]) -> dict[str, str]:
    """Digests of the files of a token store, and of its info but for these."""
    own = {name: value for name, value in info.items() if name != "files"}
    return {name: file_digest(folder / name) for name in FILES} | {"info.json": digest(own)}


def describe_rows(
    digest_of_dataset: str, config: str, tokenizer_digest: str, length: int, unique_tokens: int | None, seed: int
) -> dict[str, Any]:
    """What the rows of a token store are made from; arguments as `make_token_store` has them."""
    key = {"format": FORMAT, "dataset_digest": digest_of_dataset, "dataset_config": config}
    key |= {"tokenizer_digest": tokenizer_digest, "sequence_length": length}
    return key if unique_tokens is None else {**key, "unique_tokens": unique_tokens, "seed": seed}


def find_folder(root: str, key: dict[str, Any]) -> Path:
    return Path(root) / f"{key['dataset_config']}-{key['sequence_length']}-{digest(key)[:12]}"


def draw_documents(lengths: Sequence[int], tokens: int, seed: int) -> np.ndarray:
    """Numbers of documents drawn at random that have `tokens` tokens together, or a little less: int64, ascending.

    With the same seed, what fewer tokens take is a part of what more take.
    """
    order = np.random.default_rng([seed, 3]).permutation(len(lengths))
    ends = np.cumsum(np.asarray(lengths)[order])
    count = int(np.searchsorted(ends, tokens, side="right"))
    if tokens > ends[-1] or not count:
        raise InputError(f"unique_tokens is {tokens:,}; give {ends[0]:,} to {ends[-1]:,}, or leave it out for all")
    return np.sort(order[:count])


def _write_rows(
    folder: Path, dataset: str, config: str, tokenizer, length: int, dtype, unique_tokens: int | None, seed: int
) -> dict[str, Any]:
    """Writes the rows and which documents stand in them; returns what `info.json` says of them."""
    ids, pieces, owners = [], [], []  # of the documents; their pieces; number of the document of each piece
    texts = (ids.append(document) or text for document, text in read_texts(dataset, config, "train"))
    total = count_texts(dataset, config, "train")
    bar = tqdm(encode_documents(tokenizer, texts), f"tokens of {config}", total, unit="doc")
    documents = [np.array(document, dtype=dtype) for document in bar]
    if unique_tokens is not None:
        drawn = draw_documents([len(document) for document in documents], unique_tokens, seed)
        ids, documents = [ids[number] for number in drawn], [documents[number] for number in drawn]
    for number, document in enumerate(documents):
        pieces += (np.array(piece, dtype=dtype) for piece in cut(document, length))
        owners += [number] * (len(pieces) - len(owners))
    rows = best_fit([len(piece) for piece in pieces], length)
    with open(folder / "rows.bin", "wb") as file:
        for row in rows:
            line = np.concatenate([pieces[piece] for piece in row])
            file.write(np.pad(line, (0, length - len(line)), constant_values=tokenizer.pad_token_id).tobytes())
    row_of_piece = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    np.save(folder / "pieces.npy", np.stack([row_of_piece, np.array(owners)[np.concatenate(rows)]]).astype(np.int32))
    (folder / "documents.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    tokens = sum(len(piece) for piece in pieces)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "mask")}
    counts = {"rows": len(rows), "documents": len(ids), "tokens": tokens, "vocab_size": len(tokenizer)}
    return {"dtype": dtype.name, **counts, "padding": 1 - tokens / (len(rows) * length), **special}


def _write_validation(folder: Path, dataset: str, tokenizer, dtype: np.dtype) -> None:
    texts = [text for _, text in read_texts(dataset, "heldout", "validation")]
    documents = [np.array(document, dtype=dtype) for document in encode_documents(tokenizer, texts)]
    lengths, bytes_ = [len(document) for document in documents], [len(text.encode()) for text in texts]
    np.savez(folder / "validation.npz", tokens=np.concatenate(documents), lengths=lengths, bytes=bytes_)
