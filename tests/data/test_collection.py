"""Any other collection of texts: its kinds of files, the columns, and each kind of bad input."""

import gzip
import io
import json
import os
import re
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexqwen.cli import InputError
from flexqwen.data.collection import open_collection
from flexqwen.data.corpus import ShardError
from flexqwen.data.texts import read_manifest
from tests.helpers.datasets import call, files, read_split
from tests.helpers.hub_server import READ, File, HubServer
from tests.helpers.runs import connect


def write_lines(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.output_stream(str(path), compression="detect") as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.fixture(scope="session")
def rows(sample_documents) -> list[dict]:
    return [{"name": d.id, "body": d.text} for d in sample_documents]


@pytest.fixture
def collection(rows, tmp_path):
    """The texts of the sample corpus, in four files of four kinds."""
    folder = tmp_path / "collection"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:200]), folder / "a.parquet")
    write_lines(folder / "part/b.jsonl", rows[200:400])
    write_lines(folder / "part/c.jsonl.gz", rows[400:600])
    write_lines(folder / "part/d.jsonl.zst", rows[600:])
    return folder


NAMES = ("--text_column", "body", "--id_column", "name")


def test_the_scores_are_those_of_the_same_texts_in_tei(collection, built, tmp_path, capsys, rendered):
    words = ("build", "--corpus", collection, *NAMES, "--output", tmp_path / "out")
    assert "the recomputed one" in call(capsys, *words, "--workers", 1)
    scores = [
        {row["id"]: row["ngram_originality"] for row in read_split(folder, "index").to_pylist()}
        for folder in (built, tmp_path / "out")
    ]
    assert scores[0] == scores[1]
    found = read_manifest(tmp_path / "out")
    assert found["columns"] == {"text": "body", "id": "name"} and found["parameters"]["measure"] == "ngram"
    assert "Carolina's" not in (tmp_path / "out/README.md").read_text()
    call(capsys, *words[:-1], tmp_path / "two", "--workers", 2, "--memory", 0.25)
    assert files(tmp_path / "two") == files(tmp_path / "out")


def test_plain_text_is_a_document_a_file(rows, tmp_path, capsys):
    (tmp_path / "texts/sub").mkdir(parents=True)
    for number, row in enumerate(rows[:300]):
        (tmp_path / f"texts/sub/{number:03}.txt").write_text(row["body"])
    (tmp_path / "texts/last.txt.gz").write_bytes(gzip.compress(rows[300]["body"].encode()))
    (tmp_path / "texts/notes.md").write_text("?")
    call(capsys, "build", "--corpus", tmp_path / "texts", "--output", tmp_path / "out", "--workers", 1)
    table = read_split(tmp_path / "out", "index").to_pylist()
    assert {row["id"] for row in table} == {f"sub/{n:03}.txt" for n in range(300)} | {"last.txt.gz"}
    assert read_manifest(tmp_path / "out")["stray_files"] == ["notes.md"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"texto": "a"}\n', "1: has no column 'text' (it has: texto), give --text_column"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "2: the text is of type int, not text"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "2: is list, where an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "2: is no JSON of UTF-8 text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "1: is no JSON of UTF-8 text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "1: is no JSON of UTF-8 text"),
        ("a.jsonl", b"[" * 100_000, "1: is no JSON of UTF-8 text"),
        ("a.jsonl.zst", b"no zstandard", "cannot be read ("),
        ("a.jsonl.gz", gzip.compress(os.urandom(1000))[:500], "cannot be read ("),
        ("a.parquet", b"PAR1", "cannot be read ("),
        ("a.txt", b"\xff\xfe", "cannot be read ("),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, name, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    words = ("build", "--corpus", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1)
    error = call(capsys, *words, expected=2)
    assert message in error and str(tmp_path / "in" / name) in error
    assert ", or leave it out with --skip_bad_shards" in error
    assert not (tmp_path / "out").exists()
    for number in range(2):
        (tmp_path / f"in/z{number}.txt").write_text("um dois")
    what = "all of a.txt to z1.txt" if name == "a.txt" else "it"  # files of plain text are read together
    assert f", or leave {what} out with --skip_bad_shards" in call(capsys, *words, expected=2)


def test_columns_of_parquet_are_what_their_rows_are(tmp_path):
    """Any type of text, numbers as ids, nulls; and the rows that lack an id are named by their place."""
    texts = ["um  dois\u2003três\u00a0quatro", None, "ação", "\x1f "]
    columns = {
        "body": pa.array(texts, pa.large_string()),
        "id": pa.array([7, 8, None, 9]),
        "license": pa.array(["a", None, "a", "b"]).dictionary_encode(),
        "source": pa.nulls(4, pa.float64()),
        "typology": pa.array(texts, pa.string_view()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=3)
    (shard,), dropped = open_collection([tmp_path], {"text": "body"}).shards, Counter()
    rows = [row for batch in shard.read_batches(dropped) for row in batch.to_pylist()]
    assert [(row["id"], row["text"], row["tokens"], row["license"]) for row in rows] == [
        ("7", texts[0], 4, "a"),
        ("a.parquet:3", texts[2], 1, "a"),
    ]
    assert dropped == {"empty text": 2} and rows[0]["source"] == "" and rows[0]["typology"] == texts[0]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.5]), "1: the text is of type double, not text"),
        (pa.array([["a"]]), "1: the text is of type list<"),
        (pa.array([b"a"]), "1: the text is of type binary, not text"),
        (pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()), "cannot be read (Invalid UTF8"),
        (pa.array(["a" * (32 << 20) + "b"]), "holds a document of more than 32 MiB, a.parquet:1"),
    ],
)
def test_bad_columns_of_parquet(tmp_path, column, message):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    (shard,) = open_collection([tmp_path], {}).shards
    with pytest.raises(ShardError, match=re.escape(f"{tmp_path}/a.parquet: {message}")):
        list(shard.read_batches(Counter()))


def test_a_line_may_lack_a_key_of_another_name_too(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"body": "um", "licence": "a"}, {"body": "dois"}, {"licence": "b"}])
    (shard,) = open_collection([tmp_path], {"text": "body", "license": "licence"}).shards
    with pytest.raises(ShardError, match=r"a\.jsonl: 3: has no column 'body'"):
        list(shard.read_batches(Counter()))
    (typo,) = open_collection([tmp_path], {"text": "body", "license": "licens"}).shards
    write_lines(tmp_path / "a.jsonl", [{"body": "um", "licence": "a"}, {"body": "dois"}])
    with pytest.raises(ShardError, match=r"a\.jsonl: no line has 'licens'; give the right name"):
        list(typo.read_batches(Counter()))
    rows = [row for batch in shard.read_batches(Counter()) for row in batch.to_pylist()]
    assert [(row["text"], row["license"]) for row in rows] == [("um", "a"), ("dois", "")]


def test_folders_may_hold_other_files_of_one_name_and_this_folder_has_a_name(tmp_path, monkeypatch):
    for name in ("x", "y"):
        write_lines(tmp_path / name / f"{name}.jsonl", [{"text": name}])
        (tmp_path / name / "README.md").write_text("what it is")
    assert len(open_collection([tmp_path / "x", tmp_path / "y"], {}).shards) == 2
    monkeypatch.chdir(tmp_path / "x")
    assert [open_collection([place], {}).source for place in (".", "../y", "..")] == ["x", "y", tmp_path.name]


def test_a_link_to_nothing_is_not_left_out(tmp_path, capsys):
    write_lines(tmp_path / "texts/a.jsonl", [{"text": "um"}])
    (tmp_path / "texts/b.jsonl").symlink_to("gone")
    error = call(capsys, "build", "--corpus", tmp_path / "texts", "--output", tmp_path / "out", expected=2)
    assert f"{tmp_path}/texts/b.jsonl: No such file" in error


def test_a_broken_zstandard_stream(rows, tmp_path, capsys):
    write_lines(tmp_path / "in/a.jsonl.zst", [{"text": row["body"]} for row in rows])
    path = tmp_path / "in/a.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-2000])
    words = ("build", "--corpus", path, "--output", tmp_path / "out", "--workers", 1)
    assert "a.jsonl.zst: cannot be read (" in call(capsys, *words, expected=2)


def test_nulls_and_ids_that_stand_twice_are_counted(rows, tmp_path, capsys):
    texts = [{"text": row["body"], "id": row["name"]} for row in rows]
    write_lines(tmp_path / "in/a.jsonl", [{"text": None, "id": "null"}, *texts, texts[0], {"text": " \n", "id": "x"}])
    call(capsys, "build", "--corpus", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1)
    assert read_manifest(tmp_path / "out")["documents"]["dropped"] == {"duplicate id": 1, "empty text": 2}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf://datasets/name", "is not hf://datasets/<org>/<name>"),
        ("nowhere", "nowhere: no such folder or file"),
    ],
)
def test_wrong_places(tmp_path, capsys, monkeypatch, place, message):
    monkeypatch.chdir(tmp_path)
    assert message in call(capsys, "build", "--corpus", place, "--workers", 1, expected=2)


def to_parquet(rows: list[dict]) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), content := io.BytesIO())
    return content.getvalue()


@pytest.fixture
def hub(rows, tmp_path, monkeypatch):
    """A dataset of the Hub: two splits of the default config, and another commit than the newest."""
    with HubServer() as server:
        repo = server.new("dataset", "org/texts", {"data/train-0.parquet": to_parquet(rows[:400])})
        repo.tags["v1"] = repo.branches["main"]
        parts = {"data/train-0.parquet": rows[:500], "data/test-0.parquet": rows[500:]}
        repo.commit("main", {path: File(to_parquet(part), True) for path, part in parts.items()}, "more")
        repo.branches["refs/convert/parquet"] = repo.branches["main"]
        server.large |= {file.sha256: file.content for file in repo.commits[repo.branches["main"]].values()}
        connect(server.url, str(tmp_path / "cache"), READ, monkeypatch)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(
    ("address", "documents"), [("", 800), ("@v1", 400), ("@refs%2Fconvert%2Fparquet/default/train", 500)]
)
def test_a_dataset_of_the_hub(hub, tmp_path, capsys, address, documents):
    place = f"hf://datasets/org/texts{address}"
    call(capsys, "build", "--corpus", place, *NAMES, "--output", tmp_path / "out", "--workers", 1)
    found = read_manifest(tmp_path / "out")
    repo = hub.repos["dataset", "org/texts"]
    commit = repo.tags["v1"] if address == "@v1" else repo.branches["main"]
    assert found["documents"]["kept"] == documents
    assert found["corpus"] == f"hf://datasets/org/texts@{commit}" + "/".join(["", *address.split("/")[1:]])


def test_several_places_are_all_named(hub, rows, tmp_path, capsys):
    """Files of one name in two datasets are two files; the manifest has the commit of each dataset."""
    repos = [hub.repos["dataset", "org/texts"]]
    repos.append(hub.new("dataset", "org/more", {"data/test-0.parquet": to_parquet(rows[500:])}))
    write_lines(tmp_path / "own.jsonl", rows[400:500])
    places = ("hf://datasets/org/texts@v1", "hf://datasets/org/more", tmp_path / "own.jsonl")
    call(capsys, "build", "--corpus", *places, *NAMES, "--output", tmp_path / "out", "--workers", 1)
    found = read_manifest(tmp_path / "out")
    assert found["documents"] == {"read": 800, "kept": 800, "dropped": {}}
    commits = repos[0].tags["v1"], repos[1].branches["main"]
    assert found["corpus"] == "hf://datasets/org/texts@{} and hf://datasets/org/more@{} and 1 more".format(*commits)
    assert set(found["shards"]["used"]) == {
        "org/texts/data/train-0.parquet",
        "org/more/data/test-0.parquet",
        "own.jsonl",
    }


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("org/none", "org/none: cannot be fetched (404"),
        ("org/texts@none", "org/texts@none: cannot be fetched (404"),
        ("org/texts/none", "org/texts/none: cannot be fetched (BuilderConfig 'none' not found"),
        ("org/texts/default/dev", "has no split 'dev'; it has: "),
    ],
)
def test_what_the_hub_has_not(hub, tmp_path, capsys, address, message):
    words = ("build", "--corpus", f"hf://datasets/{address}", "--output", tmp_path / "out", "--workers", 1)
    assert message in call(capsys, *words, expected=2)
    assert not (tmp_path / "out").exists()


def test_a_hub_that_cannot_be_reached(hub, tmp_path, capsys):
    hub.shutdown()
    hub.server_close()
    words = ("build", "--corpus", "hf://datasets/org/texts", "--output", tmp_path / "out", "--workers", 1)
    assert "cannot be fetched (" in (error := call(capsys, *words, expected=2))
    assert "check the name, and that the Hub can be reached" in error


def test_a_folder_without_texts_is_named(tmp_path):
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match="and no shard of Corpus Carolina"):
        open_collection([str(tmp_path)], {})


def test_text_that_is_all_of_one_originality_can_be_built_as_a_whole(tmp_path, capsys):
    random = np.random.default_rng(0)
    texts = [
        " ".join(f"w{word}" for word in random.integers(0, 3000, length)) for length in random.integers(30, 300, 200)
    ]
    write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    words = ("build", "--corpus", tmp_path / "texts.jsonl", "--output", tmp_path / "out", "--workers", 1)
    assert "or build --with_all" in call(capsys, *words, expected=2)
    call(capsys, *words, "--with_all")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    heldout = datasets.load_dataset(str(tmp_path / "out"), "heldout", cache_dir=str(tmp_path / "cache"))
    assert set(heldout) == {"validation", "test"}
    card = (tmp_path / "out/README.md").read_text()
    assert '"all", split="train"' in card and "*_original" not in card and "all is too small" in card
    assert sorted([*found["text"], *heldout["validation"]["text"], *heldout["test"]["text"]]) == sorted(texts)
