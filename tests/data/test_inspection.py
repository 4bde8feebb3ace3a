"""`inspect`: a corpus, a dataset, one document."""

import re

from tests.helpers.datasets import call, read_split


def test_inspect_a_corpus(corpus, capsys):
    (corpus / "corpus/wikis/pt/WIKc.xml.gz").unlink()
    (corpus / "corpus/wikis/pt/WIKb.xml.gz").write_bytes(b"?")
    printed = call(capsys, "inspect", corpus, "--workers", 1)
    assert "9 shards, 1 listed but absent" in printed
    assert "WIKb.xml.gz: is a damaged gzip file" in printed
    assert re.search(r"^legislative_branch +1 +0 +56 +56 ", printed, re.MULTILINE)


def test_inspect_a_dataset(built, capsys):
    printed = call(capsys, "inspect", built, "--workers", 1)
    assert "gold/train" in printed and "Pearson 1.000" in printed and re.search(r"^wikis +256 ", printed, re.MULTILINE)


def test_inspect_a_document(write_corpus, sample_documents, capsys):
    from flexqwen.data.sample.generate import shard_xml

    passage = "a lua cheia iluminava o porto velho quando os barcos voltavam do mar"
    first, second, third = [d for d in sample_documents if d.shard == "wikis/pt/WIKb"][:3]
    first = first._replace(text=f"Era tarde: {passage}\nDepois choveu.")
    second = second._replace(text=f"{passage} E nada mais.")
    folder = write_corpus({"wikis/pt/WIKb": shard_xml([first, second]), "wikis/pt/WIKc": shard_xml([third])})
    printed = call(capsys, "inspect", folder, "--id", first.id, "--workers", 1)
    assert f"words 3-15, characters 11-{11 + len(passage)}, in 1:" in printed
    assert f"«{passage}»" in printed and f"{second.id} (7 7-grams)" in printed and third.id not in printed
    assert "7 of them stand in 1 other documents of the corpus: originality 36.4 %" in printed
    assert "no document has the id" in call(capsys, "inspect", folder, "--id", "WIK9x", "--workers", 1, expected=2)


def test_inspect_a_document_of_a_dataset(built, capsys):
    row = read_split(built, "matched").to_pylist()[0]
    printed = call(capsys, "inspect", built, "--id", row["id"], "--workers", 1)
    assert row["id"] in printed and "other texts in the dataset" in printed
