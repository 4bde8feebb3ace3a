"""A study from its config to its report: a tiny grid that is really trained, and results whose answer is known."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from flexqwen.cli import InputError
from flexqwen.evaluation.tasks import Task
from flexqwen.study import commands as command
from flexqwen.study import grid, report
from flexqwen.study.cells import Measure, Results, load, verdict
from flexqwen.study.grid import Cell
from tests.helpers.runs import CONFIG, ROOT

LOSS = Measure("bits_per_byte/test", "held-out", "bits per byte", True)
PAIRS = Measure("minimal_pairs/all", "pairs", "accuracy, %", False, 100, 1)


def config(tmp_path, **changes) -> Path:
    """A config of the shape of study-gpu.yaml, two cells of one seed."""
    content = {
        "grid": [{"strategies": ["baseline-causal", "hybrid-shift 1:3"], "splits": ["gold_typology"]}],
        "seeds": [0],
        "evaluation": {"tasks": [], "heldout": ["test", "test_original"], "documents": 5},
        "training": {**CONFIG, "dataset": "d", "tokenizer": "t", "token_stores": "runs/tokens"},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


@pytest.fixture(scope="module")
def ran(built, tokenizer_folder, tmp_path_factory):
    """A folder in which the tiny study was run, by two workers."""
    folder = tmp_path_factory.mktemp("study")
    training = {**CONFIG, "dataset": str(built), "tokenizer": str(tokenizer_folder), "token_stores": "runs/tokens"}
    path = config(folder, training=training)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command.main(["run", str(path), "--workers", "2"])
    return folder


def test_a_study_is_run_and_reported(ran, monkeypatch, capsys):
    monkeypatch.chdir(ran)
    Path("README.md").write_text("before\n<!-- tiny -->\nto be replaced\n<!-- end -->\nafter\n")
    command.main(["report", "tiny.yaml"])
    report = Path("results/tiny/README.md").read_text()
    causal, hybrid = (
        json.loads((ran / "results/tiny/cells" / f"gold_typology.{name}.0.json").read_text())
        for name in ("baseline-causal", "hybrid-shift-1-3")
    )
    assert causal["cost"]["tokens"] == hybrid["cost"]["tokens"] == 12 * 8 * 64
    assert causal["cost"]["labels_masked"] == 0 < hybrid["cost"]["labels_masked"]
    assert hybrid["cost"]["labels_causal"] < causal["cost"]["labels_causal"] / 3
    assert causal["cost"]["flops"] > hybrid["cost"]["flops"]
    assert [row["mode"] for row in causal["figures"]] == ["causal"] * 4
    assert {row["mode"] for row in hybrid["figures"]} == {"causal", "masked"}
    found = [row["value"] for row in causal["figures"] if (row["subset"], row["metric"]) == ("test", "bits_per_byte")]
    assert f"| {found[0]:.3f} [" in report
    for name in ("loss.png", "originality.png"):
        assert (ran / "results/tiny" / name).read_bytes().startswith(b"\x89PNG")
    assert Path("README.md").read_text().startswith("before\n<!-- tiny -->\nAt ")
    assert Path("README.md").read_text().endswith("\n<!-- end -->\nafter\n")
    assert "to be replaced" not in Path("README.md").read_text()
    command.main(["report", "tiny.yaml", "--check"])
    command.main(["status", "tiny.yaml"])
    assert "2 of 2 cells finished" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["figure", "model"])
def test_a_cell_of_a_wrong_figure_or_a_changed_model_is_refused(wrong, ran, tmp_path, monkeypatch):
    monkeypatch.chdir(ran)
    read, evaluate = grid.read("tiny.yaml"), Task.evaluate
    shutil.copytree(next(Path("runs/tiny").glob("*causal*/*/step_000012")), tmp_path / "step")

    def evaluate_wrong(*args):
        if wrong == "model":
            (tmp_path / "step" / "model.safetensors").unlink(missing_ok=True)
            return evaluate(*args)
        return [replace(result, value=float("nan")) for result in evaluate(*args)]

    monkeypatch.setattr(Task, "evaluate", evaluate_wrong)
    message = {"figure": "bits_per_byte, causal: .* has value nan", "model": "changed while it was evaluated"}[wrong]
    with pytest.raises(InputError, match=message):
        grid.measure(read, read.cells[0], str(tmp_path / "step"))


def test_a_cell_whose_last_checkpoint_is_damaged_is_not_measured(ran, tmp_path, monkeypatch, capfd):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    next(Path("results/tiny/cells").glob("*causal*")).unlink()
    checkpoint = next(Path("runs/tiny").glob("*causal*/*/step_000012"))
    (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(SystemExit):
        command.main(["run", "tiny.yaml"])
    finished = checkpoint.with_name("finished.json")
    assert f"{checkpoint} is not as it was saved" in (error := capfd.readouterr().err) and f"remove {finished}" in error
    finished.unlink()
    command.main(["run", "tiny.yaml"])
    assert "going on from step_000009" in capfd.readouterr().err


def test_finished_cells_are_not_made_again_and_other_settings_are_refused(ran, monkeypatch, capsys):
    monkeypatch.chdir(ran)
    before = {path: path.stat().st_mtime_ns for path in Path("results/tiny/cells").iterdir()}
    command.main(["run", "tiny.yaml"])
    assert "2 cells, 2 of them finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("results/tiny/cells").iterdir()} == before
    changed = yaml.safe_load(Path("tiny.yaml").read_text())
    changed["training"]["learning_rate"] = 0.02
    Path("other").mkdir(exist_ok=True)
    Path("other/tiny.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(SystemExit):
        command.main(["run", "other/tiny.yaml"])
    assert "made with another config" in capsys.readouterr().err


def test_the_check_finds_an_edited_report_an_edited_result_and_a_stale_front_page(ran, tmp_path, monkeypatch):
    shutil.copytree(ran / "results", tmp_path / "results")
    shutil.copy(ran / "tiny.yaml", tmp_path / "tiny.yaml")
    monkeypatch.chdir(tmp_path)
    read = grid.read("tiny.yaml")
    Path("README.md").write_text("<!-- tiny -->\n\n<!-- end -->\n")
    report.write(read)
    report.check(read)
    page_file = Path("results/tiny/README.md")
    made = page_file.read_text()
    page_file.write_text(made.replace("12", "13", 1))
    with pytest.raises(InputError, match="not what its result files give"):
        report.check(read)
    page_file.write_text(made)
    page = Path("README.md").read_text()
    Path("README.md").write_text(page.replace("[report]", "[edited]"))
    with pytest.raises(InputError, match=r"README\.md: the table of tiny"):
        report.check(read)
    Path("README.md").write_text(page)
    Path("results/tiny/loss.png").rename("loss.png")
    with Image.open("loss.png") as image:
        image.save("results/tiny/loss.png")  # the same picture, which does not say where it is from
    with pytest.raises(InputError, match="was not drawn from these result files"):
        report.check(read)
    shutil.move("loss.png", "results/tiny/loss.png")
    changed = yaml.safe_load(Path("tiny.yaml").read_text())
    changed["training"]["learning_rate"] = 0.5
    Path("changed").mkdir()
    Path("changed/tiny.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(InputError, match=r"another config than changed/tiny\.yaml is now"):
        report.check(grid.read("changed/tiny.yaml"))
    cell = next(Path("results/tiny/cells").iterdir())
    content = json.loads(cell.read_text())
    content["figures"][1]["items"][0] += 0.5
    cell.write_text(json.dumps(content))
    with pytest.raises(InputError, match="not what its result files give"):
        report.check(read)


def test_cells_made_elsewhere_are_merged(ran, tmp_path, monkeypatch):
    """Each of two machines has made one cell; together they give the report of the one that made both."""
    for number, path in enumerate(sorted((ran / "results/tiny/cells").iterdir())):
        folder = tmp_path / f"machine-{number}"
        (folder / "cells").mkdir(parents=True)
        shutil.copy(path, folder / "cells")
        shutil.copy(ran / "results/tiny/items.json", folder)
    shutil.copy(ran / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    read = grid.read("tiny.yaml")
    assert grid.merge(read, ["machine-0", "machine-1"]) == 2
    assert grid.merge(read, ["machine-0"]) == 0
    monkeypatch.chdir(ran)
    expected = report.text(load(read))
    monkeypatch.chdir(tmp_path)
    assert report.text(load(read)) == expected
    path = next(Path("machine-1/cells").iterdir())
    content = json.loads(path.read_text())
    content["made_by"]["study"] = "another"
    path.write_text(json.dumps(content))
    shutil.rmtree("results")
    with pytest.raises(InputError, match="was made with another config"):
        grid.merge(read, ["machine-1"])
    with pytest.raises(InputError, match="no cells in"):
        grid.merge(read, ["nowhere"])


def test_cells_with_other_tokens_are_not_compared(ran, tmp_path, monkeypatch):
    shutil.copytree(ran / "results", tmp_path / "results")
    shutil.copy(ran / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    path = sorted(Path("results/tiny/cells").iterdir())[1]
    content = json.loads(path.read_text())
    content["cost"]["tokens"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="tokens is"):
        load(grid.read("tiny.yaml"))


def planted(seeds: int, gain: float, noise: float, clusters: int | None = None) -> Results:
    """Cells on gold and matched of which gold's accuracy is `gain` higher; seeds differ by `noise`."""
    generator = np.random.default_rng(0)
    count = 1000
    cells = {}
    for seed in range(seeds):
        shared = generator.random(count if clusters is None else clusters)
        shared = np.repeat(shared, count // len(shared))
        for split, level in (("gold", 0.6 + gain + noise * generator.normal()), ("matched", 0.6)):
            items = (shared < level).astype(float).tolist()
            row = {"task": "minimal_pairs", "subset": "all", "mode": "causal", "metric": "accuracy", "items": items}
            cells[Cell("baseline-causal", split, seed)] = {"figures": [row]}
    item = {"ids": [str(i) for i in range(count)], "weights": None, "clusters": None, "subsets": {}}
    if clusters is not None:
        item["clusters"] = np.repeat(np.arange(clusters), count // clusters).tolist()
    planted = grid.Study(Path("planted.yaml"), list(cells), {}, [], [], 0, None)
    return Results(planted, cells, {"minimal_pairs/all": item})


def test_a_planted_difference_is_found_and_none_where_there_is_none():
    group = (("baseline-causal", "gold"), ("baseline-causal", "matched"))
    found = planted(3, 0.1, 0.0).difference(PAIRS, [group], "causal")
    assert found.is_clear and found.seeds == 3 and found.value == pytest.approx(0.1, abs=0.03)
    assert verdict(found, PAIRS) == "better"
    none = planted(3, 0.0, 0.0).difference(PAIRS, [group], "causal")
    assert (none.value, none.low, none.high) == (0, 0, 0) and not none.is_clear


def test_seeds_that_disagree_widen_the_interval_by_students_t():
    results = planted(4, 0.05, 0.05)
    group = (("baseline-causal", "gold"), ("baseline-causal", "matched"))
    found = results.difference(PAIRS, [group], "causal")
    one, other = ([results.values(PAIRS, side, seed, "causal") for seed in range(4)] for side in group)
    by_seed = [(first - second).mean() for first, second in zip(one, other, strict=True)]
    low, high = stats.t.interval(0.95, 3, np.mean(by_seed), stats.sem(by_seed))
    assert found.value == pytest.approx(np.mean(by_seed))
    assert found.low < low and found.high > high
    items = np.mean(one, axis=0) - np.mean(other, axis=0)
    width = np.hypot(high - found.value, 1.96 * items.std() / np.sqrt(len(items)))
    assert found.high - found.value == pytest.approx(width, rel=0.1)


def test_clusters_are_drawn_whole():
    alone = planted(1, 0.0, 0.0).mean(PAIRS, [("baseline-causal", "gold")], "causal")
    tens = planted(1, 0.0, 0.0, clusters=100).mean(PAIRS, [("baseline-causal", "gold")], "causal")
    ratio = (tens.high - tens.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.2)


def test_weights_and_subsets_are_heeded():
    items = {"ids": ["a", "b", "c"], "weights": [1, 3, 4], "clusters": None, "subsets": {"ab": [0, 1]}}
    row = {"task": "bits_per_byte", "subset": "test", "mode": "causal", "metric": "bits_per_byte", "items": [2, 4, 9]}
    cell = Cell("baseline-causal", "gold", 0)
    planted = grid.Study(Path("s.yaml"), [cell], {}, [], [], 0, None)
    results = Results(planted, {cell: {"figures": [row]}}, {LOSS.key: items})
    assert results.mean(LOSS, [("baseline-causal", "gold")], "causal").value == pytest.approx((2 + 12 + 36) / 8)
    part = Measure(**{**vars(LOSS), "subset": "ab"})
    assert results.mean(part, [("baseline-causal", "gold")], "causal").value == pytest.approx(14 / 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, "must have the keys"),
        ({"grid": [{"strategies": ["hybrid"], "splits": ["gold"]}]}, "strategy is 'hybrid'"),
        ({"grid": [{"strategies": ["hybrid-shift 1/3"], "splits": ["gold"]}]}, "no ratio causal:masked"),
        ({"evaluation": {"tasks": ["blimp"]}}, "unknown task 'blimp'"),
        ({"training": {"seed": 1, "max_steps": 1, "dataset": "d", "tokenizer": "t"}}, "which the grid decides"),
        ({"training": {"max_steps": 1}}, "training needs 'dataset'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        grid.read(str(config(tmp_path, **changes)))


def test_parts_share_the_cells():
    cells = grid.read(str(ROOT / "configs/study-gpu.yaml")).cells
    parts = [grid.select(cells, f"{number}/4") for number in (1, 2, 3, 4)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in cells)
    for part in parts:  # gold minus matched is not one machine minus another
        assert {cell.name.replace("gold", "matched") for cell in part if cell.split == "gold_typology"} >= {
            cell.name for cell in part if cell.split == "matched_typology"
        }
    for wrong in ("0/2", "3/2", "a", "1"):
        with pytest.raises(InputError, match="--part"):
            grid.select(cells, wrong)


@pytest.mark.parametrize("name", ["study-cpu", "study-gpu"])
def test_the_configs_hold_the_grid_that_the_questions_need(name):
    read = grid.read(str(ROOT / f"configs/{name}.yaml"))
    for strategy in ("baseline-causal", "baseline-masked", "hybrid-shift 1:1"):
        for split in ("gold_typology", "matched_typology"):
            assert len([cell for cell in read.cells if (cell.strategy, cell.split) == (strategy, split)]) == 3
    if name == "study-gpu":
        ratios = {cell.objective.causal_fraction for cell in read.cells if cell.strategy.startswith("hybrid")}
        assert ratios == {0.75, 0.5, 0.25, 0.125}


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/cells")), ids=lambda path: path.parent.name)
def test_the_reports_are_what_their_result_files_give(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    report.check(grid.read(f"configs/{path.parent.name}.yaml"))
