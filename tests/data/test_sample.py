"""The sample corpus: its format, its bytes, and that it tells the truth about itself."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from lxml import etree

from flexqwen.data.corpus import open_corpus, read_shard
from flexqwen.data.sample import generate, grammar
from flexqwen.data.sample.grammar import Noun
from tests.helpers.datasets import DOCUMENTS, call, files


def test_same_seed_same_bytes_in_another_process(sample_corpus, tmp_path):
    write = f"write_sample(Path({str(tmp_path / 'c')!r}), {DOCUMENTS})"
    code = f"from pathlib import Path; from flexqwen.data.sample.generate import *; {write}"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, env={"PYTHONHASHSEED": "7"})
    assert files(tmp_path / "c") == files(sample_corpus)


def test_another_seed_makes_other_texts(sample_documents):
    other = {document.text for document in generate.sample_documents(DOCUMENTS, seed=1)}
    assert not other & {document.text for document in sample_documents}


def test_read_back_as_it_was_made(sample_corpus, sample_documents):
    corpus, dropped = open_corpus(sample_corpus), Counter()
    read = {document.id: document for shard in corpus.shards for document in read_shard(shard, dropped)}
    assert not dropped and not corpus.absent and not corpus.strays
    assert len(read) == DOCUMENTS
    for made in sample_documents:
        document = read[made.id]
        assert (document.text, document.tokens, document.originality) == (made.text, made.tokens, made.originality)
        assert (document.typology, document.language) == (made.genre.typology, made.genre.language)
        assert document.taxonomy == made.shard.split("/")[0]


def test_originality_varies_and_is_zero_under_21_tokens(sample_documents):
    assert len({document.text for document in sample_documents}) == DOCUMENTS
    short = [document for document in sample_documents if document.tokens <= 20]
    assert len(short) > 20 and {document.originality for document in short} == {0}
    long = [document.originality for document in sample_documents if document.tokens > 20]
    assert sum(percent >= 85 for percent in long) > len(long) / 3
    assert sum(percent <= 50 for percent in long) > len(long) / 5


def test_true_originality_by_hand():
    shared = "um dois três quatro cinco seis sete"
    texts = [f"{shared} oito", f"Zero, {shared}", "a b c d e f g h", f"{shared}!", "a b"]
    assert generate.true_originality(texts) == [50, 50, 100, 100, None]
    assert generate.true_originality(["a a a a a a a a a"]) == [100]  # its own repetition is not a copy


def test_sample_reuse_refuse_overwrite(tmp_path, capsys):
    command = ("sample", tmp_path / "sample", "--documents", 50)
    call(capsys, *command)
    before = files(tmp_path / "sample")
    assert "reused" in call(capsys, *command)
    stamp = tmp_path / "sample" / "sample.json"
    earlier = {"documents": 50, "seed": 0, "flexqwen": "0.1.0", "python": "3.11.7", "code": "e" * 64}
    stamp.write_text(json.dumps(earlier))  # as versions before this one left it
    assert "reused" in call(capsys, *command)
    before["sample.json"] = stamp.read_bytes()
    assert "give --overwrite" in call(capsys, *command, "--seed", 1, expected=2)
    assert files(tmp_path / "sample") == before
    call(capsys, *command, "--seed", 1, "--overwrite")
    assert files(tmp_path / "sample") != before


@pytest.mark.real_data
def test_shards_follow_the_published_schema(sample_corpus, real_corpus):
    schema = etree.RelaxNG(etree.parse(real_corpus / "corpus" / "schema.rng"))
    for shard in open_corpus(sample_corpus).shards:
        with gzip.open(shard.path) as file:
            schema.assertValid(etree.parse(file))


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("livro", "livros"), ("flor", "flores"), ("jornal", "jornais"), ("papel", "papéis"), ("estação", "estações"),
     ("homem", "homens"), ("mês", "meses"), ("notável", "notáveis"), ("simples", "simples"), ("gentil", "gentis")],
)  # fmt: skip
def test_plural(singular, plural):
    assert grammar.inflect(singular, "plural") == plural


def test_agreement():
    women = Noun("professoras", "f", True)
    assert grammar.agree("português", women) == "portuguesas"
    assert grammar.participle("descrever", women) == "descritas"
    assert grammar.the(women, "por") == "pelas professoras"
    assert grammar.conjugate("vender", "past", True) == "venderam"
    assert grammar.inflect("buscar", "first_person") == "busquei"


def test_no_preposition_is_left_uncontracted():
    writer = grammar.Writer(Random(0))
    text = " ".join(" ".join(writer.text(genre.writer, 400)) for genre in generate.GENRES).lower()
    for wrong in (" de o ", " de a ", " em o ", " em a ", " por o ", " por a ", " de os ", " em os "):
        assert wrong not in text
