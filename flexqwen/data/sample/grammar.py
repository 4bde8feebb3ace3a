"""A small grammar of Brazilian Portuguese: endless grammatical sentences in several genres, from a lexicon and a seed.

It makes the sample corpus. Agreement (gender, number, article and contraction, verb ending) is computed, not listed, so
that a small model has real regularities to learn, and the lexicon is wide enough that two sentences seldom share seven
words in a row.
"""

from pathlib import Path
from random import Random
from typing import NamedTuple

import yaml


class Noun(NamedTuple):
    """A noun with its modifiers, no article: `text` in its own number, gender `m` or `f`."""

    text: str
    gender: str
    plural: bool = False


def _nouns(group: str) -> list[Noun]:
    """Reads `livro/m revista/f`; `_` stands for a space inside a compound."""
    items = (item.replace("_", " ").split("/") for item in _LEXICON["nouns"][group].split())
    return [Noun(word, gender) for word, gender in items]


_LEXICON = yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8"))
PEOPLE = _nouns("people")
INSTITUTIONS = _nouns("institutions")
PLACES = _nouns("places")
WORKS = _nouns("works")
PLANS = _nouns("plans")
THEMES = _nouns("themes")
PRODUCTS = _nouns("products")
PARTS = _nouns("parts")
SPECIES = _nouns("species")
MATTERS = _nouns("matters")
ADJECTIVES, QUALITIES, TRAITS = (_LEXICON[name].split() for name in ("adjectives", "qualities", "traits"))
FIRST = {gender: names.split() for gender, names in _LEXICON["first_names"].items()}
LAST = _LEXICON["last_names"].split()
CITIES = dict(pair.replace("_", " ").split("/") for pair in _LEXICON["cities"].split())
_STATE_ARTICLE = {"Pernambuco": "", "São Paulo": "", "Minas Gerais": "", "Bahia": "a", "Alagoas": "", "Sergipe": "",
                  "Goiás": "", "Santa Catarina": "", "Mato Grosso": ""}  # fmt: skip
MONTHS, WEEKDAYS = _LEXICON["months"].split(), _LEXICON["weekdays"].split()
_TAKEN = {"works": WORKS, "places": PLACES, "plans": PLANS, "people": PEOPLE, "themes": THEMES}
_EVENTS = [(verb, _TAKEN[group]) for group, verbs in _LEXICON["verbs"].items() for verb in verbs.split()]
_PARTICIPLES = {"escrever": "escrito", "descrever": "descrito", "abrir": "aberto", "suspender": "suspenso"}
_ENDINGS = {  # tense -> conjugation -> (singular, plural), third person
    "past": {"a": ("ou", "aram"), "e": ("eu", "eram"), "i": ("iu", "iram")},
    "present": {"a": ("a", "am"), "e": ("e", "em"), "i": ("e", "em")},
    "imperfect": {"a": ("ava", "avam"), "e": ("ia", "iam"), "i": ("ia", "iam")},
    "future": {"a": ("ará", "arão"), "e": ("erá", "erão"), "i": ("irá", "irão")},
}


def plural(word: str) -> str:
    """Plural of a noun or of an adjective; of each part where there are two words."""
    if " " in word:
        return " ".join(plural(part) for part in word.split(" "))
    if word == "mão":
        return "mãos"
    if word in ("frágil", "útil"):
        return word[:-2] + "eis"
    if word == "cais" or word.endswith(("os", "as", "is", "es", "us")):
        return word
    for ending, replacement in (("ão", "ões"), ("m", "ns"), ("ês", "eses"), ("il", "is"), ("ol", "óis"), ("al", "ais")):
        if word.endswith(ending):
            return word.removesuffix(ending) + replacement
    if word.endswith("el"):
        return word[:-2] + ("eis" if any(letter in word for letter in "áéíóú") else "éis")
    return word + ("es" if word[-1] in "rz" else "s")


def agree(adjective: str, noun: Noun) -> str:
    """The adjective, given in the masculine singular, in the noun's gender and number."""
    if noun.gender == "f" and adjective.endswith("o"):
        adjective = adjective[:-1] + "a"
    elif noun.gender == "f" and adjective.endswith("ês"):
        adjective = adjective[:-2] + "esa"
    return plural(adjective) if noun.plural else adjective


def conjugate(verb: str, tense: str, is_plural: bool) -> str:
    """Third person of a regular verb."""
    return verb[:-2] + _ENDINGS[tense][verb[-2]][is_plural]


def participle(verb: str, noun: Noun) -> str:
    base = _PARTICIPLES.get(verb) or verb[:-2] + ("ado" if verb[-2] == "a" else "ido")
    return agree(base, noun)


def first_person(verb: str) -> str:
    """First person singular of the past: `comprei`, `recebi`, `busquei`."""
    stem = verb[:-2]
    if verb[-2] != "a":
        return stem + "i"
    return (stem[:-1] + {"c": "qu", "g": "gu", "ç": "c"}[stem[-1]] if stem[-1] in "cgç" else stem) + "ei"


_ARTICLES = {("m", False): "o", ("f", False): "a", ("m", True): "os", ("f", True): "as"}
_INDEFINITE = {("m", False): "um", ("f", False): "uma", ("m", True): "alguns", ("f", True): "algumas"}
_CONTRACTIONS = {"de": "d{}", "em": "n{}", "por": "pel{}"}


def the(noun: Noun, preposition: str = "") -> str:
    """Noun with the definite article, contracted with the preposition where Portuguese does so."""
    article = _ARTICLES[noun.gender, noun.plural]
    if preposition == "a":
        article = {"o": "ao", "a": "à", "os": "aos", "as": "às"}[article]
    elif preposition in _CONTRACTIONS:
        article = _CONTRACTIONS[preposition].format(article)
    elif preposition:
        article = f"{preposition} {article}"
    return f"{article} {noun.text}"


def some(noun: Noun) -> str:
    """Noun with the indefinite article."""
    return f"{_INDEFINITE[noun.gender, noun.plural]} {noun.text}"


def _in_state(state: str, preposition: str) -> str:
    article = _STATE_ARTICLE.get(state, "o")
    return the(Noun(state, "mf"[article == "a"]), preposition) if article else f"{preposition} {state}"


class Writer:
    """Writes in Portuguese, one random choice after another from `random`."""

    def __init__(self, random: Random):
        self.random = random
        self.pick = random.choice

    # Phrases

    def noun(self, nouns: list[Noun], is_plural: bool | None = None, adjectives: list[str] = ADJECTIVES) -> Noun:
        """A noun, perhaps in the plural, perhaps with an adjective that suits it."""
        noun = self.pick(nouns)
        if nouns is PEOPLE:
            adjectives = TRAITS
        if is_plural is None:
            is_plural = self.random.random() < 0.25
        if is_plural:
            noun = Noun(plural(noun.text), noun.gender, True)
        if self.random.random() < 0.55:
            noun = noun._replace(text=f"{noun.text} {agree(self.pick(adjectives), noun)}")
        return noun

    def person(self) -> Noun:
        gender = self.pick("mf")
        return Noun(f"{self.pick(FIRST[gender])} {self.pick(LAST)}", gender)

    def city(self) -> str:
        return self.pick(list(CITIES))

    def date(self, first_year: int = 1890, last_year: int = 2023) -> str:
        return f"{self.random.randint(1, 28)} de {self.pick(MONTHS)} de {self.random.randint(first_year, last_year)}"

    def subject(self) -> tuple[str, Noun]:
        """A noun phrase that can act, and the noun that its verb agrees with."""
        kind = self.random.random()
        if kind < 0.25:
            person = self.person()
            return person.text, person
        if kind < 0.45:
            person = self.person()
            role = self.pick([noun for noun in PEOPLE if noun.gender == person.gender])
            return f"{the(role)} {person.text}", person
        noun = self.noun(INSTITUTIONS if kind < 0.75 else PEOPLE)
        return (the(noun) if self.random.random() < 0.7 else some(noun)), noun

    def object(self, nouns: list[Noun]) -> str:
        noun = self.noun(nouns, is_plural=False if nouns is THEMES else None)
        text = the(noun) if nouns is THEMES or self.random.random() < 0.55 else some(noun)
        return f"{text} {self.complement()}" if self.random.random() < 0.3 else text

    def complement(self) -> str:
        kind = self.random.random()
        if kind < 0.35:
            return f"de {self.city()}"
        if kind < 0.6:
            return the(self.noun(INSTITUTIONS, False), "de")
        return f"sobre {the(self.noun(THEMES, False))}"

    def circumstance(self) -> str:
        kind = self.random.random()
        if kind < 0.2:
            return f"em {self.date()}"
        if kind < 0.4:
            return f"em {self.city()}"
        if kind < 0.6:
            return the(self.noun(PLACES), "em")
        if kind < 0.75:
            return f"com {the(self.noun(PEOPLE))}"
        if kind < 0.9:
            return f"durante {the(self.noun(PLANS, False))}"
        return f"por {self.pick(['causa', 'ordem', 'iniciativa', 'insistência'])} {the(self.noun(PEOPLE), 'de')}"

    # Sentences, without the full stop

    def clause(self, tense: str = "past") -> str:
        verb, objects = self.pick(_EVENTS)
        if objects not in (PEOPLE, THEMES) and self.random.random() < 0.2:
            noun = self.noun(objects)
            auxiliary = {"past": ("foi", "foram"), "present": ("é", "são"), "imperfect": ("era", "eram")}
            be = auxiliary.get(tense, ("será", "serão"))[noun.plural]
            return f"{the(noun)} {be} {participle(verb, noun)} {the(self.noun(INSTITUTIONS + PEOPLE), 'por')}"
        text, agent = self.subject()
        return f"{text} {conjugate(verb, tense, agent.plural)} {self.object(objects)}"

    def sentence(self, tense: str = "past") -> str:
        kind = self.random.random()
        if kind < 0.35:
            text = f"{self.clause(tense)} {self.circumstance()}"
        elif kind < 0.5:
            text = f"{self.circumstance()}, {self.clause(tense)}"
        elif kind < 0.62:
            when = self.pick(["quando", "enquanto", "depois que", "assim que"])
            text = f"{when} {self.clause(tense)}, {self.clause(tense)}"
        elif kind < 0.74:
            joined = self.pick(["mas", "e", "porque", "embora", "pois"])
            text = f"{self.clause(tense)}, {joined} {self.clause('imperfect')}"
        elif kind < 0.86:
            text = f"segundo {the(self.noun(PEOPLE, False))}, {self.clause(tense)} {self.circumstance()}"
        else:
            text = f"{self.clause(tense)}, {self.pick(['além de', 'sem', 'para', 'em vez de'])} {self.infinitive()}"
        return text

    def infinitive(self) -> str:
        verb, objects = self.pick(_EVENTS)
        return f"{verb} {self.object(objects)}"

    # Genres: each gives one sentence of a text about `topic`.

    def np(self, nouns: list[Noun], preposition: str = "") -> str:
        """A noun phrase in the singular, with its article."""
        return the(self.noun(nouns, False), preposition)

    def one_of(self, *texts: str) -> str:
        return self.pick(texts)

    def tweet(self, topic: str) -> str:
        pick, one_of = self.pick, self.one_of
        mood = one_of("feliz", "sem paciência", "com fome", "com sono", "morrendo de saudade", "sem dinheiro")
        match self.random.randrange(6):
            case 0:
                done = first_person(pick(_EVENTS)[0])
                return f"hoje eu {done} {self.object(pick([WORKS, PLACES, PEOPLE]))} e tô {mood}"
            case 1:
                return f"{self.clause()} e ninguém me avisou #{pick(THEMES).text}"
            case 2:
                friend = f"@{pick(FIRST['f']).lower()}_{self.random.randint(1, 99)}"
                return f"{friend} você viu {self.np(WORKS)} {self.complement()}?"
            case 3:
                return f"alguém de {self.city()} sabe onde fica {self.np(PLACES)}?"
            case 4:
                return f"{pick(WEEKDAYS)} chuvosa, {mood}, pensando {self.np(MATTERS, 'em')} e {self.np(PEOPLE, 'em')}"
            case _:
                return f"não aguento mais {the(self.noun(PLANS))} {self.np(INSTITUTIONS, 'de')} :("

    def review(self, topic: str) -> str:
        pick, one_of, number = self.pick, self.one_of, self.random.randint
        product, part, other = (self.noun(nouns, False, QUALITIES) for nouns in (PRODUCTS, PARTS, PARTS))
        quality = agree(pick(QUALITIES), part)
        match self.random.randrange(7):
            case 0:
                bought = first_person(one_of("comprar", "receber", "escolher", "trocar", "testar"))
                whom = one_of(
                    "minha filha", "meu filho", "minha mãe", "meu pai", "minha avó", "minha casa", "meu trabalho"
                )
                return f"{bought} {some(product)} para {whom}"
            case 1:
                return f"{the(part)} é {quality}, mas {the(other)} parece {agree(pick(QUALITIES), other)}"
            case 2:
                when = one_of("antes do prazo", "com atraso", "no dia marcado")
                return f"chegou {when} em {self.city()}, depois de {number(2, 40)} dias"
            case 3:
                state = one_of("não apresentou defeito", "quebrou duas vezes", f"continua {quality}")
                return f"em {number(2, 11)} meses de uso, {the(part)} {state}"
            case 4:
                wanted = some(self.noun(PRODUCTS, False, QUALITIES))
                return f"{one_of('recomendo', 'não recomendo', 'indico')} {the(product)} para quem procura {wanted}"
            case 5:
                answered = one_of("respondeu", "ignorou", "resolveu", "recusou")
                request = one_of("troca", "reembolso", "garantia", "entrega")
                return f"a loja {answered} meu pedido de {request} em {number(1, 28)} de {pick(MONTHS)}"
            case _:
                return f"pelo preço de {number(20, 990)} reais, esperava {the(part)} mais {quality}"

    def encyclopedia(self, topic: str) -> str:
        number = self.random.randint
        match self.random.randrange(6):
            case 0:
                city = self.city()
                return f"{topic} fica a {number(3, 400)} quilômetros de {city}, {_in_state(CITIES[city], 'em')}"
            case 1:
                trades = f"{self.np(THEMES, 'de')} e {self.np(THEMES, 'de')}"
                return f"a população, estimada em {number(2, 900)} mil habitantes, vive {trades}"
            case 2:
                species = self.noun(SPECIES, False)
                named = f"{participle('descrever', species)} por {self.person().text} em {number(1790, 2015)}"
                return f"na região vive {some(species)} de {number(2, 200)} centímetros, {named}"
            case 3:
                person = self.person()
                born = f"{participle('nascer', person)} em {self.city()} em {self.date(1810, 1990)}"
                did = conjugate(self.one_of("ensinar", "trabalhar", "morar", "estudar"), "past", False)
                return f"{person.text}, {born}, {did} {self.np(INSTITUTIONS, 'em')}"
            case _:
                return self.sentence(self.one_of("past", "past", "present", "imperfect"))

    def news(self, topic: str) -> str:
        one_of, number = self.one_of, self.random.randint
        match self.random.randrange(6):
            case 0:
                said = one_of("afirmou", "disse", "explicou", "garantiu", "lamentou")
                return f"“{self.clause('present')}, {self.clause('future')}”, {said} {self.subject()[0]}"
            case 1:
                aim = f"{one_of('permitirá', 'deverá', 'servirá para')} {self.infinitive()} até {self.pick(MONTHS)}"
                return f"o investimento, de {number(2, 950)} milhões de reais, {aim}"
            case 2:
                return f"na {self.pick(WEEKDAYS[:5])}, {number(1, 28)}, {self.clause()} {self.circumstance()}"
            case 3:
                think = one_of("acreditam", "dizem", "negam", "temem")
                return f"{number(5, 95)}% dos entrevistados {think} que {self.clause('future')}"
            case _:
                return self.sentence()

    def law(self, topic: str) -> str:
        number = self.random.randint
        match self.random.randrange(5):
            case 0:
                return f"Art. {number(2, 99)}. {self.clause('future')} no prazo de {number(5, 180)} dias"
            case 1:
                powers = f"{self.infinitive()} e {self.infinitive()}"
                return f"§ {number(1, 9)}º {self.np(INSTITUTIONS, 'a')} compete {powers}"
            case 2:
                without = f"sem autorização {self.np(INSTITUTIONS, 'de')}"
                return f"fica vedado {the(self.noun(PEOPLE), 'a')} {self.infinitive()} {without}"
            case 3:
                term = self.noun(PLANS, False).text
                return f"para os fins desta lei, considera-se {term} o ato de {self.infinitive()}"
            case _:
                return self.sentence("future")

    def ruling(self, topic: str) -> str:
        one_of, number = self.one_of, self.random.randint
        match self.random.randrange(5):
            case 0:
                against = f"{self.np(PLANS)} {self.np(INSTITUTIONS, 'de')}"
                return f"trata-se de recurso interposto por {self.person().text} contra {against}"
            case 1:
                return f"sustenta a parte {one_of('autora', 'ré')} que {self.clause()} {self.circumstance()}"
            case 2:
                effect = f"{one_of('afasta', 'confirma', 'agrava')} {self.np(PLANS)}"
                return f"às folhas {number(2, 900)}, {self.clause()}, o que {effect}"
            case 3:
                paid = f"{number(1, 300)} mil reais por {self.infinitive()}"
                return f"condeno {self.np(INSTITUTIONS)} ao pagamento de {paid}"
            case _:
                return self.sentence()

    def prose(self, topic: str) -> str:
        one_of = self.one_of
        matter, other = self.noun(MATTERS), self.noun(MATTERS)
        match self.random.randrange(6):
            case 0:
                verb = one_of("lembrar", "esconder", "cobrir", "acender", "apagar", "levar")
                did = conjugate(verb, "imperfect", matter.plural)
                return f"{the(matter)} {did} {the(other)} {self.np(PEOPLE, 'de')}"
            case 1:
                asked = one_of("perguntou", "murmurou", "insistiu", "gritou")
                looking = one_of("olhando para", "apontando para", "virando-se para")
                return f"— {self.clause('present')}? — {asked} {topic}, {looking} {the(matter)}"
            case 2:
                like = conjugate(self.pick(_EVENTS)[0], "present", False)
                thought = one_of("pensava", "acreditava")
                return f"{topic} {thought} {the(matter, 'em')} como quem {like} {the(other)}"
            case 3:
                came = conjugate("chegar", "imperfect", other.plural)
                return f"havia {some(matter)} {self.np(PLACES, 'em')}, e {the(other)} {came} devagar"
            case _:
                return self.sentence("imperfect")

    def text(self, genre: str, words: int) -> list[str]:
        """Sentences of one text of the genre, about `words` words together, capitalised and with their full stops."""
        topic = {"prose": self.person().text, "encyclopedia": self.city()}.get(genre, "")
        sentences = []
        while words > 0:
            text = getattr(self, genre)(topic)
            if genre != "tweet":
                text = text[0].upper() + text[1:]
            if text[-1] not in "?!(”":
                text += "." if genre != "tweet" else ""
            sentences.append(text)
            words -= len(text.split())
        return sentences
