"""The reader: the layout, the fields, and each kind of bad input."""

import gzip
import os
import re
import subprocess
import sys
import time
from collections import Counter

import pytest

from flexqwen.cli import InputError
from flexqwen.data import corpus as corpus_module
from flexqwen.data.corpus import ShardError, open_corpus, read_shard
from flexqwen.data.sample.generate import shard_xml
from tests.helpers.datasets import DOCUMENTS, ROOT

SHARD = "wikis/pt/WIKb"


@pytest.fixture
def xml(sample_documents) -> str:
    """A good shard of three documents: WIK000000001b, …3b and …5b."""
    return shard_xml([document for document in sample_documents if document.shard == SHARD][:3])


def read(folder, **options):
    """All documents of the only shard, and what was dropped."""
    dropped = Counter()
    (shard,) = open_corpus(folder).shards
    return list(read_shard(shard, dropped, **options)), dropped


def put(xml: str, paragraphs: str) -> str:
    """Puts paragraphs at the start of the first text."""
    return xml.replace("<body>", f"<body>{paragraphs}", 1)


def rewrite(folder, change) -> None:
    """Changes the bytes of the only .xml.gz."""
    (path,) = folder.rglob("*.xml.gz")
    path.write_bytes(change(path.read_bytes()))


def test_fields(write_corpus, xml):
    xml = put(xml, "<p> \t um\n dois \u00a0&amp;  três</p><p> \n </p><p>a<hi>b</hi>c</p>")
    (document, *_), dropped = read(write_corpus({SHARD: xml}))
    assert not dropped
    assert document.id == "WIK000000001b"
    assert document.taxonomy == "wikis"
    assert document.typology == "VOCABULARY_ENTRY_INS_W"
    assert document.language == "pt"
    assert document.license == "https://creativecommons.org/licenses/by-sa/4.0/"
    assert document.source == "https://example.org/wiki?curid=1"
    lines = document.text.split("\n")
    assert lines[:2] == ["um dois & três", "abc"]
    assert all(line == " ".join(line.split()) != "" for line in lines)


def test_either_folder(sample_corpus):
    assert open_corpus(sample_corpus).shards == open_corpus(sample_corpus / "corpus").shards


def test_absent_shards_and_stray_files_are_told(write_corpus, xml):
    folder = write_corpus({SHARD: xml, "wikis/pt/WIKc": xml})
    (folder / "wikis/pt/WIKc.xml.gz").unlink()
    (folder / "wikis/notes.txt").write_text("?")
    corpus = open_corpus(folder)
    assert [shard.name for shard in corpus.shards] == [f"{SHARD}.xml.gz"]
    assert corpus.absent == ["wikis/pt/WIKc.xml.gz"]
    assert corpus.strays == ["wikis/notes.txt"]


# Folders that are no corpus


def test_wrong_folder(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"give the folder that holds"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("part", ["wikis", "wikis/pt"])
def test_part_of_a_corpus(sample_corpus, part, monkeypatch):
    folder = sample_corpus / "corpus"
    with pytest.raises(InputError, match=rf"only a part of a corpus; give the whole, {folder}$"):
        open_corpus(folder / part)
    monkeypatch.chdir(folder / part)
    with pytest.raises(InputError, match=rf"only a part of a corpus; give the whole, {folder}$"):
        open_corpus(".")


def test_nothing_but_checksums(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    (folder / f"{SHARD}.xml.gz").unlink()
    with pytest.raises(InputError, match=r"1 shards are listed and none is here"):
        open_corpus(folder)


def test_no_checksums(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    (folder / "wikis/checksum.sha256").unlink()
    with pytest.raises(InputError, match=r"WIKb.xml.gz: cannot be verified, there is no .*checksum.sha256"):
        open_corpus(folder)


def test_unlisted_shard(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    (folder / f"{SHARD}.xml.gz").rename(folder / "wikis/pt/WIKz.xml.gz")
    with pytest.raises(InputError, match=r"WIKz.xml.gz: cannot be verified.* does not name it"):
        open_corpus(folder)


def test_broken_checksum_file(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    with open(folder / "wikis/checksum.sha256", "a") as file:
        file.write("<html>404</html>\n")
    with pytest.raises(InputError, match=r"checksum.sha256:2: not "):
        open_corpus(folder)


# Bad shards: one line that names the shard, the place and the remedy


def check_refused(folder, match: str) -> None:
    with pytest.raises(ShardError, match=match) as caught:
        read(folder)
    message = str(caught.value)
    assert "WIKb.xml.gz: " in message and re.search("; (download|fetch) the shard", message) and "\n" not in message


def test_truncated_gzip(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    rewrite(folder, lambda data: data[: len(data) // 2])
    check_refused(folder, "damaged gzip file after [0-9,]+ bytes of XML, [0-9]+ documents")


def test_git_lfs_pointer(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    rewrite(folder, lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    check_refused(folder, "is a git-LFS pointer, not the shard itself; .*'git lfs pull' or 'hf download'")


def test_flipped_bits(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    for place in range(20, (folder / f"{SHARD}.xml.gz").stat().st_size, 97):
        rewrite(folder, lambda data, place=place: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        check_refused(folder, "damaged gzip|not well-formed|SHA-256|is not a Carolina shard|DOCTYPE")
        rewrite(folder, lambda data, place=place: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    assert len(read(folder)[0]) == 3


def test_wrong_digest(write_corpus, xml):
    folder = write_corpus({SHARD: xml})
    rewrite(folder, lambda data: gzip.compress(gzip.decompress(data).replace(b" de ", b" da ", 1)))
    check_refused(folder, "has SHA-256 .* says ")


def test_xml_cut_short(write_corpus, xml):
    check_refused(write_corpus({SHARD: xml[: xml.index("</body>")]}), "not well-formed XML at line [0-9]+, after 0 doc")


def test_invalid_utf8(write_corpus, xml):
    check_refused(
        write_corpus({SHARD: xml.replace(" de ", " d\udcff ", 1).encode("utf-8", "surrogateescape")}),
        "Invalid bytes in character",
    )


def test_other_encoding(write_corpus, xml):
    utf16 = xml.replace("utf-8", "utf-16", 1).encode("utf-16")
    check_refused(write_corpus({SHARD: utf16}), "does not begin with <teiCorpus>")


def test_not_a_shard(write_corpus):
    check_refused(write_corpus({SHARD: "<html/>"}), "does not begin with <teiCorpus>")


TEI = 'xmlns="http://www.tei-c.org/ns/1.0"'


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda xml: xml.replace("<TEI>", '<TEI xmlns="">', 1), "<TEI> of no namespace out of place as document 1"),
        (lambda xml: xml.replace("<TEI>", '<TEI xmlns="urn:x">', 1), "<TEI> of the namespace urn:x out of place"),
        (lambda xml: xml.replace(TEI, ""), "<TEI> of no namespace out of place as document 1"),
        (lambda xml: xml.replace("TEI>", "tei>"), "<tei> out of place after document 0"),
        (lambda xml: xml.replace("<TEI>", "<TEI/><x/><TEI>", 1), "<x> out of place before document 2"),
        (lambda xml: re.sub("<TEI>.*</TEI>", "", xml, flags=re.DOTALL), "holds no document"),
        (lambda xml: put(xml, "<head>Um</head>"), "<head> out of place in document WIK000000001b"),
        (lambda xml: put(xml, "<p>a<p>b</p></p>"), "<p> out of place in document WIK000000001b"),
        (lambda xml: put(xml, "<p>a</p>b"), "text outside its paragraphs in document WIK000000001b"),
        (lambda xml: put(xml, "<p xmlns=''>a</p>"), "<p> of no namespace out of place in document WIK000000001b"),
        (lambda xml: xml.replace("</text>", "</text><text/>", 1), "<text> out of place in document WIK000000001b"),
        (lambda xml: xml.replace("</body>", "</body><body/>", 1), "<body> out of place in document WIK000000001b"),
    ],
)
def test_what_the_schema_does_not_have_is_neither_lost_nor_doubled(write_corpus, xml, change, what):
    check_refused(write_corpus({SHARD: change(xml)}), what)


def test_comments_are_no_text(write_corpus, xml):
    (document, *_), _ = read(write_corpus({SHARD: put(xml, "<!-- a --><p>um<!-- b --> dois<?c d?></p>")}))
    assert document.text.startswith("um dois\n")


def test_unreadable_file(write_corpus, xml, monkeypatch):
    folder = write_corpus({SHARD: xml})
    if os.geteuid() == 0:  # root may read everything

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(corpus_module.gzip, "open", refuse)
    else:
        (folder / f"{SHARD}.xml.gz").chmod(0)
    check_refused(folder, "cannot be read .*Permission denied")


BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 100}">' for i in range(10))


@pytest.mark.parametrize(
    ("declaration", "entity"),
    [
        (f"<!DOCTYPE teiCorpus [{BOMB}]>", "&e9;"),
        ('<!DOCTYPE teiCorpus [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "&x;"),
        ('<!DOCTYPE teiCorpus SYSTEM "http://example.org/x.dtd">', ""),
        ('<!-- <teiCorpus --><!DOCTYPE teiCorpus [<!ENTITY x "y">]>', "&x;"),
    ],
)
def test_entities_are_refused_unread(write_corpus, xml, declaration, entity, monkeypatch):
    monkeypatch.setattr(corpus_module, "_read_document", lambda *_: pytest.fail("the parser was reached"))
    xml = put(xml.replace("<teiCorpus", f"{declaration}<teiCorpus", 1), f"<p>{entity}</p>")
    start = time.monotonic()
    check_refused(write_corpus({SHARD: xml}), "DOCTYPE or entities, which is refused unread")
    assert time.monotonic() - start < 1


def test_undeclared_entity(write_corpus, xml):
    check_refused(write_corpus({SHARD: put(xml, "<p>&x;</p>")}), "not well-formed XML at line [0-9]+.*'x' not defined")


def test_too_large_a_document(write_corpus, xml, monkeypatch):
    monkeypatch.setattr(corpus_module, "MAX_DOCUMENT_BYTES", 1 << 20)
    check_refused(write_corpus({SHARD: put(xml, "<p>" + "a " * (1 << 20) + "</p>")}), "document of more than 1 MiB")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("start", "unit", "times"),
    [("", b"<x/>", 15 << 20), ("<TEI>", b"<p a=''>.</p>", 80 << 20), ("<TEI><text><body><p>", b"word ", 48 << 20)],
)
def test_bombs_are_refused_in_little_memory_and_time(write_corpus, xml, start, unit, times):
    """60 MiB of elements between documents, 1 GiB of small ones in one document, 240 MiB of one text."""
    folder = write_corpus({SHARD: xml})
    (path,) = folder.rglob("*.xml.gz")
    before, after = gzip.compress((xml[: xml.index("<TEI>")] + start).encode()), gzip.compress(b"</teiCorpus>")
    piece = gzip.compress(unit * (times // 1024))  # a gzip file may have many members
    path.write_bytes(before + piece * 1024 + after)
    command = [sys.executable, "-c", READ, str(folder)]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "holds a document of more than 32 MiB or" in done.stdout and time.monotonic() - begun < 20
    assert int(done.stdout.split()[-1]) < 1 << 20  # KiB at the peak


READ = """
import sys
from collections import Counter
from flexqwen.data.corpus import ShardError, open_corpus, read_shard
try:
    list(read_shard(*open_corpus(sys.argv[1]).shards, Counter()))
except ShardError as error:
    print(error)
# Of this program alone: getrusage counts what the process had before it became this program, too.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_long_text_nodes_are_read(write_corpus, xml):
    words = 6_000_000
    (document, *_), _ = read(write_corpus({SHARD: put(xml, "<p>" + "a " * words + "</p>")}))
    assert document.text.startswith("a a a ") and len(document.text) > 2 * words  # libxml2's usual limit is 10 MB


# Bad documents: dropped and counted, the others kept

ORIGINALITY = '<measure type="originality" unit="percent" quantity="{}" />'


@pytest.fixture
def good(xml):
    start = xml.index("quantity=", xml.index('type="originality"')) + len('quantity="')
    return ORIGINALITY.format(xml[start : xml.index('"', start)])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "originality: missing"),
        ("-3", "originality: not a whole number from 0 to 100"),
        ("high", "originality: not a whole number from 0 to 100"),
        ("101", "originality: not a whole number from 0 to 100"),
        ("49.5", "originality: not a whole number from 0 to 100"),
        ("9" * 5000, "originality: not a whole number from 0 to 100"),
        ("²", "originality: not a whole number from 0 to 100"),
    ],
)
def test_bad_originality(write_corpus, xml, good, value, reason):
    folder = write_corpus({SHARD: xml.replace(good, ORIGINALITY.format(value) if value else "", 1)})
    documents, dropped = read(folder)
    assert dropped == {reason: 1} and len(documents) == 2
    documents, dropped = read(folder, need_originality=False)
    assert not dropped and [document.originality is None for document in documents] == [True, False, False]


def drop_header(xml: str) -> str:
    start = xml.index("<teiHeader>", xml.index("<TEI>"))
    return xml[:start] + xml[xml.index("<text>", start) :]


def drop_paragraphs(xml: str) -> str:
    start, end = xml.index("<body>"), xml.index("</body>")
    return xml[:start] + "<body><p> \n </p><p/>" + xml[end:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_header, "no header"),
        (drop_paragraphs, "empty text"),
        (lambda xml: xml.replace("WIK000000001b", " "), "no id"),
        (lambda xml: xml.replace("WIK000000003b", "WIK000000001b"), "duplicate id"),
        (lambda xml: xml.replace('<measure unit="tokens"', '<measure unit="letters"', 1), "tokens: missing"),
        (
            lambda xml: xml.replace('unit="tokens" quantity="', 'unit="tokens" quantity="-', 1),
            "tokens: not a whole number",
        ),
    ],
)
def test_bad_documents(write_corpus, xml, change, reason):
    documents, dropped = read(write_corpus({SHARD: change(xml)}))
    assert dropped == {reason: 1} and len(documents) == 2


@pytest.mark.real_data
def test_a_real_shard(real_corpus):
    shards = {shard.name: shard for shard in open_corpus(real_corpus).shards}
    dropped = Counter()
    documents = list(read_shard(shards["university_domains/UNIg.xml.gz"], dropped))
    assert len(documents) == 1212 and not dropped
    first = documents[0]
    assert (first.id, first.tokens, first.originality) == ("UNI000025279g", 1470, 95)
    assert (first.typology, first.language) == ("SECTION_JOU_W", "pt-BR")
    assert first.license == "https://creativecommons.org/licenses/by/4.0/"
    assert abs(len(first.text.split()) - first.tokens) <= 2


def test_sample_is_complete(sample_corpus):
    dropped = Counter()
    assert sum(len(list(read_shard(shard, dropped))) for shard in open_corpus(sample_corpus).shards) == DOCUMENTS
