"""Minimal pairs of Portuguese agreement: real sentences, and the same with one word's number, person or gender changed.

The method is MultiBLiMP's (Jumelet, Weissweiler and Bisazza, 2025): find, in treebanks, two words that must agree;
replace one by another form of its lemma, taken from an inflection lexicon, that cannot agree. What could be
grammatical after all is left out, by rules that each say why. Same sources, same pairs, byte for byte.

python -m flexqwen minimal_pairs --output minimal_pairs.jsonl
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import conllu
import yaml

from flexqwen.cli import ArgumentParser, command
from flexqwen.evaluation import lexicon, sources
from flexqwen.files import atomic_write, digest

FORMAT = 1
"""Of the pairs that are kept: to be raised when the rules, the word lists or the fields of a pair change."""

TREEBANKS = (
    "ud_bosque/pt_bosque-ud-dev.conllu",
    "ud_bosque/pt_bosque-ud-test.conllu",
    "ud_porttinari/pt_porttinari-ud-dev.conllu",
    "ud_porttinari/pt_porttinari-ud-test.conllu",
    "ud_pud/pt_pud-ud-test.conllu",
)
_AGREEING = ("determiner_noun", "noun_adjective", "predicative_adjective", "participle")
PHENOMENA = (
    *("subject_verb_number", "subject_verb_person"),
    *(f"{kind}_{value}" for kind in _AGREEING for value in ("number", "gender")),
)
MOST = 300  # pairs of one phenomenon
WORDS = (4, 45)  # of a sentence
MULTIWORD = ("fixed", "flat", "compound", "goeswith")  # relations within what is one word in all but spelling
NUMBER = {"Sing": "SG", "Plur": "PL"}
GENDER = {"Masc": "M", "Fem": "F"}
OTHER = {"SG": "PL", "PL": "SG", "M": "F", "F": "M"}
TENSES = {"PRS", "PRF", "PQP", "IMPF", "FUT", "COND", "SBJR", "SBJP"}  # not those whose forms are infinitives too
NOMINALS = ("NOUN", "PROPN", "PRON", "NUM", "SYM")


_LISTS = yaml.safe_load(Path(__file__).with_name("agreement.yaml").read_text(encoding="utf-8"))
COLLECTIVE, BOTH_GENDERS, IRREGULAR, ADVERBIAL, INTRANSITIVE = (
    frozenset(_LISTS[name].split()) for name in ("collective", "both_genders", "irregular", "adverbial", "intransitive")
)
ADVERBIAL |= IRREGULAR
# Words within a subject that may make it plural, or singular.
LINKS = {"e", "ou", "nem", "com", "como", "mais", "menos", "entre", "cerca", "%", "&", "/", "nenhum", "cada"}
COPULAS = {"ser", "estar", "ficar", "parecer", "permanecer", "continuar"}
# Person, and gender and number.
PERSONAL = {"eu": ("1", (None, "SG")), "ele": ("3", ("M", "SG")), "ela": ("3", ("F", "SG"))}
PERSONAL |= {"nós": ("1", (None, "PL")), "eles": ("3", ("M", "PL")), "elas": ("3", ("F", "PL"))}
_CELLS = (("M", "SG"), ("F", "SG"), ("M", "PL"), ("F", "PL"))
_ROWS = [row.split() for row in _LISTS["determiners"]]
_DETERMINER = {form: (row, cell) for row in _ROWS for form, cell in zip(row, _CELLS, strict=True)}
_ENDINGS = {"ar": "o as a am e es em ei ou", "er": "o es e em a as am i eu", "ir": "o es e em a as am i iu"}


@dataclass
class Pair:
    """A minimal pair.

    Attributes:
        id: treebank and split, sentence, phenomenon, number of the changed token.
        phenomenon: one of PHENOMENA.
        good, bad: the sentence as it stands in the treebank, and with one word changed.
        word, changed: that word in each.
        distance: words that stand between it and the word that it agrees with.
        attractors: how many nominals between the two have the value that the changed word wrongly has.
    """

    id: str
    phenomenon: str
    good: str
    bad: str
    word: str
    changed: str
    distance: int
    attractors: int


class Sentence:
    """A parsed sentence, with what the rules ask of it. Tokens are conllu's, known by their number, from 1."""

    def __init__(self, parsed: conllu.TokenList, source: str):
        self.id = f"{source}:{parsed.metadata.get('sent_id')}"
        self.tokens = {token["id"]: token for token in parsed if isinstance(token["id"], int)}
        self.contracted, self.starts = set(), {}
        text = ""
        for token in parsed:
            number = token["id"]
            if isinstance(number, tuple) and number[1] == "-":
                self.contracted |= set(range(number[0], number[2] + 1))
            elif isinstance(number, tuple) or number in self.contracted:
                continue
            self.starts[number] = len(text)
            text += token["form"] + ("" if (token["misc"] or {}).get("SpaceAfter") == "No" else " ")
        self.text = text.strip()
        self.is_whole = self.text == parsed.metadata.get("text", "").strip()
        self.words = sum(token["upos"] != "PUNCT" for token in self.tokens.values())
        self.children = defaultdict(list)
        for token in self.tokens.values():
            self.children[token["head"]].append(token)

    def below(self, token: dict, *relations: str) -> list[dict]:
        """Children of a token, in any of these relations (subtypes included) if any are named."""
        return [child for child in self.children[token["id"]] if not relations or relation(child) in relations]

    def subtree(self, token: dict) -> Iterator[dict]:
        yield token
        for child in self.children[token["id"]]:
            yield from self.subtree(child)

    def between(self, first: dict, second: dict) -> list[dict]:
        low, high = sorted((first["id"], second["id"]))
        return [self.tokens[number] for number in range(low + 1, high) if number in self.tokens]

    def with_word(self, token: dict, form: str) -> str:
        start = self.starts[token["id"]]
        return self.text[:start] + form + self.text[start + len(token["form"]) :]


def feature(token: dict, name: str) -> str | None:
    return (token["feats"] or {}).get(name)


def agreement(token: dict) -> tuple[str | None, str | None]:
    """Gender and number of a token, in the lexicon's names."""
    return GENDER.get(feature(token, "Gender")), NUMBER.get(feature(token, "Number"))


def relation(token: dict) -> str:
    """The token's dependency relation, without its subtype."""
    return token["deprel"].split(":")[0]


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
                form = token["form"].lower()
                forms.add(form)
                if token["upos"] in ("VERB", "AUX") and feature(token, "VerbForm") in (None, "Fin"):
                    self.verb_forms.add(form)
                if token["upos"] == "VERB" and (lemma := token["lemma"].lower())[-2:] in _ENDINGS:
                    self.verb_forms |= {lemma[:-2] + ending for ending in _ENDINGS[lemma[-2:]].split()}
        self.lexicon = lexicon.Lexicon(forms)

    def pairs(self) -> Iterator[Pair]:
        for sentence in self.sentences:
            if not sentence.is_whole or not WORDS[0] <= sentence.words <= WORDS[1]:
                continue
            for token in sentence.tokens.values():
                if not self.is_plain(sentence, token):
                    continue
                for phenomenon, controller, changed, wrong in self.changes(sentence, token):
                    between = sentence.between(controller, token)
                    nominals = [other for other in between if other["upos"] in ("NOUN", "PROPN", "PRON")]
                    if token["form"][0].isupper():
                        changed = changed[0].upper() + changed[1:]
                    yield Pair(
                        id=f"{sentence.id}:{phenomenon}:{token['id']}",
                        phenomenon=phenomenon,
                        good=sentence.text,
                        bad=sentence.with_word(token, changed),
                        word=token["form"],
                        changed=changed,
                        distance=sum(other["upos"] != "PUNCT" for other in between),
                        attractors=sum(wrong in agreement(other) for other in nominals),
                    )

    def changes(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        """Yields (phenomenon, the word it agrees with, the changed form, the wrong value) for one word."""
        kind = token["upos"]
        if kind == "DET" and relation(token) == "det":
            yield from self.determiner(sentence, token)
        elif kind == "ADJ" and token["deprel"] == "amod":
            yield from self.attribute(sentence, token)
        elif kind == "ADJ":
            yield from self.predicate(sentence, token)
        elif kind == "VERB" and feature(token, "VerbForm") == "Part" and sentence.below(token, "aux"):
            yield from self.participle(sentence, token)
        elif kind == "VERB" and feature(token, "VerbForm") in (None, "Fin") and feature(token, "Mood"):
            yield from self.verb(sentence, token)

    def is_plain(self, sentence: Sentence, token: dict) -> bool:
        """An ordinary word by itself: no contraction, clitic, hyphen, foreign word, typing error or name."""
        number, form = token["id"], token["form"]
        return (
            number not in sentence.contracted
            and form.isalpha()
            and (form.islower() or (form.istitle() and number == min(sentence.tokens)) or form in ("O", "A"))
            and not any(feature(token, name) for name in ("Foreign", "Typo", "Abbr", "ExtPos"))
            and not any(child["deprel"] in MULTIWORD for child in sentence.below(token))
            and relation(token) not in MULTIWORD
        )

    def noun_agreement(self, sentence: Sentence, noun: dict) -> tuple[str, str] | None:
        """Gender and number of a noun that has only these, by the treebank and the lexicon; None for any other noun.

        Coordinated nouns, collectives, and nouns with a number, an apposition or a name beside them are left out.
        """
        form, own = noun["form"].lower(), agreement(noun)
        readings = self.lexicon.readings(form, "N")
        if (
            noun["upos"] != "NOUN"
            or not form.isalpha()
            or (not noun["form"].islower() and noun["id"] != min(sentence.tokens))
            or not {form, noun["lemma"].lower()}.isdisjoint(COLLECTIVE | BOTH_GENDERS)
            or any(feature(noun, name) for name in ("Foreign", "Typo", "Abbr"))
            or sentence.below(noun, "conj", "cc", "nummod", "appos", "orphan", *MULTIWORD)
            or relation(noun) in ("conj", "fixed", "flat", "compound", "appos")
            or not readings
            or None in own
        ):
            return None
        return own if all(set(own) <= reading.features for reading in readings) else None

    def is_verb_like(self, form: str) -> bool:
        """A finite verb has this form, by the lexicon, the treebanks or the rules of regular verbs."""
        return form in self.verb_forms or any(
            reading.features.isdisjoint({"PTPST", "GRD"}) for reading in self.lexicon.readings(form, "V")
        )

    def adjective_forms(self, form: str, own: tuple[str, str], wrong: str) -> str | None:
        """The form of an adjective or participle with one value changed to `wrong`; None if there is not exactly one.

        None too if another reading of that form would agree with `own`.
        """
        form = form.lower()
        old = OTHER[wrong]
        found = set()
        for reading in self.lexicon.readings(form, "A", "V"):
            has_value = old in reading.features and reading.features <= {*own, "PTPST"}
            if has_value and (reading.pos == "A" or "PTPST" in reading.features):
                found |= self.lexicon.forms(reading.lemma, reading.pos, reading.features - {old} | {wrong})
        if len(found) != 1:
            return None
        changed = found.pop()
        for reading in self.lexicon.readings(changed, "A"):
            if not reading.features & {OTHER[value] for value in own}:
                return None
        return None if changed == form or self.is_verb_like(changed) or changed in IRREGULAR else changed

    def determiner(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        noun, form = sentence.tokens.get(token["head"]), token["form"].lower()
        if noun is None or form not in _DETERMINER or noun["id"] < token["id"]:
            return
        row, cell = _DETERMINER[form]
        own = self.noun_agreement(sentence, noun)
        between = sentence.between(token, noun)
        if own != cell or len(sentence.below(noun, "det")) != 1 or any(word["upos"] != "ADJ" for word in between):
            return
        if self.readings_fit(noun, cell) or len(between) > 1 or not all(self.is_plain(sentence, w) for w in between):
            return
        following = sentence.tokens[token["id"] + 1]["form"].lower()
        if self.is_verb_like(following):  # "o marca" is also "marks him"
            return
        for name, wrong, values in change_values(cell):
            changed = row[_CELLS.index(values)]
            if changed != "a":  # which is a preposition too
                yield f"determiner_noun_{name}", noun, changed, wrong

    def readings_fit(self, noun: dict, own: tuple[str, str]) -> bool:
        """Whether the noun's form is also an adjective's with other values, or with none."""
        return any(not set(own) <= reading.features for reading in self.lexicon.readings(noun["form"], "A"))

    def attribute(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        noun = sentence.tokens.get(token["head"])
        own = self.noun_agreement(sentence, noun) if noun else None
        if own is None or self.is_odd_adjective(sentence, token, own) or sentence.below(token, "conj", "cc"):
            return
        if token["lemma"].lower() in ADVERBIAL or len(sentence.between(noun, token)) > 6:
            return
        for name, wrong, values in change_values(own):
            changed = self.adjective_forms(token["form"], own, wrong)
            if not changed or changed in ADVERBIAL:
                continue
            if any(reading.features.isdisjoint(GENDER.values()) for reading in self.lexicon.readings(changed, "A")):
                values = (None, wrong)  # "regional" is of either gender
            if not self.fits_another(sentence, noun, token, values):
                yield f"noun_adjective_{name}", noun, changed, wrong

    def is_odd_adjective(self, sentence: Sentence, token: dict, own: tuple[str, str]) -> bool:
        if token["lemma"].lower() in IRREGULAR or token["form"].lower() in IRREGULAR or feature(token, "NumType"):
            return True
        return (
            token["deprel"] == "conj" or bool(sentence.below(token, "csubj")) or not could_agree(agreement(token), own)
        )

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
            kind, theirs = other["upos"], agreement(other)
            is_free = kind in ("DET", "ADJ") and other["deprel"] != "det" and other["head"] != noun["id"]
            if kind == "VERB" and other["deprel"] != "det":
                is_silent = feature(other, "Mood") and not sentence.below(other, "nsubj")
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
        if subject["id"] > word["id"] or subject["deprel"] not in ("nsubj", "nsubj:pass"):
            return None
        if any(child["form"].lower() == "se" for child in sentence.below(predicate)):
            return None
        form = subject["form"].lower()
        if subject["upos"] == "PRON" and form == "que":
            return self.antecedent(sentence, predicate, subject)
        if subject["upos"] == "PRON" and form in PERSONAL:
            return None if sentence.below(subject) else (subject, PERSONAL[form][1])
        own = self.noun_agreement(sentence, subject)
        if own is None:
            return None
        inside = [part for part in sentence.subtree(subject) if part["id"] < word["id"]]
        if any(part["form"].lower() in LINKS for part in inside) or any(part["upos"] == "SYM" for part in inside):
            return None
        return subject, own

    def antecedent(self, sentence: Sentence, predicate: dict, pronoun: dict) -> tuple[dict, tuple[str, str]] | None:
        """The noun that a relative "que" stands for, if there is no other one that it could stand for."""
        noun = sentence.tokens.get(predicate["head"])
        if predicate["deprel"] != "acl:relcl" or noun is None or noun["id"] > pronoun["id"]:
            return None
        own = self.noun_agreement(sentence, noun)
        if own is None or len(sentence.between(noun, pronoun)) > 8:
            return None
        others, head = sentence.between(noun, pronoun), sentence.tokens.get(noun["head"])
        while head is not None and head["id"] < noun["id"]:
            others.append(head)
            head = sentence.tokens.get(head["head"])
        for other in others:
            is_nominal = other["upos"] in (*NOMINALS, "DET", "ADJ") and other["deprel"] not in ("det", "amod")
            if is_nominal and agreement(other) != own:
                return None
        if any(part["form"].lower() in LINKS for part in others):
            return None
        return noun, own

    def predicate(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        head = token
        if token["deprel"] == "xcomp":
            head = sentence.tokens.get(token["head"])
            is_copula = head is not None and head["lemma"].lower() in COPULAS and feature(head, "Mood")
            if not is_copula or token["lemma"].lower() in ADVERBIAL:
                return
        elif not any(child["lemma"].lower() in COPULAS for child in sentence.below(token, "cop")):
            return
        found = self.subject(sentence, head, token)
        if found is None or sentence.below(token, "obj", "det"):
            return
        yield from self.predicated(sentence, token, *found, "predicative_adjective")

    def participle(self, sentence: Sentence, token: dict) -> Iterator[tuple[str, dict, str, str]]:
        auxiliaries = [child for child in sentence.below(token, "aux") if child["deprel"] == "aux:pass"]
        if not any(child["lemma"].lower() in ("ser", "estar", "ficar") for child in auxiliaries):
            return
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
        if sentence.below(token, "aux", "cop") or token["lemma"].lower() == "haver" or token["deprel"] == "xcomp":
            return
        found = self.subject(sentence, token, token)
        if found is None:
            return
        (subject, (_, number)), objects = found, sentence.below(token, "obj")
        is_relative = subject["id"] == token["head"]
        if is_relative and not any(child["upos"] == "NOUN" for child in objects):  # "a mata que vejo", "a que fico"
            return
        if not (objects or sentence.below(token, "ccomp", "xcomp") or token["lemma"].lower() in INTRANSITIVE):
            return
        form = token["form"].lower()
        person = PERSONAL.get(subject["form"].lower(), "3")[0]
        verbs = self.lexicon.readings(form, "V")
        readings = [verb for verb in verbs if {person, number} <= verb.features and verb.features & TENSES]
        if not readings or feature(token, "Person") not in (None, person) or agreement(token)[1] != number:
            return
        wanted = []
        if person == "3":
            wanted.append(("number", {"3", OTHER[number]}))
        # "Os brasileiros somos" is right, and so may be "os livros que compro".
        if not is_relative and (person == "1" or number == "SG" or subject["upos"] == "PRON"):
            wanted.append(("person", {"3" if person == "1" else "1", number}))
        for name, values in wanted:
            changed = set()
            for reading in readings:
                changed |= self.lexicon.forms(reading.lemma, "V", reading.features - {"1", "3", "SG", "PL"} | values)
            if len(changed) != 1 or self.verb_fits(form := changed.pop(), person, number):
                continue
            yield f"subject_verb_{name}", subject, form, OTHER[number] if name == "number" else "1"

    def verb_fits(self, form: str, person: str, number: str) -> bool:
        """Whether a changed verb form could still agree, or is something else than a finite verb."""
        return any(
            reading.pos != "V"
            or not reading.features & (TENSES | {"IMP", "SBJF"})
            or {person, number} <= reading.features
            for reading in self.lexicon.readings(form)
        )


def read_sentences(name: str) -> list[Sentence]:
    """The sentences of a treebank file of the evaluation data, such as `ud_pud/pt_pud-ud-test.conllu`."""
    source = Path(name).stem.removeprefix("pt_").replace("-ud-", "-")
    return [Sentence(parsed, source) for parsed in conllu.parse(sources.read(name).decode())]


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
    sentences = [sentence for name in TREEBANKS for sentence in read_sentences(name)]
    return choose_pairs(list(Generator(sentences).pairs()))


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
    counts = Counter(pair.phenomenon for pair in pairs)
    near = Counter(pair.phenomenon for pair in pairs if pair.attractors)
    for phenomenon in PHENOMENA:
        print(f"{phenomenon}: {counts[phenomenon]} pairs, {near[phenomenon]} with attractors")
    print(f"minimal pairs: {args.output} ({len(pairs)} pairs)")
