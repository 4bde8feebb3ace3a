"""eval.py as its user runs it: tasks, modes, overlap with training, comparison, bad input."""

import json
import shutil
from unittest.mock import Mock

import pytest
from datasets import Dataset

import eval as evaluation
from flexqwen import subsampling
from flexqwen.cli import InputError
from flexqwen.data.texts import dataset_digest, read_texts
from flexqwen.evaluation import sources
from flexqwen.evaluation.results import read_results
from flexqwen.evaluation.tasks import Context, Task, load_task
from flexqwen.files import read_json, write_json
from flexqwen.training.model import save_code
from tests.helpers.tiny import make_model, make_qwen3


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model.config.model_type == "flexqwen":
        save_code(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """A FlexQwen of random weights, another one, and the first as a plain Qwen3."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=256)
    other = make_model(vocab_size=len(tokenizer), max_position_embeddings=256, num_hidden_layers=1)
    return [
        save(model, tokenizer, folder / "a"),
        save(other, tokenizer, folder / "b"),
        save(make_qwen3(model), tokenizer, folder / "qwen3"),
    ]


@pytest.fixture
def data(built, monkeypatch):
    """A few items of each task, one of them with a passage that stands in the training split."""
    passage = next(text for _, text in read_texts(built, "gold", "train") if len(text.split()) > 60)
    words = passage.split()[:40]
    schemas = [(f"A caixa número {n} é grande.", f"A caixa número {n} são grande.") for n in range(8)]
    schemas += [(" ".join(words), " ".join(words[:-1])), ("Tudo igual.", "Tudo igual.")]
    questions = [
        {"id": f"q{n}", "answer": "BA"[n % 2], "instruction": f"Quanto é {n} mais um?"}
        | {f"option_{letter}": f"{letter} {n + 1}" for letter in "abcd"}
        for n in range(6)
    ]
    facts = [(f"Pessoa {n}", f"Cidade {n % 4}") for n in range(12)]
    files = {
        "wsc_pt/portuguese_wsc.json": json.dumps(
            [{"manually_fixed_correct_sentence": g, "manually_fixed_incorrect_sentence": b} for g, b in schemas]
        ),
        "okapi_pt/m_arc/pt_test.json": json.dumps(questions),
        "mpararel_pt/patterns_pt.jsonl": "\n".join(
            json.dumps({"relation": "P1", "pattern": pattern, "checked-by-human": checked})
            for pattern, checked in (("[X] nasceu em [Y]", True), ("[Y] é a terra de [X]", True), ("[X] de [Y]", False))
        ),
        "mpararel_pt/tuples_pt.jsonl.gz": "\n".join(
            json.dumps({"relation": "P1", "sub_label": subject, "obj_label": name}) for subject, name in facts
        ),
    }
    monkeypatch.setattr(sources, "read", lambda name: files[name].encode())
    return files


TASKS = "wsc_pt,arc_pt,mpararel_pt"


def test_results_table_and_figures(checkpoints, built, data, tmp_path, capsys, rendered):
    options = ["--model", checkpoints[0], "--dataset", str(built), "--tasks", TASKS, "--output", str(tmp_path / "out")]
    evaluation.main(options)
    printed = capsys.readouterr().out
    header, rows = read_results(tmp_path / "out")
    file = tmp_path / "out" / "results.json"
    assert {(row.task, row.mode) for row in rows} == {
        (task, mode) for task in TASKS.split(",") for mode in ("causal", "masked", "fused")
    }
    for row in rows:
        assert row.interval[0] <= row.value <= row.interval[1] and row.n == len(row.items) == len(row.item_ids)
        assert row.baseline_name == "chance" and 0 < row.baseline <= 0.5
        assert {"seen_share", "seen_items", "too_short_to_tell", "ties"} <= row.details.keys()
        assert f"{row.value:.3f}" in printed
    wsc = next(row for row in rows if row.task == "wsc_pt")
    assert wsc.items[-1] == 0.5 and wsc.details["ties"] == 1  # the two sentences are the same
    assert wsc.details["seen_items"] == 1 and wsc.details["seen_share"] == 1.0  # the others are too short to tell
    assert wsc.clusters == list(range(10))
    facts = next(row for row in rows if row.task == "mpararel_pt")
    assert set(facts.clusters) == {0}  # of one relation
    assert facts.n == 10 and facts.baseline == pytest.approx(1 / 4) and facts.details["sentences"] == 10 * 3 * 4
    assert (tmp_path / "out" / "results.md").read_text().startswith("| task |")
    assert (tmp_path / "out" / "tasks.png").stat().st_size > 5000
    measured = header["made_by"]["measured"]
    assert {name: how["version"] for name, how in measured.items() if "fused" in name} == {
        "wsc_pt/fused": 1,
        "arc_pt/fused": 1,
        "mpararel_pt/fused": 2,
    }
    header["versions"] = {"numpy": "1.0"}  # of the libraries: they decide nothing
    write_json(file, {**header, "results": read_json(file)["results"]})
    evaluation.main(options)
    assert "has wsc_pt, arc_pt, mpararel_pt, of the same checkpoint and settings; reused" in capsys.readouterr().out


def test_missing_data_of_a_fine_tuned_task_are_told_before_anything_is_measured(
    checkpoints, built, data, tmp_path, monkeypatch, capsys
):
    def read(name):
        if name.startswith("assin2/"):
            raise InputError(f"{name} is missing")
        return data[name].encode()

    monkeypatch.setattr(sources, "read", read)
    options = ["--model", checkpoints[0], "--dataset", str(built), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        evaluation.main([*options, "--tasks", "wsc_pt,assin2"])
    assert "assin2-dev.xml is missing" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_results_accumulate(checkpoints, built, data, tmp_path, monkeypatch, capsys):
    options = ["--model", checkpoints[0], "--dataset", str(built), "--output", str(tmp_path)]
    evaluated, evaluate = [], Task.evaluate

    def note(task, *args):
        evaluated.append((task.name, args[2]))
        return evaluate(task, *args)

    monkeypatch.setattr(Task, "evaluate", note)
    evaluation.main([*options, "--tasks", "wsc_pt", "--modes", "causal"])
    evaluation.main([*options, "--tasks", "arc_pt,wsc_pt", "--modes", "causal,masked"])
    assert evaluated == [("wsc_pt", "causal"), ("arc_pt", "causal"), ("arc_pt", "masked"), ("wsc_pt", "masked")]
    capsys.readouterr()
    evaluation.main([*options, "--tasks", "wsc_pt", "--modes", "causal,masked", "--within_word"])
    assert "wsc_pt, masked: measured again, for another within_word" in capsys.readouterr().out
    assert evaluated[4:] == [("wsc_pt", "masked")]  # of causal scores it decides nothing
    evaluation.main([*options, "--tasks", "wsc_pt", "--modes", "causal", "--overwrite"])
    assert evaluated[5:] == [("wsc_pt", "causal")]
    header, rows = read_results(tmp_path)
    assert [(row.task, row.mode, row.metric) for row in rows] == [
        ("wsc_pt", "masked", "accuracy"),
        ("wsc_pt", "causal", "accuracy"),
        *(("arc_pt", mode, metric) for mode in ("causal", "masked") for metric in ("accuracy", "accuracy_by_length")),
    ]
    with pytest.raises(SystemExit):
        evaluation.main(["--model", checkpoints[1], *options[2:], "--tasks", "wsc_pt"])
    assert "holds results of other weights; pass --overwrite" in capsys.readouterr().err
    del header["made_by"]["measured"]  # as files of earlier versions are: their figures stay until they are asked for
    write_json(tmp_path / "results.json", {**header, "results": read_json(tmp_path / "results.json")["results"]})
    evaluation.main([*options, "--tasks", "wsc_pt", "--modes", "causal"])
    assert evaluated[6:] == [("wsc_pt", "causal")] and len(read_results(tmp_path)[1]) == len(rows)


def test_results_that_are_strange_or_of_another_choice_of_items_are_not_reused(
    checkpoints, built, data, tmp_path, monkeypatch, capsys
):
    options = ["--model", checkpoints[0], "--dataset", str(built), "--tasks", "arc_pt", "--modes", "causal"]
    options += ["--output", str(tmp_path)]
    for content in ([], ["of another tool"], {"made_by": None}, {"made_by": []}):
        write_json(tmp_path / "results.json", content)
        with pytest.raises(SystemExit) as stopped:
            evaluation.main(options)
        assert stopped.value.code == 2 and "other weights; pass --overwrite" in capsys.readouterr().err
    evaluation.main([*options, "--limit", "3", "--overwrite"])
    evaluation.main([*options, "--limit", "3"])
    assert "reused" in capsys.readouterr().out
    monkeypatch.setattr(subsampling, "FORMAT", 99)
    evaluation.main([*options, "--limit", "3"])
    assert "arc_pt, causal: measured again, for another subsampling" in capsys.readouterr().out


def test_an_interrupted_evaluation_goes_on_after_the_last_finished_task(
    checkpoints, built, data, tmp_path, monkeypatch
):
    def interrupt_at(name):
        def evaluate(task, *args):
            if task.name == name:
                raise KeyboardInterrupt
            return whole(task, *args)

        whole = Task.evaluate
        return evaluate

    options = ["--model", checkpoints[0], "--dataset", str(built), "--tasks", "wsc_pt,arc_pt", "--modes", "causal"]
    evaluation.main([*options, "--output", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(Task, "evaluate", interrupt_at("arc_pt"))
        with pytest.raises(SystemExit):
            evaluation.main([*options, "--output", str(tmp_path / "twice")])
    assert [row.task for row in read_results(tmp_path / "twice")[1]] == ["wsc_pt"]
    with monkeypatch.context() as patch:
        patch.setattr(Task, "evaluate", interrupt_at("wsc_pt"))  # it was finished: it is not scored again
        evaluation.main([*options, "--output", str(tmp_path / "twice")])
    for name in ("results.json", "items.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "twice" / "unfinished").exists()


@pytest.mark.parametrize("same", [True, False])
def test_another_dataset_than_that_of_the_training_is_told(same, checkpoints, built, data, tmp_path, capsys):
    shutil.copytree(checkpoints[0], tmp_path / "best")
    of_run = {"digests": {"dataset": dataset_digest(built) if same else "another"}, "settings": {"dataset": "mine"}}
    write_json(tmp_path / "run.json", of_run)
    options = ["--model", str(tmp_path / "best"), "--dataset", str(built), "--tasks", "wsc_pt", "--modes", "causal"]
    evaluation.main(options)
    told = f"caution: held-out text of {built} is measured, and {tmp_path / 'best'} was trained on mine; --dataset mine"
    assert (told in capsys.readouterr().err) != same


def test_a_checkpoint_that_training_replaces_meanwhile_gives_no_results(
    checkpoints, built, data, tmp_path, monkeypatch, capsys
):
    model, evaluate = tmp_path / "best", Task.evaluate
    write_json(tmp_path / "run.json", {})  # a run's folder, where the results go
    shutil.copytree(checkpoints[0], model)

    def replace(task, *args):
        if task.name == "arc_pt":
            shutil.rmtree(model)  # not written over: the loaded weights may lie in the file still
            shutil.copytree(checkpoints[1], model)
        return evaluate(task, *args)

    options = ["--model", str(model), "--dataset", str(built), "--tasks", "wsc_pt,arc_pt", "--modes", "causal"]
    with monkeypatch.context() as patch:
        patch.setattr(Task, "evaluate", replace)
        with pytest.raises(SystemExit) as stopped:
            evaluation.main(options)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and error.startswith(f"error: {model} changed while it was evaluated; run again")
    assert [row.task for row in read_results(tmp_path / "eval-best")[1]] == ["wsc_pt"]
    evaluation.main([*options, "--overwrite"])
    header, rows = read_results(tmp_path / "eval-best")
    evaluation.main(["--model", checkpoints[1], *options[2:], "--output", str(tmp_path / "other")])
    other, expected = read_results(tmp_path / "other")
    assert rows == expected and header["made_by"] == other["made_by"]


def test_exclude_seen_leaves_out_what_was_trained_on(checkpoints, built, data, tmp_path, capsys):
    options = ["--model", checkpoints[0], "--tasks", "wsc_pt", "--modes", "causal", "--output", str(tmp_path)]
    evaluation.main([*options, "--dataset", str(built), "--exclude_seen"])
    (row,) = read_results(tmp_path)[1]
    assert row.n == 9 and row.details["excluded"] == 1 and row.details["seen_items"] == 0
    with pytest.raises(SystemExit):
        evaluation.main([*options, "--dataset", str(tmp_path), "--exclude_seen", "--overwrite"])
    assert "manifest.json is missing" in capsys.readouterr().err
    evaluation.main([*options, "--dataset", str(tmp_path), "--overwrite"])
    assert "overlap with training is not known" in capsys.readouterr().out


def test_comparison(checkpoints, built, data, tmp_path, capsys, rendered):
    for name, model in zip("ab", checkpoints, strict=False):
        options = ["--model", model, "--dataset", str(built), "--tasks", "wsc_pt,arc_pt", "--modes", "causal"]
        evaluation.main([*options, "--output", str(tmp_path / name)])
    capsys.readouterr()
    evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "ab")])
    printed = capsys.readouterr().out
    assert printed.count("| wsc_pt |") == 1 and "[" in printed
    rows = json.loads((tmp_path / "ab" / "comparison.json").read_text())
    assert len(rows) == 3 and (tmp_path / "ab" / "comparison.png").stat().st_size > 5000
    evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "a")])
    assert "not distinguishable, n = 10" in capsys.readouterr().out
    three = [str(tmp_path / name) for name in "aab"]
    evaluation.main(["--compare", *three])
    assert capsys.readouterr().out.replace(" ", "").count("|wsc_pt|all|") == 2
    with pytest.raises(SystemExit):
        evaluation.main(["--compare", str(tmp_path / "a"), str(tmp_path / "none")])
    assert "no such folder or file" in capsys.readouterr().err


def test_a_plain_qwen3_is_scored_causally_and_alike(checkpoints, built, data, tmp_path, capsys):
    for name, model in (("flexqwen", checkpoints[0]), ("qwen3", checkpoints[2])):
        options = ["--model", model, "--dataset", str(built), "--tasks", "arc_pt", "--output", str(tmp_path / name)]
        evaluation.main([*options, *(["--modes", "causal"] if name == "flexqwen" else [])])
    one, other = (read_results(tmp_path / name)[1] for name in ("flexqwen", "qwen3"))
    assert [row.items for row in one] == [row.items for row in other] and len(other) == 2
    with pytest.raises(SystemExit):
        evaluation.main(["--model", checkpoints[2], "--tasks", "arc_pt", "--modes", "masked", "--dataset", str(built)])
    assert "it has: causal" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (["--tasks", "x"], "unknown task 'x'"),
        (["--modes", "x"], "unknown mode 'x'"),
        (["--documents", "0"], "--documents is 0"),
        (["--tasks", "bits_per_byte", "--dataset", "nowhere"], "no dataset in nowhere"),
        (["--compare", "docs", "docs"], "either --model or --compare"),
    ],
)
def test_bad_input_is_one_line(checkpoints, options, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluation.main(["--model", checkpoints[0], *options])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.strip().splitlines()[-1].startswith("error: ")


def test_hub_tasks_without_a_network(checkpoints, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("datasets.load_dataset_builder", Mock(side_effect=ConnectionError("none")))
    with pytest.raises(SystemExit):
        evaluation.main(["--model", checkpoints[0], "--tasks", "multiblimp_por", "--output", str(tmp_path)])
    assert "try again with a network" in capsys.readouterr().err


def test_hub_tasks(checkpoints, monkeypatch, tmp_path):
    rows = {
        "jumelet/multiblimp": [
            {"sen": f"Eu vi {n // 2}.", "wrong_sen": f"Eu viu {n}.", "phenomenon": "SV-P"} for n in range(5)
        ],
        "NOVA-vision-language/calame-pt": [
            {"sentence": f"A casa {n} é muito ", "last_word": "bonita"} for n in range(5)
        ],
    }

    def builder(repository, config):
        return Mock(hash="c0ffee", as_dataset=lambda split: Dataset.from_list(rows[repository]))

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    options = ["--tasks", "multiblimp_por,calame_pt", "--dataset", str(tmp_path), "--output", str(tmp_path)]
    evaluation.main(["--model", checkpoints[0], *options])
    results = read_results(tmp_path)[1]
    assert {(row.task, row.subset) for row in results} == {
        ("multiblimp_por", "all"),
        ("multiblimp_por", "SV-P"),
        ("calame_pt", "all"),
    }
    assert {row.details["commit"] for row in results} == {"c0ffee"}
    assert results[0].task == "multiblimp_por" and results[0].clusters == [0, 0, 1, 1, 2]  # pairs of one sentence
    (item, *_) = load_task("calame_pt").load_items(Context())
    assert item.text == "A casa 0 é muito bonita" and item.text[item.questions[0][0].start :] == " bonita"


@pytest.mark.real_data
def test_fine_tuned_tasks_are_run_by_name(checkpoints, built, eval_data, tmp_path, capsys):
    options = [
        "--tasks",
        "hatebr",
        "--dataset",
        str(built),
        "--limit",
        "24",
        "--seeds",
        "2",
        "--learning_rates",
        "1e-3",
    ]
    evaluation.main(["--model", checkpoints[0], *options, "--num_train_epochs", "1", "--output", str(tmp_path / "r")])
    made_by, rows = read_results(tmp_path / "r")
    assert {row.metric for row in rows} == {"accuracy", "macro_f1"}
    for row in rows:
        assert row.task == "hatebr" and row.mode == "finetuned" and 0 < row.n <= 24
        assert row.interval[0] <= row.value <= row.interval[1] and row.baseline_name
        assert row.details["seen_items"] == row.details["excluded"] == 0
    assert made_by["made_by"]["measured"]["hatebr/finetuned"]["seeds"] == 2 and "hatebr" in capsys.readouterr().out
