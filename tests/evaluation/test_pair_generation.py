"""Minimal pairs: the rules on sentences made for them, and the real set."""

import dataclasses
import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from flexqwen.evaluation import lexicon, pair_generation, sources
from flexqwen.evaluation.lexicon import Lexicon
from flexqwen.evaluation.pair_generation import Generator, Pair, choose_pairs, load, read_sentences

NOUNS = """menino menino+N+M+SG
meninos menino+N+M+PL
casa casa+N+F+SG
casas casa+N+F+PL
livro livro+N+M+SG
livros livro+N+M+PL
capital capital+N+F+SG
capitais capital+N+F+PL
maioria maioria+N+F+SG
política política+N+F+SG"""
ADJECTIVES = """novo novo+A+M+SG
nova novo+A+F+SG
novos novo+A+M+PL
novas novo+A+F+PL
regional regional+A+SG
regionais regional+A+PL
político político+A+M+SG
política político+A+F+SG
políticos político+A+M+PL
visto visto+A+M+SG"""
VERBS = """leu ler+V+PRF+3+SG
leram ler+V+PRF+3+PL
li ler+V+PRF+1+SG
vista ver+V+PTPST+F+SG
visto ver+V+PTPST+M+SG
vistas ver+V+PTPST+F+PL
vistos ver+V+PTPST+M+PL"""
FEATURES = {
    "ms": "Gender=Masc|Number=Sing",
    "fs": "Gender=Fem|Number=Sing",
    "mp": "Gender=Masc|Number=Plur",
    "fp": "Gender=Fem|Number=Plur",
    "p": "Number=Plur",
    "3s": "Mood=Ind|Number=Sing|Person=3|Tense=Past|VerbForm=Fin",
    "fsp": "Gender=Fem|Number=Sing|VerbForm=Part",
    "": "_",
}


def sentence(words: str) -> str:
    """CoNLL-U of "form/UPOS/features/head/relation[/lemma] …"; the sentence ends with a full stop of its own."""
    rows, forms = [], []
    tokens = [word.split("/") for word in words.split()]
    for number, (form, upos, features, head, relation, *lemma) in enumerate(tokens, 1):
        forms.append(form)
        row = [number, form, *(lemma or [form.lower()]), upos, "_", FEATURES[features], head, relation, "_", "_"]
        rows.append("\t".join(map(str, row)))
    return f"# sent_id = s\n# text = {' '.join(forms)}\n" + "\n".join(rows) + "\n\n"


@pytest.fixture
def pairs(monkeypatch):
    """Finds {phenomenon: changed words} in one sentence, with a small lexicon."""

    def find(words):
        files = {
            "ud_x/pt_x-ud-test.conllu": sentence(words),
            **{
                name: lines.replace(" ", "\t")
                for name, lines in zip(lexicon.FILES, (NOUNS, ADJECTIVES, VERBS), strict=True)
            },
        }
        monkeypatch.setattr(sources, "read", lambda name: files[name].encode())
        found = list(Generator(read_sentences("ud_x/pt_x-ud-test.conllu")).pairs())
        for pair in found:
            good, bad = pair.good.split(), pair.bad.split()
            different = [(one, other) for one, other in zip(good, bad, strict=True) if one != other]
            assert different == [(pair.word, pair.changed)]
        return {(pair.phenomenon, pair.changed, pair.distance, pair.attractors) for pair in found}

    return find


READS = "O/DET/ms/2/det menino/NOUN/ms/3/nsubj leu/VERB/3s/0/root/ler um/DET/ms/5/det livro/NOUN/ms/3/obj"


def test_subject_verb_and_determiner(pairs):
    assert pairs(READS) == {
        ("subject_verb_number", "leram", 0, 0),
        ("subject_verb_person", "li", 0, 0),
        ("determiner_noun_number", "Os", 0, 0),  # not "A": a preposition too
        ("determiner_noun_number", "uns", 0, 0),
        ("determiner_noun_gender", "uma", 0, 0),
    }


def test_attractors_and_distance_are_recorded(pairs):
    words = (
        "O/DET/ms/2/det menino/NOUN/ms/5/nsubj de/ADP//4/case casas/NOUN/fp/2/nmod/casa leu/VERB/3s/0/root/ler "
        "livros/NOUN/mp/5/obj/livro"
    )
    assert ("subject_verb_number", "leram", 2, 1) in pairs(words)


@pytest.mark.parametrize(
    "words, why",
    [
        (READS.replace("menino/NOUN/ms", "maioria/NOUN/fs").replace("O/DET/ms", "A/DET/fs"), "collective"),
        (READS.replace("menino/NOUN", "Ana/PROPN"), "name"),
        (READS.replace("um/DET/ms/5/det livro/NOUN/ms/3/obj", "ontem/ADV//3/advmod agora/ADV//3/advmod"), "no object"),
        (READS + " e/CCONJ//7/cc casa/NOUN/fs/2/conj", "coordination"),
        (READS + " se/PRON//3/expl", "se"),
        ("leu/VERB/3s/0/root/ler o/DET/ms/3/det menino/NOUN/ms/1/nsubj um/DET/ms/5/det livro/NOUN/ms/1/obj", "after"),
    ],
)
def test_doubtful_subjects_give_no_verb_pairs(pairs, words, why):
    assert not [found for found in pairs(words) if found[0].startswith("subject_verb")], why


def test_adjective(pairs):
    words = (
        "A/DET/fs/3/det nova/ADJ/fs/3/amod/novo casa/NOUN/fs/4/nsubj leu/VERB/3s/0/root/ler livros/NOUN/mp/4/obj/livro"
    )
    found = pairs(words)
    assert {found_[:2] for found_ in found if found_[0].startswith("noun_adj")} == set()  # "novo" is in ADVERBIAL
    words = words.replace("nova/ADJ/fs/3/amod/novo", "política/ADJ/fs/3/amod/político")
    assert ("noun_adjective_gender", "político", 0, 0) in pairs(words)


def test_an_adjective_that_could_belong_to_another_noun_is_left_out(pairs):
    words = (
        "Os/DET/mp/2/det livros/NOUN/mp/6/nsubj/livro de/ADP//4/case casa/NOUN/fs/2/nmod "
        "regionais/ADJ/p/2/amod/regional leram/VERB/p/0/root/ler tudo/PRON//6/obj"
    )
    assert not [found for found in pairs(words) if found[1] == "regional"]  # "casa regional"


def test_participle_and_predicate(pairs):
    words = (
        "A/DET/fs/2/det casa/NOUN/fs/4/nsubj:pass foi/AUX/3s/4/aux:pass/ser vista/VERB/fsp/0/root/ver "
        "ontem/ADV//4/advmod"
    )
    passive = {found for found in pairs(words) if found[0].startswith("participle")}
    assert passive == {("participle_number", "vistas", 1, 0)}  # "visto" is a conjunction and a noun too
    words = "O/DET/ms/2/det livro/NOUN/ms/4/nsubj é/AUX/3s/4/cop/ser {}/ADJ/ms/0/root/{} sempre/ADV//4/advmod "
    new = pairs(words.format("novo", "novo"))
    assert {found[:2] for found in new if found[0].startswith("pred")} == {
        ("predicative_adjective_number", "novos"),
        ("predicative_adjective_gender", "nova"),
    }
    political = {found[1] for found in pairs(words.format("político", "político")) if found[0].startswith("pred")}
    assert "política" not in political  # "o livro é política"


def test_nouns_of_both_genders_and_contractions_give_no_determiner_pairs(pairs):
    words = "Vejo/VERB/3s/0/root/ver uma/DET/fs/3/det capital/NOUN/fs/1/obj sempre/ADV//1/advmod"
    assert not [found for found in pairs(words) if found[0] == "determiner_noun_gender"]


def test_lexicon_gives_readings_and_forms(pairs):
    pairs(READS)
    lexicon_ = Lexicon(["livro", "vista"])
    assert lexicon_.forms("livro", "N", {"M", "PL"}) == {"livros"}
    assert {reading.features for reading in lexicon_.readings("VISTA")} == {frozenset({"PTPST", "F", "SG"})}


def test_choice_is_balanced_and_the_same_in_any_order(monkeypatch):
    monkeypatch.setattr(pair_generation, "MOST", 3)
    many = [
        Pair(f"{n}:{phenomenon}", phenomenon, f"good {n // 2}", "bad", "a", "b", 0, int(n == 7))
        for phenomenon in pair_generation.PHENOMENA[:2]
        for n in range(20)
    ]
    taken = choose_pairs(many)
    assert taken == choose_pairs(many[::-1])
    assert Counter(pair.phenomenon for pair in taken) == {name: 3 for name in pair_generation.PHENOMENA[:2]}
    assert len({(pair.phenomenon, pair.good) for pair in taken}) == 6
    assert sum(pair.attractors for pair in taken) == 2  # those with attractors come first


def test_pairs_are_kept_by_their_format_and_their_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXQWEN_CACHE", str(tmp_path))
    made = []
    pair = Pair("id", "participle_number", "é dita", "é ditas", "dita", "ditas", 0, 0)
    monkeypatch.setattr(pair_generation, "generate", lambda: made.append(1) or [pair])
    assert load() == load() == [pair] and len(made) == 1
    monkeypatch.setattr(pair_generation, "FORMAT", pair_generation.FORMAT + 1)
    assert load() == [pair] and len(made) == 2
    for number, name in enumerate((pair_generation.TREEBANKS[0], lexicon.FILES[-1]), 3):
        changed = dataclasses.replace(sources.SOURCES[name], sha256="0" * 64)
        monkeypatch.setitem(sources.SOURCES, name, changed)
        assert load() == [pair] and len(made) == number


@pytest.mark.real_data
def test_the_real_set(eval_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXQWEN_CACHE", str(tmp_path))
    lexicons = []
    monkeypatch.setattr(lexicon, "Lexicon", lambda words: lexicons.append(Lexicon(words)) or lexicons[0])
    made = load()
    pair_generation.write(tmp_path / "pairs.jsonl", made)
    digest = hashlib.sha256((tmp_path / "pairs.jsonl").read_bytes()).hexdigest()
    check = (Path(__file__).parents[2] / "benchmarks/results/minimal_pairs_check.md").read_text()
    assert digest in check, "the set is not the one that was checked by reading: check it again"
    counts = Counter(pair.phenomenon for pair in made)
    assert len(made) >= 1500 and len(counts) >= 8 and min(counts.values()) >= 30
    assert sum(pair.attractors > 0 for pair in made) >= 50
    assert len({pair.id for pair in made}) == len(made)
    forms = {pair.changed.lower() for pair in made if not pair.phenomenon.startswith("determiner")}
    assert all(lexicons[0].readings(form) for form in forms)
    for pair in made:
        good, bad = re.split(r"\b", pair.good), re.split(r"\b", pair.bad)
        assert [(one, other) for one, other in zip(good, bad, strict=True) if one != other] == [
            (pair.word, pair.changed)
        ]
    monkeypatch.setattr(pair_generation, "generate", lambda: pytest.fail("made a second time"))
    assert load() == made
