"""Tasks are found by name, and their items are what they are told to be."""

import json

import pytest

from flexqwen.cli import InputError
from flexqwen.evaluation import pair_generation, sources
from flexqwen.evaluation.likelihood import Request
from flexqwen.evaluation.pair_generation import Pair
from flexqwen.evaluation.tasks import FINE_TUNED, NAMES, Context, load_task
from flexqwen.evaluation.tasks.choices import make_request


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_found_by_its_name(name):
    task = load_task(name)
    assert task.name == name and task.version >= 1
    assert bool(task.fine_tune) == (name in FINE_TUNED) != bool(task.load and task.score)


def test_a_limit_holds_for_all_but_held_out_documents(built, monkeypatch):
    schema = {"manually_fixed_correct_sentence": "Sim.", "manually_fixed_incorrect_sentence": "Não."}
    monkeypatch.setattr(sources, "read", lambda name: json.dumps([schema] * 9).encode())
    context = Context(str(built), documents=5, limit=3)
    assert (
        len(load_task("wsc_pt").load_items(context)) == 3 and len(load_task("bits_per_byte").load_items(context)) == 5
    )


def test_minimal_pairs_are_grouped(monkeypatch):
    fields = dict.fromkeys(Pair.__dataclass_fields__, "") | {"phenomenon": "participle_gender"}
    pairs = [Pair(**fields | {"id": f"{n}", "attractors": n // 2, "distance": n}) for n in (0, 1, 3, 4)]
    monkeypatch.setattr(pair_generation, "load", lambda: pairs)
    groups = [item.groups[2:] for item in load_task("minimal_pairs").load_items(Context())]
    assert groups == [
        ("no attractor", "distance 0"),
        ("no attractor", "distance 1-3"),
        ("attractors", "distance 1-3"),
        ("attractors", "distance 4+"),
    ]


def test_mpararel_requests_point_at_the_object():
    request = make_request("[Y] é a terra de [X].", "Ana", "São Paulo")
    assert request == Request("São Paulo é a terra de Ana.", 0, 9)


def test_hub_data_are_read_as_datasets_reads_them(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sen": "Eu vi.", "wrong_sen": "Eu viu."}\n')
    found, commit = sources.read_hub_rows(str(tmp_path), "default", "train", ("sen", "wrong_sen"))
    assert found == [{"sen": "Eu vi.", "wrong_sen": "Eu viu."}] and commit
    with pytest.raises(InputError, match="has no column 'x' any more"):
        sources.read_hub_rows(str(tmp_path), "default", "train", ("x",))
