"""Gold, its matched controls, tokenizer and held-out documents, and `all`: chosen, disjoint within a pair, described.

Arrays have one entry a document. Every choice among equals follows one random order drawn from the seed.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from flexqwen.cli import InputError
from flexqwen.data.corpus import MIN_TOKENS
from flexqwen.data.passages import LIMIT

# Sizes are those of the whole corpus, of so many documents; a partial corpus gets its share of them.
CORPUS_DOCUMENTS = 2_100_000
GOLD, TOKENIZER = 500_000, 324_000
HELDOUT, HELDOUT_SHARE = 2_500, 0.03  # each held-out split: so many, or this share of the documents where that is less
SPARE = 1.1  # pairs proposed for each that is asked for: decontamination leaves some out

TOLERANCE = 0.02  # a control differs in length from its partner by at most this share or one token
MIN_GAP = 10  # points of originality, at least, by which a document exceeds its control
# How far the two sides may differ: Kolmogorov-Smirnov distance of their lengths, and share of their tokens.
KS_LIMIT, TOKENS_LIMIT = 0.01, 0.005

PAIRS = (("gold", "matched"), ("gold_typology", "matched_typology"))
TRAINING = (*PAIRS[0], *PAIRS[1], "tokenizer")
ALL = "all"  # a training config of every document but the held-out ones, where it is asked for


@dataclass
class Splits:
    """Document numbers (int64) of the splits."""

    training: dict[str, ndarray]  # by config; rows of gold and matched are partners
    heldout: dict[str, ndarray]  # `validation` and `test`, random samples; both as `_original` and `_unoriginal`
    notes: dict[str, str] = field(default_factory=dict)  # by split, how many were asked for and what limited them

    def parts(self) -> dict[str, ndarray]:
        """All splits by `<config>/<split>`, as the dataset names them."""
        training = {f"{config}/train": part for config, part in self.training.items()}
        return training | {f"heldout/{split}": part for split, part in self.heldout.items()}


def propose(tokens: ndarray, originality: ndarray, typology: ndarray, seed: int, with_all: bool = False) -> Splits:
    """Chooses the splits. Training configs hold some more than is asked for; `decontaminate` cuts them to size.

    Of each document: its `tokens` (int), `originality` (0-100, NaN where undefined), `typology` (a code, -1 for none).
    With `with_all`, too few pairs are no error: the paired configs may be empty, and the paired strata be missing.
    """
    documents = len(tokens)
    order = np.random.default_rng([seed, 1]).permutation(documents)  # place of each document in a random order
    size = sizes(documents)
    if not (held := size["heldout"]):
        raise InputError(f"{documents} documents are too few to hold any of them out; give more text")
    edges = [held, 2 * held, 2 * held + size["tokenizer"]]
    validation, test, tokenizer, free = np.split(np.argsort(order), edges)
    heldout = {"validation": validation, "test": test}
    eligible = np.sort(free[(tokens[free] >= MIN_TOKENS) & ~np.isnan(originality[free])])

    pairs = match(eligible, tokens, originality, order)
    held_pairs = min(held, len(pairs) // 10)
    if held_pairs == 0 and not with_all:
        what = f"pairs of documents of {MIN_TOKENS} tokens or more have one length and a different originality"
        remedy = "give more text, less original text too, or build --with_all and train with --dataset_config all"
        raise InputError(f"only {len(pairs)} {what}, of {documents} documents; {remedy}")
    # A random part of the pairs is held out, so that it is like the part that trains.
    pairs = pairs[: round(SPARE * (size["gold"] + 2 * held_pairs))]
    chosen = np.random.default_rng([seed, 3]).permutation(len(pairs))
    is_held = np.zeros(len(pairs), bool)
    for split, part in (("validation", chosen[:held_pairs]), ("test", chosen[held_pairs : 2 * held_pairs])):
        if held_pairs:
            heldout[f"{split}_original"], heldout[f"{split}_unoriginal"] = pairs[part].T
        is_held[part] = True
    left = np.setdiff1d(eligible, pairs[is_held], assume_unique=True)
    typology_pairs = match(left[typology[left] >= 0], tokens, originality, order, typology)
    columns = (*pairs[~is_held].T, *typology_pairs.T, tokenizer)
    training = dict(zip(TRAINING, columns, strict=True))
    if with_all:
        training[ALL] = np.setdiff1d(np.arange(documents), np.concatenate(list(heldout.values())))
    return Splits(training, heldout)


def sizes(documents: int) -> dict[str, int]:
    """Documents asked for from a corpus of so many: `gold` (and matched), `tokenizer`, `heldout` (each split)."""
    share = min(1.0, documents / CORPUS_DOCUMENTS)
    heldout = min(HELDOUT, round(HELDOUT_SHARE * documents))
    return {"gold": round(GOLD * share), "tokenizer": round(TOKENIZER * share), "heldout": heldout}


def match(
    documents: ndarray, tokens: ndarray, originality: ndarray, order: ndarray, typology: ndarray | None = None
) -> ndarray:
    """Pairs original documents with less original ones of their length (and of their typology, where it is given).

    In each class of lengths the most original document is matched with the least original, the second with the second
    last, and so on while the gap is at least `MIN_GAP`. Inside a class partners are then dealt by length, so each
    original may get any of the controls: no more pairs allow that. Returns document numbers `(pairs, 2)`: original,
    control; most original first.
    """
    if not len(documents):
        return np.empty((0, 2), np.int64)
    group = length_class(tokens[documents])
    if typology is not None:
        group = group + (group.max() + 1) * typology[documents]
    ranked = np.lexsort((order[documents], -originality[documents], group))  # most original first, class after class
    documents, group = documents[ranked], group[ranked]
    first = np.searchsorted(group, group)
    last = np.searchsorted(group, group, side="right") - 1
    place = np.arange(len(documents))
    mirror = last - (place - first)
    score = originality[documents]
    is_gold = (mirror > place) & (score - score[mirror] >= MIN_GAP)
    golds, controls = place[is_gold], np.sort(mirror[is_gold])
    golds = documents[golds[np.lexsort((tokens[documents[golds]], group[golds]))]]
    controls = documents[controls[np.lexsort((tokens[documents[controls]], group[controls]))]]
    return np.stack([golds, controls], axis=1)[np.lexsort((order[golds], -originality[golds]))]


def length_class(tokens: ndarray) -> ndarray:
    """Number of the class of lengths that each length (1 or more) falls in; two of one class differ by 2 % or less."""
    edges, longest = [1], int(tokens.max())
    while edges[-1] <= longest:
        edges.append(int(edges[-1] * (1 + TOLERANCE)) + 1)
    return np.searchsorted(edges, tokens, side="right")


def _ahead(one: ndarray, other: ndarray) -> tuple[ndarray, ndarray]:
    """All lengths, and for each how many more of `one` than of `other` are that long or shorter."""
    lengths, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    return lengths, np.cumsum(np.bincount(place, np.repeat([1, -1], [len(one), len(other)]))).astype(int)


def _balance(pairs: ndarray, tokens: ndarray) -> ndarray:
    """Leaves out uneven pairs until both sides have the same lengths and tokens, a little better than is demanded."""
    while len(pairs):
        one, other = tokens[pairs].T
        difference = one - other
        excess = int(difference.sum())
        lengths, ahead = _ahead(one, other)
        worst = np.argmax(np.abs(ahead))
        too_many = abs(int(ahead[worst])) - max(1, int(0.9 * KS_LIMIT * len(pairs)))
        too_long = abs(excess) - 0.8 * TOKENS_LIMIT * int(other.sum())
        if too_many > 0:  # of the pairs that stand on two sides of this length, the same way round
            across = (np.minimum(one, other) <= lengths[worst]) & (lengths[worst] < np.maximum(one, other))
            guilty = np.flatnonzero(across & (np.sign(-difference) == np.sign(ahead[worst])))
            number = too_many
        elif too_long > 0:
            guilty = np.flatnonzero(np.sign(difference) == np.sign(excess))
            number = 1 + int(too_long / np.abs(difference).max())
        else:
            break
        guilty = guilty[np.argsort(-np.abs(difference[guilty]), kind="stable")]
        pairs = np.delete(pairs, guilty[:number], axis=0)
    return pairs


def decontaminate(splits: Splits, contaminated: ndarray, tokens: ndarray, seed: int) -> Splits:
    """Leaves out of training what is `contaminated` (bool, one entry a document), with its partner; cuts; shuffles."""
    size = sizes(len(tokens))
    wanted = size | {"gold_typology": size["gold"], ALL: len(splits.training.get(ALL, ()))}
    training, notes = {}, {}
    for name, partner in (*PAIRS, *((key, None) for key in ("tokenizer", ALL) if key in splits.training)):
        rows = np.stack([splits.training[key] for key in (name, partner) if key])
        clean = rows[:, ~contaminated[rows].any(axis=0)]
        shuffle = np.random.default_rng([seed, 2]).permutation(clean.shape[1])
        cut = clean[:, shuffle[: wanted[name]]]
        if partner:
            cut = _balance(cut.T, tokens).T
        reasons = []
        if rows.shape[1] < wanted[name]:
            same = "length and typology" if name == "gold_typology" else "length"
            what = f"pairs of one {same}, {MIN_GAP} points or more apart" if partner else "documents"
            reasons.append(f"no more {what}")
        if (dropped := rows.shape[1] - clean.shape[1]) and clean.shape[1] < wanted[name]:
            reasons.append(f"{dropped:,} left out for what they share with held-out documents")
        reasons = reasons or [f"{min(clean.shape[1], wanted[name]) - cut.shape[1]:,} left out for even lengths"]
        why = f" ({'; '.join(reasons)})" if cut.shape[1] < wanted[name] else ""
        for key, part in zip((name, partner), cut, strict=False):
            training[key], notes[f"{key}/train"] = part, f"{cut.shape[1]:,} of {wanted[name]:,}{why}"
    for name, part in splits.heldout.items():
        notes[f"heldout/{name}"] = f"{len(part):,} of {size['heldout']:,}"
    return Splits(training, splits.heldout, notes)


def check(
    splits: Splits, tokens: ndarray, originality: ndarray, typology: ndarray, shares: dict[str, float] | None = None
) -> dict[str, dict]:
    """What must hold of finished splits: by name, the figure, the limit that it is held to, and whether it `passed`.

    `shares`: by training split, the largest share of a document's 13-grams that held-out documents hold.
    """
    found = {}

    def add(name: str, value: float, limit: float, bound: str = "at_most") -> None:
        passed = bool({"at_most": value <= limit, "at_least": value >= limit, "below": value < limit}[bound])
        found[name] = {"value": round(float(value), 6), bound: limit, "passed": passed}

    training, heldout = splits.training, np.concatenate(list(splits.heldout.values()))
    for one, other in PAIRS:
        a, b = training[one], training[other]
        add(f"documents in both {one} and {other}", len(np.intersect1d(a, b)), 0)
        off = np.abs(tokens[a] - tokens[b]) > np.maximum(1, np.floor(TOLERANCE * tokens[a]))
        add(f"{one}: pairs that differ in length by more than 2 % and one token", off.sum(), 0)
        if len(a):
            distance, limit = np.abs(_ahead(tokens[a], tokens[b])[1]).max() / len(a), max(KS_LIMIT, 1 / len(a))
            add(f"{one}: Kolmogorov-Smirnov distance of the lengths to its control", distance, limit)
            share = abs((tokens[a] - tokens[b]).sum()) / tokens[b].sum()
            add(f"{one}: difference in tokens to its control, as a share", share, TOKENS_LIMIT)
            gap = (originality[a] - originality[b]).min()
            add(f"{one}: smallest gap in originality to a control", gap, MIN_GAP, "at_least")
    a, b = training["gold_typology"], training["matched_typology"]
    is_other = (typology[a] != typology[b]) | (typology[a] < 0)
    add("gold_typology: pairs of different typology", is_other.sum(), 0)
    others = np.concatenate([training[name] for pair in PAIRS for name in pair])
    shared = len(np.intersect1d(training["tokenizer"], others))
    add(f"documents in both tokenizer and {'a paired' if ALL in training else 'another training'} split", shared, 0)
    everything = np.concatenate(list(training.values()))
    add("documents in both training and held-out", len(np.intersect1d(everything, heldout)), 0)
    twice = sum(len(part) - len(np.unique(part)) for part in splits.parts().values())
    add("documents that stand twice in a split", twice, 0)
    add("documents in two held-out splits", len(heldout) - len(np.unique(heldout)), 0)
    for split, share in (shares or {}).items():
        add(f"{split}: largest share of a document's 13-grams that held-out documents hold", share, LIMIT, "below")
    return found
