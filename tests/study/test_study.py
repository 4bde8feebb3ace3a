"""A study from its config to its report: a tiny grid that is really trained, and results whose answer is known."""

import gc
import json
import os
import shutil
import subprocess
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from flexqwen.cli import InputError
from flexqwen.evaluation.tasks import Item, Task
from flexqwen.study import cells, grid, report, runner
from flexqwen.study import commands as command
from flexqwen.study.cells import Measure, Results, load
from flexqwen.study.grid import Cell, Comparison, Study
from tests.helpers.results import result
from tests.helpers.runs import CONFIG, ROOT, fork, forked_context

LOSS = Measure("bits_per_byte/test", "held-out", "bits per byte", True)
PAIRS = Measure("minimal_pairs/all", "pairs", "accuracy, %", False, 100, 1)
GOLD, MATCHED = ((("dataset_config", name),) for name in ("gold", "matched"))
CELLS = ["adamw.causal_fraction-1-4.0", "adamw.causal_fraction-1.0", "muon.causal_fraction-1-4.0"]


PLANNED = {"measure": "bits_per_byte/test", "mode": "causal", "axis": "variant", "pair": ["muon", "adamw"]}
PLANNED |= {"where": {"causal_fraction": "1/4"}, "expected": "below 0"}


def write_config(folder: Path, **changes) -> Path:
    """A study of three cells over two options, one of them a bundle."""
    content = {
        "variants": {"adamw": {}, "muon": {"muon": True, "learning_rate": 0.02}},
        "grid": [
            {"variant": ["adamw", "muon"], "causal_fraction": "1/4"},
            {"variant": "adamw", "causal_fraction": 1, "options": {"weight_decay": 0.2}},
        ],
        "seeds": [0],
        "measure": {
            "tasks": {"memorisation": {"limit": 4}},
            "heldout": ["test", "test_original"],
            "documents": 5,
            "modes": ["causal", "masked"],
        },
        "compare": {"optimizer": {"axis": "variant", "base": "adamw"}},
        "sweep": {"over": "causal_fraction", "where": {"variant": "adamw"}},
        "training": {**CONFIG, "dataset": "d", "dataset_config": "gold", "tokenizer": "t", "token_stores": "tokens"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def fork_cells(patch: pytest.MonkeyPatch) -> None:
    """The processes of cells are forked, too, instead of spawned."""
    patch.setattr(runner.multiprocessing, "get_context", lambda method: forked_context())


def run_study(folder: Path) -> None:
    os.chdir(folder)
    fork_cells(pytest.MonkeyPatch())
    command.main(["run", "tiny.yaml", "--workers", "2"])


@pytest.fixture(scope="module")
def ran(built, tokenizer_folder, tmp_path_factory):
    """A folder in which the tiny study was run, killed once and resumed."""
    folder = tmp_path_factory.mktemp("study")
    places = {"dataset": str(built), "tokenizer": str(tokenizer_folder), "token_stores": "tokens"}
    write_config(folder, training={**CONFIG, "dataset_config": "gold_typology", **places})
    process = fork(run_study, folder, output=folder / "log")
    while not (kept := sorted(folder.glob("runs/tiny/*/*/step_000003"))):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    time.sleep(1)  # its cells end with it, or the next run would find their folders locked
    assert not list(folder.glob("results/tiny/cells/*"))
    before = kept[0].stat().st_ctime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fork_cells(patch)
        command.main(["run", "tiny.yaml", "--workers", "2"])
    assert kept[0].stat().st_ctime_ns == before  # resumed: a new run empties its folder
    return folder


@pytest.fixture
def copied(ran, tmp_path, monkeypatch) -> Study:
    """The study, in a copy of the folder that may be changed."""
    shutil.copytree(ran / "results", tmp_path / "results")
    shutil.copy(ran / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return grid.read("tiny.yaml")


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_grid_of_options_is_trained_and_measured(ran):
    paths = sorted((ran / "results/tiny/cells").iterdir())
    assert [path.stem for path in paths] == CELLS
    mixed, causal, muon = (json.loads(path.read_text()) for path in paths)
    assert causal["cost"]["tokens"] == mixed["cost"]["tokens"] == 12 * 8 * 64
    assert causal["cost"]["labels_masked"] == 0 < mixed["cost"]["labels_masked"]
    assert mixed["cost"]["labels_causal"] < causal["cost"]["labels_causal"] / 2
    assert causal["cost"]["flops"] > mixed["cost"]["flops"] == mixed["curve"][-1]["flops"]
    assert mixed["cost"] | {"train_seconds": 0} == muon["cost"] | {"train_seconds": 0}
    assert mixed["curve"] != muon["curve"]
    assert muon["options"] == {"muon": True, "learning_rate": 0.02, "causal_fraction": 0.25}
    assert causal["options"] == {"causal_fraction": 1, "weight_decay": 0.2}
    copied = [row for row in mixed["figures"] if row["subset"] == "continuations"]
    assert [(row["task"], row["mode"], len(row["items"])) for row in copied] == [("memorisation", "causal", 4)]
    for content in (mixed, causal, muon):
        assert {row["mode"] for row in content["figures"]} == {"causal", "masked"}  # as the config says


def test_a_study_is_reported(copied, capsys, rendered):
    Path("docs").mkdir()
    Path("docs/studies.md").write_text("before\n<!-- tiny -->\nto be replaced\n<!-- end -->\nafter\n")
    command.main(["report", "tiny.yaml"])
    made, page = Path("results/tiny/README.md").read_text(), Path("docs/studies.md").read_text()
    content = json.loads(Path(f"results/tiny/cells/{CELLS[1]}.json").read_text())
    wanted = [row["value"] for row in content["figures"] if row["metric"] == "bits_per_byte"]
    assert all(f" {value:.3f} [" in made for value in wanted)
    assert "| 1:0 |" in made and "| 1:3 |" in made and "| `muon` − `adamw` |" in made
    for name in ("loss.png", "optimizer.png", "sweep.png"):
        with Image.open(Path("results/tiny", name)) as image:
            assert min(image.size) > 300 and f"({name})" in made
    assert page.startswith("before\n<!-- tiny -->\nAt ") and page.endswith("\n<!-- end -->\nafter\n")
    assert "to be replaced" not in page
    command.main(["report", "tiny.yaml", "--check"])
    command.main(["status", "tiny.yaml"])
    assert "3 of 3 cells finished" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["figure", "model"])
def test_a_cell_of_a_wrong_figure_or_a_changed_model_is_refused(wrong, ran, tmp_path, monkeypatch):
    monkeypatch.chdir(ran)
    study, evaluate = grid.read("tiny.yaml"), Task.evaluate
    checkpoint = next(Path("runs/tiny").glob("*/*/step_000012"))
    shutil.copytree(checkpoint, tmp_path / "step")
    shutil.copy(checkpoint.with_name("run.json"), tmp_path)

    def evaluate_wrong(*args):
        if wrong == "model":
            (tmp_path / "step" / "model.safetensors").unlink(missing_ok=True)
            return evaluate(*args)
        return [replace(result, value=float("nan")) for result in evaluate(*args)]

    monkeypatch.setattr(Task, "evaluate", evaluate_wrong)
    message = {"figure": "bits_per_byte, causal: .* has value nan", "model": "changed while it was evaluated"}[wrong]
    with pytest.raises(InputError, match=message):
        runner.measure(study, study.cells[0], str(tmp_path / "step"))


def test_the_trainer_of_a_cell_is_gone_before_it_is_measured(monkeypatch):
    """And the processes that load its data with it."""

    class Trainer:
        def __init__(self):
            self.cycle, trainers[:] = self, [weakref.ref(self)]

    def describe_run(_):
        raise InputError("gone" if trainers[0]() is None else "there")

    trainers = []
    monkeypatch.setattr(runner.runpy, "run_path", lambda path: {"main": lambda argv: bool(Trainer())})
    monkeypatch.setattr(runner, "write_config", lambda study, cell: "cell.yaml")
    monkeypatch.setattr(runner, "run_folder", describe_run)
    monkeypatch.setattr(runner.arguments, "parse", lambda argv: None)
    gc.disable()
    try:
        with pytest.raises(InputError, match="gone"):
            runner.make_cell(None, None, {})
    finally:
        gc.enable()


def test_a_cell_whose_last_checkpoint_is_damaged_is_not_measured(ran, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    study = grid.read("tiny.yaml")
    cell, digests = study.cells[0], {"dataset": "", "tokenizer": ""}
    study.cell_file(cell).unlink()
    checkpoint = next(study.run_folder(cell).glob("*/step_000012"))
    (checkpoint / "optimizer.pt").unlink()
    monkeypatch.setattr(runner.runpy, "run_path", lambda path: {"main": lambda argv: None})  # already finished
    message = f"{checkpoint} is not as it was saved .* remove {checkpoint.with_name('finished.json')}"
    with pytest.raises(InputError, match=message):
        runner.make_cell(study, cell, digests)
    assert not study.cell_file(cell).exists()


def test_finished_cells_are_not_made_again_and_other_settings_are_refused(ran, monkeypatch, capsys):
    monkeypatch.chdir(ran)
    before = {path: path.stat().st_mtime_ns for path in Path("results/tiny/cells").iterdir()}
    command.main(["run", "tiny.yaml"])
    command.main(["run", "tiny.yaml", "--seeds", "0"])
    assert capsys.readouterr().out.count("3 cells, 3 of them finished") == 2
    assert {path: path.stat().st_mtime_ns for path in Path("results/tiny/cells").iterdir()} == before
    with pytest.raises(SystemExit):
        command.main(["run", "tiny.yaml", "--seeds", "7"])
    assert "--seeds has 7" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["training", "variant", "measure"])
def test_cells_of_another_config_are_refused(change, copied):
    content = yaml.safe_load(Path("tiny.yaml").read_text())
    {"training": content["training"], "variant": content["variants"]["muon"]}.get(change, {})["learning_rate"] = 0.5
    if change == "measure":
        content["measure"]["checkpoint"] = "best"
    Path("tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="another config"):
        load(grid.read("tiny.yaml"))


@pytest.mark.parametrize("changes", [{"seeds": []}, {"seeds": ""}, {"seeds": "12"}, {"variants": {}, "grid": []}])
def test_a_study_without_cells_is_refused(changes, tmp_path):
    with pytest.raises(InputError, match=r"^config .*tiny\.yaml: it has no cells; give seeds as a list, and variants"):
        grid.read(write_config(tmp_path, compare={}, sweep={}, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"unique_tokenz": [1, 2]}, "unknown key 'unique_tokenz'"), ({"weight_decay": [0.1, -1]}, "weight_decay is -1")],
)
def test_an_unknown_or_wrong_option_is_refused_before_any_training(options, message, ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = yaml.safe_load((ran / "tiny.yaml").read_text())["training"]
    write_config(tmp_path, training=training, grid=[{"variant": "adamw", **options}], compare={})
    with pytest.raises(InputError, match=message):
        runner.run(grid.read("tiny.yaml"))
    assert not list(tmp_path.glob("runs/*/*/"))


def test_a_study_without_a_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"study run needs train\.py, .* run it in a checkout"):
        runner.run(grid.read(str(write_config(tmp_path))))


def test_a_failed_cell_stops_no_other_and_is_named(ran, tmp_path, monkeypatch, capfd):
    """In processes that are spawned, as a user's are."""
    monkeypatch.chdir(tmp_path)
    training = yaml.safe_load((ran / "tiny.yaml").read_text())["training"] | {"token_stores": str(ran / "tokens")}
    write_config(
        tmp_path,
        training=training,
        grid=[{"num_key_value_heads": [3, 1]}],
        compare={},
        sweep=None,
        measure={"heldout": []},
    )
    with pytest.raises(InputError, match=r"num_key_value_heads-3\.0 failed"):
        runner.run(grid.read("tiny.yaml"))
    assert "must be a multiple of num_key_value_heads" in capfd.readouterr().err
    cell = json.loads(Path("results/tiny/cells/num_key_value_heads-1.0.json").read_text())
    assert cell["figures"] == [] and cell["curve"][-1]["causal"] > 0


def test_the_check_finds_what_was_edited(copied):
    Path("docs").mkdir()
    Path("docs/studies.md").write_text("<!-- tiny -->\n\n<!-- end -->\n")
    report.write(copied)
    report.check(copied)
    for path, message in (("results/tiny/README.md", "is not what"), ("docs/studies.md", "is not what")):
        made = Path(path).read_text()
        Path(path).write_text(made.replace("million", "billion", 1))
        with pytest.raises(InputError, match=f"^{path} {message}"):
            report.check(copied)
        Path(path).write_text(made)
    with Image.open("results/tiny/loss.png") as image:
        image.copy().save("results/tiny/loss.png")  # the same picture, which does not say where it is from
    with pytest.raises(InputError, match="was not drawn from these result files"):
        report.check(copied)
    report.write(copied)

    def change(content):
        next(row for row in content["figures"] if "items" in row)["items"][0] += 0.5

    edit(copied.cell_file(copied.cells[0]), change)
    with pytest.raises(InputError, match="is not what the result files"):
        report.check(copied)


def test_findings_stand_in_the_report_and_their_numbers_in_its_tables(copied):
    figures = json.loads(Path(f"results/tiny/cells/{CELLS[2]}.json").read_text())["figures"]
    value = f"{next(row['value'] for row in figures if row['metric'] == 'bits_per_byte'):.3f}"
    findings = Path("results/tiny/findings.md")
    findings.write_text(f"The last is {value}, at `seed 77`.\nOthers found 1,234.5. <!-- cited -->\n")
    report.write(copied)
    report.check(copied)
    assert f"## Findings\n\nThe last is {value}" in Path("results/tiny/README.md").read_text()
    for line in (f"It is {float(value) + 0.001:.3f}.", f"It is +{value}.", "Others found 1,234.5."):
        findings.write_text(f"One line.\n{line}\n")
        with pytest.raises(InputError, match=r"findings\.md, line 2: no table of the report has"):
            report.write(copied)
    findings.write_text("|  |\n|---|\n| 77.7 |\n")
    with pytest.raises(InputError, match=r"no table of the report has 77\.7"):  # a finding is no proof of itself
        report.write(copied)


def test_cells_with_other_tokens_or_items_are_not_compared(copied):
    path = copied.cell_file(copied.cells[1])
    edit(path, lambda content: content["cost"].update(tokens=1))
    with pytest.raises(InputError, match=r"tokens at .* is 1, but"):
        load(copied)
    edit(path, lambda content: content["cost"].update(tokens=6144) or content["made_by"].update(items="others"))
    with pytest.raises(InputError, match=r"other items than .*items\.json names"):
        load(copied)
    (copied.results / "items.json").write_text('{"')
    with pytest.raises(InputError, match=r"items\.json is damaged: it is no JSON object; bring it back"):
        load(copied)
    (copied.results / "items.json").unlink()
    with pytest.raises(InputError, match=r"items\.json is missing; run python -m flexqwen study run"):
        load(copied)


def test_a_file_of_another_cell_is_refused(copied):
    shutil.copy(copied.cell_file(copied.cells[1]), copied.cell_file(copied.cells[0]))
    with pytest.raises(InputError, match=r"1-4\.0\.json was made with another config"):
        load(copied)


def test_where_nothing_is_measured_the_losses_of_the_log_are_reported(copied):
    content = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("tiny.yaml").write_text(yaml.safe_dump({**content, "measure": {"heldout": []}}))
    study = grid.read("tiny.yaml")
    Path("results/tiny/items.json").write_text("{}")

    def change(content):
        digests = {name: content["made_by"]["digests"][name] for name in ("dataset", "tokenizer")}
        content["figures"] = []
        content["made_by"] |= {"study": study.identity(digests), "items": {}}

    for cell in study.cells:
        edit(study.cell_file(cell), change)
    report.write(study)
    mixed, muon = (json.loads(Path(f"results/tiny/cells/{name}.json").read_text()) for name in (CELLS[0], CELLS[2]))
    difference = muon["curve"][-1]["masked"] - mixed["curve"][-1]["masked"]
    assert f"| {difference:+.3f} [" in Path("results/tiny/README.md").read_text()


def planted(seeds: int, gain: float, noise: float, clusters: int | None = None) -> Results:
    """Cells on gold and matched of which gold's accuracy is `gain` higher; seeds differ by `noise`."""
    generator = np.random.default_rng(0)
    count = 1000
    cells = {}
    for seed in range(seeds):
        shared = generator.random(count if clusters is None else clusters)
        shared = np.repeat(shared, count // len(shared))
        for point, level in ((GOLD, 0.6 + gain + noise * generator.normal()), (MATCHED, 0.6)):
            items = (shared < level).astype(float).tolist()
            row = {"task": "minimal_pairs", "subset": "all", "mode": "causal", "metric": "accuracy", "items": items}
            cells[Cell(point, seed)] = {"figures": [row]}
    item = {"ids": [str(i) for i in range(count)], "weights": None, "clusters": None, "subsets": {}}
    if clusters is not None:
        item["clusters"] = np.repeat(np.arange(clusters), count // clusters).tolist()
    return Results(Study(Path("planted.yaml"), {GOLD: {}, MATCHED: {}}, list(range(seeds))), cells, {PAIRS.key: item})


def test_a_planted_difference_is_found_and_none_where_there_is_none():
    comparison = Comparison("originality", "dataset_config", [("gold", "matched")])
    found = planted(3, 0.1, 0.0).compare(PAIRS, comparison, ("gold", "matched"), "causal")
    assert found.is_clear and found.seeds == 3 and found.value == pytest.approx(0.1, abs=0.03)
    none = planted(3, 0.0, 0.0).compare(PAIRS, comparison, ("gold", "matched"), "causal")
    assert (none.value, none.low, none.high) == (0, 0, 0) and not none.is_clear
    assert planted(3, 0.1, 0.0).compare(PAIRS, comparison, ("gold", "matched"), "masked") is None


def test_a_part_without_the_axis_counts_in_no_difference():
    results, lone = planted(3, 0.1, 0.0), (("causal_fraction", 0.5),)
    comparison = Comparison("originality", "dataset_config", [("gold", "matched")])
    found = results.compare(PAIRS, comparison, ("gold", "matched"), "causal")
    results.study.training["dataset_config"] = "gold"
    results.study.points[lone] = {}
    results.cells |= {Cell(lone, seed): results.cells[Cell(GOLD, seed)] for seed in range(3)}
    assert results.compare(PAIRS, comparison, ("gold", "matched"), "causal") == found


def test_seeds_that_disagree_widen_the_interval_by_students_t():
    results = planted(4, 0.05, 0.05)
    found = results.average(PAIRS, [(GOLD, MATCHED)], "causal")
    one, other = ([results.values(PAIRS, side, seed, "causal") for seed in range(4)] for side in (GOLD, MATCHED))
    by_seed = [(first - second).mean() for first, second in zip(one, other, strict=True)]
    low, high = stats.t.interval(0.95, 3, np.mean(by_seed), stats.sem(by_seed))
    assert found.value == pytest.approx(np.mean(by_seed))
    assert found.low < low and found.high > high
    items = np.mean(one, axis=0) - np.mean(other, axis=0)
    width = np.hypot(high - found.value, 1.96 * items.std() / np.sqrt(len(items)))
    assert found.high - found.value == pytest.approx(width, rel=0.1)


def test_clusters_are_drawn_whole():
    alone = planted(1, 0.0, 0.0).mean(PAIRS, [GOLD], "causal")
    tens = planted(1, 0.0, 0.0, clusters=100).mean(PAIRS, [GOLD], "causal")
    ratio = (tens.high - tens.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.2)


def test_weights_and_subsets_are_heeded():
    items = {"ids": ["a", "b", "c"], "weights": [1, 3, 4], "clusters": None, "subsets": {"ab": [0, 1]}}
    row = {"task": "bits_per_byte", "subset": "test", "mode": "causal", "metric": "bits_per_byte", "items": [2, 4, 9]}
    results = Results(Study(Path("s.yaml"), {GOLD: {}}, [0]), {Cell(GOLD, 0): {"figures": [row]}}, {LOSS.key: items})
    assert results.mean(LOSS, [GOLD], "causal").value == pytest.approx((2 + 12 + 36) / 8)
    part = Measure(**{**vars(LOSS), "subset": "ab"})
    assert results.mean(part, [GOLD], "causal").value == pytest.approx(14 / 4)


def test_a_surface_is_a_grid(tmp_path):
    """Shares of causal rows × amounts of unique text × splits × seeds, and the share that rows have in all."""
    parts = [
        {"causal_fraction": [1, "63/64"], "unique_tokens": [4096, 64], "options": {"learning_rate": 0.003}},
        {"strategy": "baseline-masked", "unique_tokens": [4096, 64]},
    ]
    sweep = {"over": "causal_fraction", "lines": "unique_tokens"}
    path = write_config(tmp_path, grid=parts, seeds=[0, 1], sweep=sweep, compare={}, measure={})
    study = grid.read(str(path))
    names = [cell.name for cell in study.cells]
    assert len(names) == 12 and names[:2] == [f"causal_fraction-1.unique_tokens-{n}.0" for n in (4096, 64)]
    assert names[4] == "baseline-masked.unique_tokens-4096.0" and {cell.seed for cell in study.cells[:6]} == {0}
    point = study.cells[2].point
    assert study.options(point)["causal_fraction"] == 63 / 64 and study.options(point)["learning_rate"] == 0.003
    results = Results(study, {cell: {} for cell in study.cells}, {})
    shares, lines = results.sweep_axes()
    assert ([float(share) for share in shares], lines) == ([1, 63 / 64, 0], [4096, 64])
    assert results.at(causal_fraction=shares[1], unique_tokens=64) == [study.cells[3].point]
    assert study.modes(study.cells[4].point) == ("masked",) and study.modes(point) == ("causal", "masked", "fused")


def test_a_study_is_made_in_stages_and_its_plan_is_of_its_grid(tmp_path):
    parts = [{"unique_tokens": [64, 16], "causal_fraction": ["1/2", 1]}, {"unique_tokens": 4, "causal_fraction": [1]}]
    ratio = {"measure": "bits_per_byte/test", "mode": "causal", "axis": "causal_fraction", "pair": ["1/2", 1]}
    ratio["expected"] = "below 0"
    where = {"where": {"unique_tokens": 16, "mask_schedule": "linear"}, "minus": {"unique_tokens": 64}}
    config = {"grid": [[part] for part in parts], "seeds": [0, 1], "compare": {}, "sweep": {"over": "causal_fraction"}}
    study = grid.read(str(write_config(tmp_path, **config, planned={"more": ratio | where})))
    assert [cell.seed for cell in study.cells] == [0] * 4 + [1] * 4 + [0, 1]
    assert {dict(cell.point)["unique_tokens"] for cell in study.cells[:8]} == {64, 16}
    sides = [(dict(side)["unique_tokens"], dict(side)["causal_fraction"]) for side in study.sides(study.planned[0])]
    assert sides == [(16, "1/2"), (16, 1), (64, "1/2"), (64, 1)]
    with pytest.raises(InputError, match="planned more: expected is 'less'"):
        grid.read(str(write_config(tmp_path, **config, planned={"more": ratio | where | {"expected": "less"}})))
    ratio["where"] = {}
    with pytest.raises(InputError, match="planned more: 2 points have causal_fraction '1/2' there"):
        grid.read(str(write_config(tmp_path, **config, planned={"more": ratio})))


def test_a_difference_of_differences_is_the_first_less_the_second():
    assert cells.difference([np.array(value) for value in (9, 4, 3, 1)]) == (9 - 4) - (3 - 1)


@pytest.mark.parametrize("amendments", ["\n## Amendments\n\nNone.\n", ""])
def test_a_planned_study_begins_with_a_commit_and_owns_up_to_changes(amendments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, plan = write_config(tmp_path, plan="plan.md"), tmp_path / "plan.md"
    plan.write_text(f"The plan.\n{amendments}")
    study = grid.read("tiny.yaml")
    git = ["git", "-c", "user.name=a", "-c", "user.email=b"]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(InputError, match=r"commit plan\.md and tiny\.yaml before the first cell"):
        runner.register(study)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    runner.register(study)
    report.check_plan(study)
    plan.write_text(plan.read_text() + ("" if amendments else "\n## Amendments\n\n"))
    report.check_plan(study)
    for changed, name in ((plan, "plan"), (path, "config")):
        changed.write_text("# other\n" + changed.read_text())
        with pytest.raises(InputError, match=f"the {name} of tiny is not that of commit"):
            report.check_plan(study)
        with open(plan, "a") as file:
            file.write(f"- 2026-11-25, {runner.digest_plan(study)[name][:12]}: a mistake in the {name}.\n")
        report.check_plan(study)
    runner.register(study)  # of a study that has begun, nothing is written anew
    registered = Path("results/tiny/registered.json")
    before = registered.read_text()
    edit(registered, lambda content: content.update(digests=runner.digest_plan(study)))
    with pytest.raises(InputError, match=r"registered\.json has another config than commit"):
        report.check_plan(study)
    registered.unlink()
    runner.write_json(study.cell_file(study.cells[0]), {})
    with pytest.raises(InputError, match=r"registered\.json is missing, but cells are there"):
        runner.register(study)
    registered.write_text(before)
    plan.write_text(plan.read_text().replace("The plan", "Another plan"))
    with pytest.raises(InputError, match="the plan of tiny"):
        report.check_plan(study)


def test_a_cell_of_one_mode_adds_its_items_and_changes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Path("s.yaml"), {GOLD: {}}, [0])
    one, other = result([1, 0], task="a", subset="all"), result([1, 0, 1], task="b", subset="all")
    assert runner.write_items(study, [one]).keys() == {"a/all"} and runner.write_items(study, [other]).keys() == {
        "b/all"
    }
    before = Path("results/s/items.json").read_text()
    assert list(json.loads(before)) == ["a/all", "b/all"]
    runner.write_items(study, [one, other])
    with pytest.raises(InputError, match="names other items"):
        runner.write_items(study, [result([1], task="a", subset="all")])
    assert Path("results/s/items.json").read_text() == before


def test_items_of_two_workers_at_once_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study, read = Study(Path("s.yaml"), {GOLD: {}}, [0]), runner.read_json
    monkeypatch.setattr(runner, "read_json", lambda path: (read(path), time.sleep(0.05))[0])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: runner.write_items(study, [result([1], task=f"t{n}", subset="all")]), range(4)))
    assert len(json.loads(Path("results/s/items.json").read_text())) == 4


def test_the_overlap_of_each_split_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(Path("s.yaml"), {GOLD: {}}, [0], {"dataset": "d"}, grid.Measurement(heldout=["test", "other"]))
    monkeypatch.setattr(Task, "load_items", lambda self, context: [Item(context.split, "words")] * len(context.split))
    monkeypatch.setattr(runner.passages, "find_seen_shares", lambda texts, dataset: [0.0] * len(texts))
    runner.find_overlap(study)
    found = json.loads(Path("results/s/overlap.json").read_text())
    assert {name: row["items"] for name, row in found.items()} == {"bits_per_byte/test": 4, "bits_per_byte/other": 5}


def test_words_are_merged_into_their_sentences():
    whole = result([1, 0, 1, 1, 0, 1], ids=list("abcdef"), clusters=[0, 0, 1, 1, 1, 2])
    merged = runner.merge_clusters(whole)
    assert (merged.items, merged.weights, merged.item_ids) == ([0.5, 2 / 3, 1], [2, 3, 1], ["a", "c", "f"])
    assert np.average(merged.items, weights=merged.weights) == pytest.approx(whole.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, "key 'seed' is unknown"),
        ({"grid": [{"strategy": "hybrid"}]}, "strategy is 'hybrid'"),
        ({"grid": [{"variant": "lamb"}]}, "unknown variant 'lamb'"),
        ({"grid": [{"variant": "muon", "learning_rate": [0.1]}]}, "'learning_rate' is set twice"),
        ({"grid": [{"variant": "muon"}, {"variant": "muon", "options": {"adam_beta2": 0.9}}]}, "set different options"),
        ({"grid": [{"variant": ["a:b", "a b"]}], "variants": {"a:b": {}, "a b": {}}}, "the file a-b.0.json"),
        ({"compare": {"x": {"axis": "variant", "pairs": [["muon", "lamb"]]}}}, "the grid has no variant 'lamb'"),
        ({"compare": {"x": {"axis": "variannt", "base": "adamw"}}}, "'variannt' is no axis of the grid"),
        ({"compare": {"x": {"axis": "weight_decay", "base": 0.1}}}, "'weight_decay' is no axis of the grid"),
        ({"planned": {"x": {**PLANNED, "mode": "finetuned"}}}, "in mode finetuned is not measured"),
        ({"compare": {"x": {"axis": "variant", "base": "adamw", "by": "share"}}}, "'share' is no axis of the grid"),
        ({"sweep": {"over": "causal_share"}}, "'causal_share' is no axis of the grid"),
        ({"sweep": {"over": "causal_fraction", "where": {"variant": "lamb"}}}, "no part of the grid has"),
        (
            {"planned": {"x": {**PLANNED, "measure": "bits_per_byte/tset"}}},
            "planned x: bits_per_byte/tset in mode causal",
        ),
        ({"planned": {"x": {**PLANNED, "mode": "casual"}}}, "in mode casual is not measured"),
        ({"measure": {"modes": ["casual"]}}, "unknown mode 'casual'"),
        ({"measure": {"tasks": ["harem"]}}, "task 'harem' has no accuracy over all its items"),
        ({"measure": {"tasks": ["blimp"]}}, "unknown task 'blimp'"),
        ({"measure": {"tasks": {"wsc_pt": {"epochs": 1}}}}, "unexpected keyword argument 'epochs'"),
        ({"measure": {"documents": "many"}}, "not supported between"),
        ({"measure": {"checkpoint": "first"}}, "allowed: last, best"),
        (
            {"training": {"seed": 1, "max_steps": 500, "dataset": "d", "tokenizer": "t", "token_stores": "s"}},
            "'seed' is set",
        ),
        ({"grid": [{"save_strategy": ["steps", "no"]}]}, "save_strategy must be steps"),
        ({"training": {"max_steps": 1}}, "training needs 'dataset'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        grid.read(str(write_config(tmp_path, **{"compare": {}, "sweep": None, **changes})))


def test_the_config_holds_the_grid_that_the_questions_need():
    study = grid.read(str(ROOT / "configs/study-cpu.yaml"))
    for variant in ("baseline-causal", "baseline-masked", "hybrid-shift 1:1"):
        for split in ("gold_typology", "matched_typology"):
            points = [cell.point for cell in study.cells]
            assert points.count((("dataset_config", split), ("variant", variant))) == 3
    assert {float(study.value(point, "causal_fraction")) for point in study.points} == {1, 0.5, 0}


def test_every_variant_of_the_recipe_is_an_option_of_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = grid.read(str(ROOT / "configs/study-recipe.yaml"))
    for point in study.points:
        runner.arguments.parse([str(runner.write_config(study, Cell(point, 0)))])
    assert len(study.cells) == 4 * len(study.points) == 56


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/cells")), ids=lambda path: path.parent.name)
def test_the_reports_are_what_their_result_files_give(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    report.check(grid.read(f"configs/{path.parent.name}.yaml"))


def test_a_figure_edited_in_the_page_of_studies_is_found(tmp_path, monkeypatch):
    for folder in ("results", "configs", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    page, study = Path("docs/studies.md"), grid.read("configs/study-cpu.yaml")
    page.write_text(page.read_text().replace("**+0.235**", "**+0.236**"))
    with pytest.raises(InputError, match=r"^docs/studies\.md is not what the result files"):
        report.check(study)
