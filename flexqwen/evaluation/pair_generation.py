"""Minimal pairs of Portuguese agreement: real sentences, and the same with one word's number, person or gender changed.

The method is MultiBLiMP's (Jumelet, Weissweiler and Bisazza, 2025): find, in treebanks, two words that must agree;
replace one by another form of its lemma, taken from an inflection lexicon, that cannot agree. What could be
grammatical after all is left out, by rules that each say why. Same sources, same pairs, byte for byte.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from flexqwen.cli import ArgumentParser, command
from flexqwen.evaluation import lexicon, sources
from flexqwen.evaluation.treebanks import GENDER, Sentence, read_sentences
from flexqwen.files import atomic_write, digest

FORMAT = 1
"""Of the pairs that are kept: to be raised when the rules, the word lists or the fields of a pair change."""

_AGREEING = ("determiner_noun", "noun_adjective", "predicative_adjective", "participle")
_CHANGES = [f"{kind}_{value}" for kind in _AGREEING for value in ("number", "gender")]
PHENOMENA = ("subject_verb_number", "subject_verb_person", *_CHANGES)
MOST = 300  # pairs of one phenomenon
WORDS = (4, 45)  # of a sentence
MULTIWORD = ("fixed", "flat", "compound", "goeswith")  # relations within what is one word in all but spelling
OTHER = {"SG": "PL", "PL": "SG", "M": "F", "F": "M"}
TENSES = {"PRS", "PRF", "PQP", "IMPF", "FUT", "COND", "SBJR", "SBJP"}  # not those whose forms are infinitives too
NOMINALS = ("NOUN", "PROPN", "PRON", "NUM", "SYM")

_LISTS = yaml.safe_load(Path(__file__).with_name("agreement.yaml").read_text(encoding="utf-8"))
TREEBANKS, ENDINGS = tuple(_LISTS["treebanks"]), _LISTS["endings"]
COLLECTIVE, BOTH_GENDERS, IRREGULAR, ADVERBIAL, INTRANSITIVE, LINKS, COPULAS = (
    frozenset(words.split()) for words in _LISTS["words"].values()
)
ADVERBIAL |= IRREGULAR
# Person, and gender and number.
PERSONAL = {form: (person, (gender, number)) for form, (person, gender, number) in _LISTS["personal"].items()}
_CELLS = (("M", "SG"), ("F", "SG"), ("M", "PL"), ("F", "PL"))
_ROWS = [row.split() for row in _LISTS["determiners"]]
_DETERMINER = {form: (row, cell) for row in _ROWS for form, cell in zip(row, _CELLS, strict=True)}


@dataclass
class Pair:
    """A minimal pair."""

    id: str  # treebank and split, sentence, phenomenon, number of the changed token
    phenomenon: str
    good: str  # the sentence as it stands in the treebank
    bad: str  # with one word changed
    word: str  # that word in each
    changed: str
    distance: int  # words that stand between it and the word that it agrees with
    attractors: int  # nominals between the two that have the value which the changed word wrongly has


def could_agree(one: tuple, other: tuple) -> bool:
    """Whether two genders and numbers are the same as far as both are known."""
    return all(None in both or both[0] == both[1] for both in zip(one, other, strict=True))


def change_values(own: tuple[str, str]) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Yields (what changes, its wrong value, gender and number with it): the number, then the gender."""
    gender, number = own
    yield "number", OTHER[number], (gender, OTHER[number])
    yield "gender", OTHER[gender], (OTHER[gender], number)


class Generator:
    """Finds all candidates in a list of sentences."""

    def __init__(self, sentences: list[Sentence]):
        self.sentences = sentences
        forms, self.verb_forms = set(), set()
        for sentence in sentences:
            for token in sentence.tokens.values():
                form = token["lower"]
                forms.add(form)
                if token["upos"] in ("VERB", "AUX") and token["feats"].get("VerbForm") in (None, "Fin"):
                    self.verb_forms.add(form)
                if token["upos"] == "VERB" and (lemma := token["lemma"])[-2:] in ENDINGS:
                    self.verb_forms |= {lemma[:-2] + ending for ending in ENDINGS[lemma[-2:]].split()}
        self.lexicon = lexicon.Lexicon(forms)

    def pairs(self) -> Iterator[Pair]:
        for sentence in self.sentences:
            words = sum(token["upos"] != "PUNCT" for token in sentence.tokens.values())
            if not sentence.is_whole or not WORDS[0] <= words <= WORDS[1]:
                continue
            for token in (token for token in sentence.tokens.values() if self.is_plain(sentence, token)):
                start = sentence.starts.get(token["id"])
                for phenomenon, controller, changed, wrong in self.changes(sentence, token):
                    between = sentence.between(controller, token)
                    nominals = [other for other in between if other["upos"] in ("NOUN", "PROPN", "PRON")]
                    if token["form"][0].isupper():
                        changed = changed[0].upper() + changed[1:]
                    bad = sentence.text[:start] + changed + sentence.text[start + len(token["form"]) :]
                    distance = sum(other["upos"] != "PUNCT" for other in between)
                    attractors = sum(wrong in other["agreement"] for other in nominals)
                    id, words = f"{sentence.id}:{phenomenon}:{token['id']}", (token["form"], changed)
                    yield Pair(id, phenomenon, sentence.text, bad, *words, distance, attractors)

    def changes(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        """Yields (phenomenon, the word it agrees with, the changed form, the wrong value) for one word."""
        kind = token["upos"]
        if kind == "DET" and token["relation"] == "det":
            yield from self.determiner(sentence, token)
        elif kind == "ADJ" and token["deprel"] == "amod":
            yield from self.attribute(sentence, token)
        elif kind == "ADJ":
            yield from self.predicate(sentence, token)
        elif kind == "VERB" and token["feats"].get("VerbForm") == "Part" and sentence.below(token, "aux"):
            yield from self.participle(sentence, token)
        elif kind == "VERB" and token["feats"].get("VerbForm") in (None, "Fin") and token["feats"].get("Mood"):
            yield from self.verb(sentence, token)

    def is_plain(self, sentence: Sentence, token: dict) -> bool:
        """An ordinary word by itself: no contraction, clitic, hyphen, foreign word, typing error or name."""
        number, form = token["id"], token["form"]
        is_cased = form.islower() or (form.istitle() and number == min(sentence.tokens)) or form in ("O", "A")
        is_odd = any(token["feats"].get(name) for name in ("Foreign", "Typo", "Abbr", "ExtPos"))
        return number not in sentence.contracted and form.isalpha() and is_cased and not is_odd

    def noun_agreement(self, sentence: Sentence, noun: dict) -> tuple[str, str] | None:
        """Gender and number of a noun that has only these, by the treebank and the lexicon; None for any other noun.

        Coordinated nouns, collectives, and nouns with a number, an apposition or a name beside them are left out.
        """
        form, own = noun["lower"], noun["agreement"]
        readings = self.lexicon.readings(form, "N")
        if (
            noun["upos"] != "NOUN"
            or not form.isalpha()
            or (not noun["form"].islower() and noun["id"] != min(sentence.tokens))
            or not {form, noun["lemma"]}.isdisjoint(COLLECTIVE | BOTH_GENDERS)
            or any(noun["feats"].get(name) for name in ("Foreign", "Typo", "Abbr"))
            or sentence.below(noun, "conj", "cc", "nummod", "appos", "orphan", *MULTIWORD)
            or noun["relation"] in ("conj", "fixed", "flat", "compound", "appos")
            or not readings
            or not all(set(own) <= reading.features for reading in readings)
        ):
            return None
        return own

    def is_verb_like(self, form: str) -> bool:
        """A finite verb has this form, by the lexicon, the treebanks or the rules of regular verbs."""
        readings = self.lexicon.readings(form, "V")
        return form in self.verb_forms or any(verb.features.isdisjoint({"PTPST", "GRD"}) for verb in readings)

    def adjective_forms(self, form: str, own: tuple[str, str], wrong: str) -> str | None:
        """The form of an adjective or participle with one value changed to `wrong`; None if there is not exactly one.

        None too if another reading of that form would agree with `own`.
        """
        form, old, found = form.lower(), OTHER[wrong], set()
        for reading in self.lexicon.readings(form, "A", "V"):
            has_value = old in reading.features and reading.features <= {*own, "PTPST"}
            if has_value and (reading.pos == "A" or "PTPST" in reading.features):
                found |= self.lexicon.forms(reading.lemma, reading.pos, reading.features - {old} | {wrong})
        if len(found) != 1 or (changed := found.pop()) in IRREGULAR or self.is_verb_like(changed):
            return None
        others = {OTHER[value] for value in own}
        return changed if all(reading.features & others for reading in self.lexicon.readings(changed, "A")) else None

    def determiner(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        noun, form = sentence.tokens.get(token["head"]), token["lower"]
        if noun is None or form not in _DETERMINER or noun["id"] < token["id"]:
            return
        (row, cell), between = _DETERMINER[form], sentence.between(token, noun)
        if self.noun_agreement(sentence, noun) != cell or len(sentence.below(noun, "det")) != 1 or len(between) > 1:
            return
        if not all(word["upos"] == "ADJ" and self.is_plain(sentence, word) for word in between):
            return
        if any(not set(cell) <= reading.features for reading in self.lexicon.readings(noun["form"], "A")):
            return  # the noun's form is also an adjective's with other values, or with none
        if self.is_verb_like(sentence.tokens[token["id"] + 1]["lower"]):  # "o marca" is also "marks him"
            return
        for name, wrong, values in change_values(cell):
            changed = row[_CELLS.index(values)]
            if changed != "a":  # which is a preposition too
                yield f"determiner_noun_{name}", noun, changed, wrong

    def attribute(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        noun = sentence.tokens.get(token["head"])
        own = self.noun_agreement(sentence, noun) if noun else None
        if own is None or token["lemma"] in ADVERBIAL or sentence.below(token, "conj", "cc"):
            return
        if self.is_odd_adjective(sentence, token, own):
            return
        for name, wrong, values in change_values(own):
            changed = self.adjective_forms(token["form"], own, wrong)
            if not changed:
                continue
            if any(reading.features.isdisjoint(GENDER.values()) for reading in self.lexicon.readings(changed, "A")):
                values = (None, wrong)  # "regional" is of either gender
            if not self.fits_another(sentence, noun, token, values):
                yield f"noun_adjective_{name}", noun, changed, wrong

    def is_odd_adjective(self, sentence: Sentence, token: dict, own: tuple[str, str]) -> bool:
        is_irregular = not {token["lemma"], token["lower"]}.isdisjoint(IRREGULAR)
        return is_irregular or token["deprel"] == "conj" or not could_agree(token["agreement"], own)

    def fits_another(self, sentence: Sentence, noun: dict, adjective: dict, values: tuple[str, str]) -> bool:
        """Whether the changed adjective could belong to another nominal, or to a subject that is not expressed.

        "a casa do homem rica" is about the house, "voltou da viagem cansado" about whoever came back.
        """
        if adjective["id"] == noun["id"] - 1:  # between a determiner and its noun it can belong to nothing else
            before = sentence.tokens.get(adjective["id"] - 1)
            if before and before["head"] == noun["id"] and before["upos"] == "DET":
                return False
        for other in sentence.tokens.values():
            if other is noun or other is adjective or other["id"] > adjective["id"] + 3:
                continue
            kind, theirs = other["upos"], other["agreement"]
            is_free = kind in ("DET", "ADJ") and other["deprel"] != "det" and other["head"] != noun["id"]
            if kind == "VERB":
                is_silent = other["feats"].get("Mood") and not sentence.below(other, "nsubj")
                if is_silent and theirs[1] in (None, values[1]):
                    return True
            elif (is_free or kind in NOMINALS) and could_agree(theirs, values):
                return True
        return False

    def subject(self, sentence: Sentence, predicate: dict, word: dict) -> tuple[dict, tuple[str, str]] | None:
        """The subject of a predicate, with its gender and number, if it stands before `word` and is beyond doubt."""
        subjects = sentence.below(predicate, "nsubj")
        if len(subjects) != 1 or sentence.below(predicate, "csubj", "expl", "dislocated"):
            return None
        subject = subjects[0]
        has_se = any(child["lower"] == "se" for child in sentence.below(predicate))
        if has_se or subject["id"] > word["id"]:
            return None
        form = subject["lower"]
        if subject["upos"] == "PRON" and form == "que":
            return self.antecedent(sentence, predicate, subject)
        if subject["upos"] == "PRON" and form in PERSONAL:
            return None if sentence.below(subject) else (subject, PERSONAL[form][1])
        own = self.noun_agreement(sentence, subject)
        if own is None:
            return None
        inside = sentence.subtree(subject)
        return None if any(part["lower"] in LINKS or part["upos"] == "SYM" for part in inside) else (subject, own)

    def antecedent(self, sentence: Sentence, predicate: dict, pronoun: dict) -> tuple[dict, tuple[str, str]] | None:
        """The noun that a relative "que" stands for, if there is no other one that it could stand for."""
        noun = sentence.tokens.get(predicate["head"])
        if predicate["deprel"] != "acl:relcl" or noun is None or noun["id"] > pronoun["id"]:
            return None
        own, others = self.noun_agreement(sentence, noun), sentence.between(noun, pronoun)
        if own is None:
            return None
        head = sentence.tokens.get(noun["head"])
        while head is not None and head["id"] < noun["id"]:
            others.append(head)
            head = sentence.tokens.get(head["head"])
        for other in others:
            is_nominal = other["upos"] in (*NOMINALS, "DET", "ADJ") and other["deprel"] not in ("det", "amod")
            if other["lower"] in LINKS or (is_nominal and other["agreement"] != own):
                return None
        return noun, own

    def predicate(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        head = sentence.tokens.get(token["head"]) if token["deprel"] == "xcomp" else token
        if token["deprel"] == "xcomp":
            is_copula = head and head["lemma"] in COPULAS and head["feats"].get("Mood")
            if not is_copula or token["lemma"] in ADVERBIAL:
                return
        elif not any(child["lemma"] in COPULAS for child in sentence.below(token, "cop")):
            return
        if (found := self.subject(sentence, head, token)) and not sentence.below(token, "obj", "det"):
            yield from self.predicated(sentence, token, *found, "predicative_adjective")

    def participle(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        found = self.subject(sentence, token, token)
        if found and found[0]["deprel"] == "nsubj:pass":
            yield from self.predicated(sentence, token, *found, "participle")

    def predicated(self, sentence, token, subject, own, kind) -> Iterator[tuple[str, dict, str, str]]:
        if None in own or self.is_odd_adjective(sentence, token, own):
            return
        for name, wrong, values in change_values(own):
            if values == ("M", "SG") and subject["upos"] == "NOUN" and not sentence.below(subject, "det"):
                continue  # "cerveja é bom"
            changed = self.adjective_forms(token["form"], own, wrong)
            if changed and (kind == "participle" or not self.lexicon.readings(changed, "N")):  # "o problema é política"
                yield f"{kind}_{name}", subject, changed, wrong

    def verb(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        if sentence.below(token, "aux", "cop"):
            return
        found = self.subject(sentence, token, token)
        if found is None:
            return
        (subject, (_, number)), objects = found, sentence.below(token, "obj")
        is_relative = subject["id"] == token["head"]
        if is_relative and not any(child["upos"] == "NOUN" for child in objects):  # "a mata que vejo", "a que fico"
            return
        if not (objects or sentence.below(token, "ccomp", "xcomp") or token["lemma"] in INTRANSITIVE):
            return
        person = PERSONAL.get(subject["lower"], "3")[0]
        verbs = self.lexicon.readings(token["form"], "V")
        readings = [verb for verb in verbs if {person, number} <= verb.features and verb.features & TENSES]
        wanted = [("number", {"3", OTHER[number]}, OTHER[number])] if person == "3" else []
        # "Os brasileiros somos" is right, and so may be "os livros que compro".
        if not is_relative and (person == "1" or number == "SG" or subject["upos"] == "PRON"):
            wanted.append(("person", {"3" if person == "1" else "1", number}, "1"))
        finite = TENSES | {"IMP", "SBJF"}
        for name, values, wrong in wanted:
            kept = [(verb.lemma, verb.features - {"1", "3", "SG", "PL"}) for verb in readings]
            changed = set().union(*(self.lexicon.forms(lemma, "V", features | values) for lemma, features in kept))
            others = self.lexicon.readings(next(iter(changed), ""))
            # It must not agree still, nor be something else than a finite verb.
            fits = (o.pos != "V" or o.features.isdisjoint(finite) or {person, number} <= o.features for o in others)
            if len(changed) == 1 and not any(fits):
                yield f"subject_verb_{name}", subject, *changed, wrong


def choose_pairs(pairs: list[Pair]) -> list[Pair]:
    """At most MOST pairs of each phenomenon, one of a sentence, taken in the order of their ids' hashes.

    Those with attractors come first: they are the rarest.
    """
    taken, seen, counts = [], set(), Counter()
    for pair in sorted(pairs, key=lambda pair: (pair.attractors == 0, hashlib.sha256(pair.id.encode()).digest())):
        key = pair.phenomenon, pair.good
        if key not in seen and counts[pair.phenomenon] < MOST:
            seen.add(key)
            counts[pair.phenomenon] += 1
            taken.append(pair)
    return sorted(taken, key=lambda pair: (PHENOMENA.index(pair.phenomenon), pair.id))


def generate() -> list[Pair]:
    """All pairs, made from their sources."""
    return choose_pairs(list(Generator([sentence for name in TREEBANKS for sentence in read_sentences(name)]).pairs()))


def load() -> list[Pair]:
    """All pairs; made once, then read from the cache, where they are kept by `FORMAT` and what they are made from."""
    key = digest([FORMAT, *(sources.SOURCES[name].sha256 for name in (*TREEBANKS, *lexicon.FILES))])
    path = sources.cache_folder() / "generated" / f"minimal_pairs-{key[:12]}.jsonl"
    if not path.is_file():
        write(path, generate())
    return [Pair(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: str | Path, pairs: list[Pair]) -> None:
    """Writes pairs as JSON lines."""
    with atomic_write(path) as aside:
        lines = [json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs]
        aside.write_text("".join(lines), encoding="utf-8")


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m flexqwen minimal_pairs", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="minimal_pairs.jsonl", help="file to write")
    args = parser.parse_args(argv)
    pairs = generate()
    write(args.output, pairs)
    for phenomenon in PHENOMENA:
        near = [pair.attractors > 0 for pair in pairs if pair.phenomenon == phenomenon]
        print(f"{phenomenon}: {len(near)} pairs, {sum(near)} with attractors")
    print(f"minimal pairs: {args.output} ({len(pairs)} pairs)")
