"""A small grammar of Brazilian Portuguese: endless grammatical sentences in several genres, from a lexicon and a seed.

`grammar.yaml` holds the sentences, `lexicon.yaml` the words. Agreement is computed, not listed, so that a small model
has regularities to learn, and the lexicon is wide enough that two sentences seldom share seven words in a row.
"""

import re
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined


class Noun(NamedTuple):
    """A noun with its modifiers, no article: `text` in its own number, gender `m` or `f`."""

    text: str
    gender: str
    plural: bool = False


_LEXICON, _GRAMMAR = (
    yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    for name in ("lexicon.yaml", "grammar.yaml")
)
NOUNS = {
    group: [Noun(*item.replace("_", " ").split("/")) for item in nouns.split()]
    for group, nouns in _LEXICON["nouns"].items()
}
NOUNS["agents"] = NOUNS["institutions"] + NOUNS["people"]
ADJECTIVES, QUALITIES, TRAITS, LAST_NAMES, MONTHS, WEEKDAYS = (
    _LEXICON[name].split() for name in ("adjectives", "qualities", "traits", "last_names", "months", "weekdays")
)
_ADJECTIVES_OF = {"people": TRAITS, "products": QUALITIES, "parts": QUALITIES}
FIRST_NAMES = {gender: names.split() for gender, names in _LEXICON["first_names"].items()}
CITIES = [pair.replace("_", " ").split("/") for pair in _LEXICON["cities"].split()]
EVENTS = [(verb, group) for group, verbs in _LEXICON["verbs"].items() for verb in verbs.split()]


@cache
def inflect(word: str, form: str) -> str:
    """The word, or each of several, in a form of `lexicon.yaml`: plural, feminine, participle or first_person."""
    if " " in word:
        return " ".join(inflect(part, form) for part in word.split(" "))
    pattern, ending = next(rule for rule in _LEXICON["inflections"][form] if re.search(rule[0], word))
    return re.sub(pattern, ending, word, count=1)


def agree(adjective: str, noun: Noun) -> str:
    """The adjective, given in the masculine singular, in the noun's gender and number."""
    adjective = inflect(adjective, "feminine") if noun.gender == "f" else adjective
    return inflect(adjective, "plural") if noun.plural else adjective


def conjugate(verb: str, tense: str, is_plural: bool) -> str:
    return verb[:-2] + _LEXICON["endings"][tense][verb[-2]][is_plural]


def participle(verb: str, noun: Noun) -> str:
    return agree(inflect(verb, "participle"), noun)


def the(noun: Noun, preposition: str = "") -> str:
    """Noun with the definite article, contracted with the preposition where Portuguese does so."""
    article = _LEXICON["definite"][noun.gender][noun.plural]
    joined = _LEXICON["contractions"].get(preposition, {}).get(article) or f"{preposition} {article}".lstrip()
    return f"{joined} {noun.text}"


def some(noun: Noun) -> str:
    return f"{_LEXICON['indefinite'][noun.gender][noun.plural]} {noun.text}"


_TEMPLATES = Environment(variable_start_string="{", variable_end_string="}", undefined=StrictUndefined)
_TEMPLATES.globals |= {f.__name__: f for f in (agree, conjugate, inflect, participle, the, some)}
_TEMPLATES.globals |= {"names": FIRST_NAMES, "nouns": NOUNS, "qualities": QUALITIES, "months": MONTHS, "days": WEEKDAYS}
_TEMPLATES.globals |= {"events": EVENTS, "cities": CITIES, "in_states": _LEXICON["in_states"]}
_compile, _compile_expression = cache(_TEMPLATES.from_string), cache(_TEMPLATES.compile_expression)


class Writer:
    """Writes in Portuguese, one random choice after another from `random`. Templates call its public methods."""

    def __init__(self, random: Random):
        self.random = random
        self.pick, self.number = random.choice, random.randint
        methods = (name for name in dir(self) if not name.startswith("_"))
        self._names = {name: getattr(self, name) for name in methods}
        self._names |= {rule: partial(self.phrase, rule) for rule in _GRAMMAR["phrases"]}

    def one_of(self, *options: str) -> str:
        return self.pick(options)

    def noun(self, group: str, is_plural: bool | None = None) -> Noun:
        """A noun, perhaps in the plural, perhaps with an adjective that suits it."""
        noun = self.pick(NOUNS[group])
        if is_plural is None:
            is_plural = self.random.random() < 0.25
        if is_plural:
            noun = Noun(inflect(noun.text, "plural"), noun.gender, True)
        if self.random.random() < 0.55:
            adjective = self.pick(_ADJECTIVES_OF.get(group, ADJECTIVES))
            noun = noun._replace(text=f"{noun.text} {agree(adjective, noun)}")
        return noun

    def np(self, group: str, preposition: str = "") -> str:
        """A noun phrase in the singular, with its article."""
        return the(self.noun(group, False), preposition)

    def nps(self, group: str, preposition: str = "") -> str:
        """A noun phrase in either number, with its article."""
        return the(self.noun(group), preposition)

    def person(self) -> Noun:
        gender = self.pick("mf")
        return Noun(f"{self.pick(FIRST_NAMES[gender])} {self.pick(LAST_NAMES)}", gender)

    def subject(self) -> tuple[str, Noun]:
        """A noun phrase that can act, and the noun that its verb agrees with."""
        kind = self.random.random()
        if kind < 0.45:
            person = self.person()
            if kind < 0.25:
                return person.text, person
            role = self.pick([noun for noun in NOUNS["people"] if noun.gender == person.gender])
            return f"{the(role)} {person.text}", person
        noun = self.noun("institutions" if kind < 0.75 else "people")
        return (the(noun) if self.random.random() < 0.7 else some(noun)), noun

    def object(self, group: str) -> str:
        noun = self.noun(group, is_plural=False if group == "themes" else None)
        text = the(noun) if group == "themes" or self.random.random() < 0.55 else some(noun)
        return f"{text} {self.phrase('complement')}" if self.random.random() < 0.3 else text

    def clause(self, tense: str = "past") -> str:
        verb, group = self.pick(EVENTS)
        if group not in ("people", "themes") and self.random.random() < 0.2:
            noun = self.noun(group)
            be = _LEXICON["be"][tense][noun.plural]
            return f"{the(noun)} {be} {participle(verb, noun)} {self.nps('agents', 'por')}"
        text, agent = self.subject()
        return f"{text} {conjugate(verb, tense, agent.plural)} {self.object(group)}"

    def phrase(self, rule: str, tense: str = "past") -> str:
        """A phrase or a sentence by one of the rules of `grammar.yaml`."""
        form = _GRAMMAR["phrases"][rule]
        if isinstance(form, dict):
            kind = self.random.random()
            form = next(text for bound, text in form.items() if kind < bound)
        return self._fill(form, tense=tense)

    def _fill(self, template: str, **names) -> str:
        return _compile(template).render(self._names, **names)

    def text(self, genre: str, words: int) -> list[str]:
        """Sentences of one text of the genre, about `words` words together, capitalised and with their full stops."""
        topic = {"prose": self.person().text, "encyclopedia": self.pick(CITIES)[0]}.get(genre, "")
        sentences = []
        while words > 0:
            names = {"topic": topic}
            for name, expression in _GRAMMAR["genres"][genre].get("given", {}).items():
                names[name] = _compile_expression(expression)(self._names, **names)
            text = self._fill(self.pick(_GRAMMAR["genres"][genre]["forms"]), **names)
            if genre != "tweet":
                text = text[0].upper() + text[1:] + ("" if text[-1] in "?!(”" else ".")
            sentences.append(text)
            words -= len(text.split())
        return sentences
