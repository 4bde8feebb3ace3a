"""The inflection lexicon MorphoBr: which readings a form has, and which other forms its word has.

MorphoBr (Alencar, Cuconato and Rademaker, 2018) lists forms of Portuguese nouns, adjectives and verbs, each line
`form<TAB>lemma+POS+features`. Of the verbs, the files of lemmas in b f g h j k l n o q u v w x y z are read.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from flexqwen.evaluation import sources

FILES = ("morphobr/nouns.dict.gz", "morphobr/adjectives.dict.gz", "morphobr/verbs.dict.gz")
_LINE = re.compile(r"(.*)\t(.*?)\+(.*)")  # form, lemma, part of speech and features
_DERIVED = re.compile(r"\b(DIM|AUG|SUPER)\b")


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
        lines = [line for name in FILES for line in _LINE.findall(sources.read(name).decode())]
        words = set(words)
        known = {lemma for form, lemma, tags in lines if form in words and not _DERIVED.search(tags)}
        words |= {form for form, lemma, tags in lines if lemma in known and not _DERIVED.search(tags)}
        self._forms: dict[tuple, set[str]] = defaultdict(set)
        self._readings: dict[str, list[Reading]] = defaultdict(list)
        for form, lemma, tags in lines:
            if not (lemma in known or form in words) or _DERIVED.search(tags):
                continue
            pos, *features = tags.split("+")
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
