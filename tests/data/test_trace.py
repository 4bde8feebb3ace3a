"""`trace`: every passage that is held, as long as it can be, and all who hold it."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexqwen.data import trace
from flexqwen.data.trace import Index, describe_spans, sort_suffixes
from tests.helpers.datasets import call, read_split

# Few words, so that passages are shared; and whatever else Unicode has.
TEXT = st.one_of(st.lists(st.sampled_from(["a", "b", "Não", "é"]), max_size=25).map(" ".join), st.text(max_size=40))
PASSAGE = "a lua cheia iluminava o porto velho quando os barcos voltavam do mar"


def write_dataset(folder, files: dict[str, list[str]]) -> list[dict]:
    """A dataset of some texts by file, such as `gold/train-0`; returns its documents, each with its `split`."""
    documents = []
    for name, texts in files.items():
        rows = [{"id": f"D{len(documents) + i}", "text": text, "license": f"by{i}"} for i, text in enumerate(texts)]
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {key: [row[key] for row in rows] for key in ("id", "text", "license")}
        pq.write_table(pa.table({**columns, "source": columns["id"]}, trace_schema), path)
        documents += [row | {"split": name.split("-")[0]} for row in rows]
    (folder / "manifest.json").write_text(json.dumps({"dataset": "test", "documents": documents}))
    return documents


trace_schema = pa.schema([(name, pa.string()) for name in ("id", "text", "license", "source")])


def find_by_force(text: str, documents: list[dict], least: int) -> tuple[list, float]:
    """The spans, longest first, with (id, split) of who holds them; and the coverage."""
    words = text.split()
    held: dict[tuple, set] = {}
    for document in documents:
        theirs = document["text"].split()
        for start in range(len(theirs)):
            for end in range(start + least, min(len(theirs), start + len(words)) + 1):
                held.setdefault(tuple(theirs[start:end]), set()).add((document["id"], document["split"]))
    every = [(s, e) for s in range(len(words)) for e in range(s + least, len(words) + 1) if tuple(words[s:e]) in held]
    spans = [one for one in every if not any(o[0] <= one[0] and one[1] <= o[1] and o != one for o in every)]
    covered = {place for start, end in spans for place in range(start, end)}
    spans = [
        (start, end, held[tuple(words[start:end])]) for start, end in sorted(spans, key=lambda s: (s[0] - s[1], s))
    ]
    return spans, len(covered) / len(words) if words else 0.0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(TEXT, max_size=4), min_size=1, max_size=4), TEXT, st.integers(1, 7), st.booleans())
def test_equal_to_brute_force(tmp_path_factory, files, text, least, one_split):
    folder = tmp_path_factory.mktemp("trace") / "dataset"
    names = ("gold/train-0", "gold/train-1", "heldout/test-0", "matched/train-0")
    documents = write_dataset(folder, dict(zip(names, files, strict=False)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_PART_BYTES", 1)  # a segment for each file
        index = Index(folder, splits=["gold"] if one_split else [])
    for each in (text, files[0][-1] + " " + text if files[0] else text):
        found = index.trace(each, least)
        known = [row for row in documents if not one_split or row["split"] == "gold/train"]
        spans, coverage = find_by_force(each, known, least)
        holders = [{(d["id"], split) for d in s["documents"] for split in d["splits"]} for s in found["spans"]]
        assert [(s["start"], s["end"], h) for s, h in zip(found["spans"], holders, strict=True)] == spans
        assert found["coverage"] == pytest.approx(coverage) and found["words"] == len(each.split())
        for span in found["spans"]:
            assert span["text"] == each[slice(*span["characters"])]
            assert span["text"].split() == each.split()[span["start"] : span["end"]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=40))
def test_suffixes_are_sorted(words):
    order = sort_suffixes(np.array(words, np.uint32)).tolist()
    assert order == sorted(range(len(words)), key=lambda place: words[place:])


def test_repetition_takes_no_longer(tmp_path):
    """Quadratic work would take minutes."""
    write_dataset(tmp_path / "dataset", {"gold/train-0": ["a " * 30_000] * 3, "heldout/test-0": ["b a " * 30_000]})
    found = Index(tmp_path / "dataset").trace("a " * 20_000 + "b a " * 20_000)
    assert [(span["end"] - span["start"], len(span["documents"])) for span in found["spans"]] == [
        (40_001, 1),
        (20_000, 3),
    ]


@pytest.fixture(scope="module")
def place(built, tmp_path_factory):
    """An index of the sample dataset, not to be changed."""
    place = tmp_path_factory.mktemp("index") / "index"
    Index(built, place)
    return place


def test_copies_are_shown_with_licence_and_source(built, place, capsys):
    rows = [read_split(built, config).to_pylist()[5] for config in ("gold", "tokenizer")]
    copies = [" ".join(row["text"].split()[3:15]) for row in rows]
    text = f"Novas palavras, {copies[0]} xis {copies[1]} ípsilon"
    words = ("trace", built, "--index", place, "--text", text)
    found = json.loads(call(capsys, *words, "--json"))
    assert [span["text"] for span in found["spans"]] == copies and found["coverage"] == 24 / 28
    for row, span in zip(rows, found["spans"], strict=True):
        named = next(document for document in span["documents"] if document["id"] == row["id"])
        assert (named["license"], named["source"]) == (row["license"], row["source"])
    printed = call(capsys, *words)
    assert "28 words, 85.7 % of them copied; passages: 2" in printed and f"⟦{copies[0]}⟧ xis ⟦{copies[1]}⟧" in printed
    assert f"words 3-14, characters 16-{16 + len(copies[0])}, in " in printed and rows[0]["license"] in printed
    assert "passages: 0" in call(capsys, *words, "--words", 13)
    in_tokenizer = json.loads(call(capsys, *words, "--split", "tokenizer", "--json"))
    assert copies[1] in [span["text"] for span in in_tokenizer["spans"]]
    assert {split for s in in_tokenizer["spans"] for d in s["documents"] for split in d["splits"]} == {
        "tokenizer/train"
    }
    assert "no split nothing in" in call(capsys, *words, "--split", "gold/train", "nothing", expected=2)


@pytest.mark.parametrize("text", ["", " \n", "curto demais", " ".join(f"nova{n}" for n in range(50))])
def test_nothing_is_found_in_no_copy(built, place, text):
    assert Index(built, place).trace(text) == {"words": len(text.split()), "coverage": 0.0, "spans": []}


def test_the_index_is_small(built, place):
    texts = pa.concat_tables([pq.read_table(file, columns=["text"]) for file in built.glob("data/[!i]*/*.parquet")])
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert size < 1.5 * sum(len(text.encode()) for text in texts["text"].to_pylist())


def test_files_and_generations(built, place, tmp_path, capsys):
    words = ("trace", built, "--index", place, "--json")
    text = read_split(built, "gold").to_pylist()[0]["text"]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    one = call(capsys, *words, "--file", tmp_path / "text.txt")
    assert json.loads(one)["coverage"] == 1
    lines = tmp_path / "generations.jsonl"
    lines.write_text(f"{json.dumps({'text': text, 'prompt': 'x'})}\n\n{json.dumps({'text': 'nada'})}\n")
    assert call(capsys, *words, "--generations", lines) == one + '{"words": 1, "coverage": 0.0, "spans": []}\n'
    for line in ("[]", "{}", '{"text": 1}', '{"text": "\\ud800"}', "?"):
        lines.write_text(f'{{"text": ""}}\n{line}\n')
        assert "line 2: is no JSON object with a text" in call(capsys, *words, "--generations", lines, expected=2)
    lines.write_bytes(b"\xff")
    assert "cannot be read as UTF-8" in call(capsys, *words, "--file", lines, expected=2)
    assert "no such folder or file" in call(capsys, *words, "--file", tmp_path / "none", expected=2)
    assert "--text cannot be read" in call(capsys, *words, "--text", "\udcff", expected=2)
    assert "give 1 or more" in call(capsys, *words, "--text", "a", "--words", 0, expected=2)


def test_an_index_is_made_again_where_the_dataset_changed(tmp_path, capsys):
    folder, place = tmp_path / "dataset", tmp_path / "dataset.trace"
    words = ("trace", folder, "--text", PASSAGE, "--workers", 1)
    write_dataset(folder, {"gold/train-0": ["outro texto"]})
    assert "passages: 0" in call(capsys, *words)
    stamp = place / "index.json"
    before = stamp.stat().st_mtime_ns
    assert "passages: 0" in call(capsys, *words) and stamp.stat().st_mtime_ns == before
    write_dataset(folder, {"gold/train-0": [f"Sim, {PASSAGE}"]})
    assert "words 1-13, characters 0-68, in 1:" in call(capsys, *words)
    assert stamp.stat().st_mtime_ns != before
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, place.name}
    whole = (place / "0000-0000" / "places").read_bytes()
    for damaged in (whole[:-4], whole + b"1234", b""):
        (place / "0000-0000" / "places").write_bytes(damaged)
        assert "damaged" in call(capsys, *words, expected=2)
    (place / "0000-0000" / "words").unlink()
    assert "damaged" in call(capsys, *words, expected=2)
    shutil.rmtree(place)
    place.mkdir()
    (place / "mine").write_text("")
    assert "is no index of trace" in call(capsys, *words, expected=2) and (place / "mine").exists()


def test_a_corpus_is_traced(sample_corpus, sample_documents, tmp_path, capsys):
    document = sample_documents[3]
    words = ("trace", sample_corpus, "--index", tmp_path / "index", "--workers", 1)
    printed = call(capsys, *words, "--text", document.text)
    assert (
        "100.0 % of them copied; passages: 1" in printed
        and document.id in printed
        and document.genre.license in printed
    )
    assert "no such folder" in call(capsys, "trace", tmp_path / "none", "--text", "a", expected=2)


def test_passages_that_overlap_are_marked_as_one(tmp_path, capsys):
    write_dataset(tmp_path / "dataset", {"gold/train-0": ["a b c d", "c d e f"]})
    words = ("trace", tmp_path / "dataset", "--words", 4, "--workers", 1)
    assert "7 words, 85.7 % of them copied; passages: 2\n⟦a b  c d e f⟧ g\n" in call(
        capsys, *words, "--text", "a b  c d e f g"
    )


@pytest.mark.parametrize("damage", [{"text": None}, {"license": None}, {}])
def test_a_damaged_dataset_ends_in_one_line(tmp_path, capsys, damage):
    write_dataset(tmp_path / "dataset", {"gold/train-0": ["a b c d"]})
    row = {"id": "D", "text": "a", "source": "", "license": ""} | damage if damage else {"id": "D", "text": "a"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "dataset/data/gold/train-0.parquet")
    words = ("trace", tmp_path / "dataset", "--text", "a", "--workers", 1)
    assert "train-0.parquet is damaged" in call(capsys, *words, expected=2)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_dataset_that_lacks_a_split_is_refused(tmp_path, capsys):
    write_dataset(tmp_path / "dataset", {"gold/train-0": ["a b c d"]})
    manifest = {"dataset": "test", "splits": {"gold/train": {"documents": 1}, "matched/train": {"documents": 1}}}
    (tmp_path / "dataset/manifest.json").write_text(json.dumps(manifest))
    words = ("trace", tmp_path / "dataset", "--text", "a", "--workers", 1)
    assert "no split matched/train" in call(capsys, *words, expected=2)


def test_a_text_too_short_for_a_passage_says_so():
    few, found = "três palavras só", {"words": 3, "coverage": 0.0, "spans": []}
    assert "too short to tell, as a passage has at least 7 words" in describe_spans(few, found)
    assert "too short" not in describe_spans(few, found, words=3)
