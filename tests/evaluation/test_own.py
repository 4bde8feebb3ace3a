"""Tasks from files: pairs, choices, texts, data sets of the Hub; bad lines are named."""

import json

import pytest

from flexqwen.cli import InputError
from flexqwen.evaluation import sources
from flexqwen.evaluation.tasks import Context, load_task

PAIRS = [{"good": f"Eu vi {n}.", "bad": f"Eu viu {n}."} for n in range(3)]
CHOICE = {"context": "Quanto é um mais um?", "options": ["três", "dois", "um"], "answer": 1}


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_pairs_have_names_and_groups_if_they_are_given(tmp_path):
    file = write(tmp_path / "pairs.jsonl", [*PAIRS[:2], {**PAIRS[2], "id": "x", "group": 0}])
    task = load_task(file)
    items = task.load_items(Context())
    assert task.name == "pairs.jsonl" and [item.id for item in items] == ["1", "2", "x"]
    assert [item.groups for item in items] == [("all",), ("all",), ("all", "0")]
    assert [request.text for request in items[0].questions[0]] == ["Eu vi 0.", "Eu viu 0."]
    assert len(task.load_items(Context(limit=2))) == 2
    version = task.version
    write(tmp_path / "pairs.jsonl", PAIRS)
    assert load_task(file).version not in (version, load_task(write(tmp_path / "b.jsonl", PAIRS[:2])).version)


def test_the_right_option_comes_first_and_is_scored_after_its_context(tmp_path):
    (item,) = load_task(write(tmp_path / "choices.jsonl", [CHOICE])).load_items(Context())
    scored = [request.text[request.start :] for request in item.questions[0]]
    assert scored == [" dois", " três", " um"] and item.text == "Quanto é um mais um? dois"


def test_texts_are_parted_by_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("Um dia.\nDois.\n\n \nTrês.\n")
    task = load_task(f"text:{tmp_path / 'a.txt'}")
    assert [item.text for item in task.load_items(Context())] == [
        "Um dia.\nDois.",
        "Três.",
    ] and "fused" not in task.modes


def test_data_sets_of_the_hub_with_columns_named(monkeypatch):
    rows, asked = [{"sen": "Eu vi.", "wrong_sen": "Eu viu.", "p": "SV"}], []
    monkeypatch.setattr(sources, "read_hub_rows", lambda *args: asked.append(args) or (rows, "c0ffee"))
    task = load_task("hf://jumelet/multiblimp/por/train?good=sen&bad=wrong_sen&group=p")
    (item,) = task.load_items(Context())
    assert asked == [("jumelet/multiblimp", "por", "train", ("sen", "wrong_sen", "p"))]
    assert task.name == "jumelet/multiblimp/por/train" and item.groups == ("all", "SV")


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: this is not JSON"),
        ({"good": "a"}, "line 2: field 'bad' is missing"),
        ({"good": "a", "bad": 1}, "line 2: good and bad must be"),
        ([1], "line 2: this is no JSON object"),
        ({**PAIRS[0], "id": 1}, "line 2: the id '1' is there before"),
        ({**CHOICE, "answer": 3}, "line 2: answer is 3"),
        ({**CHOICE, "answer": "dois"}, "line 2: answer is 'dois'"),
        ({**CHOICE, "options": "abc"}, "line 2: context must be"),
    ],
)
def test_bad_lines_are_named(line, words, tmp_path):
    with pytest.raises(InputError, match=f"pairs.jsonl, {words}"):
        load_task(write(tmp_path / "pairs.jsonl", [PAIRS[0], line]))


@pytest.mark.parametrize("name", ["none.jsonl", "text:none.txt", "hf://a/b?good=x", "wsc"])
def test_what_is_not_there_is_one_line(name):
    with pytest.raises((InputError, FileNotFoundError)):  # of which every command makes one line
        load_task(name)
