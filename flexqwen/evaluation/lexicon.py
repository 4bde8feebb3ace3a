"""The inflection lexicon MorphoBr: which readings a form has, and which other forms its word has.

MorphoBr (Alencar, Cuconato and Rademaker, 2018) lists forms of Portuguese nouns, adjectives and verbs, each line
`form<TAB>lemma+POS+features`. Of the verbs, the files of lemmas in b f g h j k l n o q u v w x y z are read.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from flexqwen.evaluation import sources

FILES = ("morphobr/nouns.dict.gz", "morphobr/adjectives.dict.gz", "morphobr/verbs.dict.gz")
_DERIVED = {"DIM", "AUG", "SUPER"}


class Reading(NamedTuple):
    """One line of the lexicon: `pos` is "N", "A" or "V", `features` e.g. {"M", "SG"} or {"PRS", "3", "PL"}."""

    lemma: str
    pos: str
    features: frozenset[str]


class Lexicon:
    """The part of MorphoBr that speaks of some words (forms, in lower case): their readings, all forms of their lemmas,
    and the readings of those.
    """

    def __init__(self, words: Iterable[str]):
        lines = [line.split("\t") for name in FILES for line in sources.read(name).decode().splitlines()]
        tags = [(form, tag.split("+")) for form, tag in lines]
        tags = [(form, tag) for form, tag in tags if _DERIVED.isdisjoint(tag)]
        words = set(words)
        known = {tag[0] for form, tag in tags if form in words}
        words |= {form for form, tag in tags if tag[0] in known}
        self._forms: dict[tuple, set[str]] = defaultdict(set)
        self._readings: dict[str, list[Reading]] = defaultdict(list)
        for form, (lemma, pos, *features) in tags:
            if lemma in known:
                self._forms[lemma, pos, frozenset(features)].add(form)
            if form in words:
                self._readings[form].append(Reading(lemma, pos, frozenset(features)))

    def readings(self, form: str, *pos: str) -> list[Reading]:
        """Readings of a form, of these parts of speech if any are named."""
        return [reading for reading in self._readings.get(form.lower(), []) if not pos or reading.pos in pos]

    def forms(self, lemma: str, pos: str, features: Iterable[str]) -> set[str]:
        """Forms of a lemma with exactly these features."""
        return self._forms.get((lemma, pos, frozenset(features)), set())
