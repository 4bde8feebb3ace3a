"""The report on shares of causal rows × repetitions, of cells whose answer is planted."""

import itertools
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from flexqwen.evaluation.statistics import correct_p_values, joint_interval, joint_p_value
from flexqwen.files import digest
from flexqwen.study import grid, report, runner
from flexqwen.study.cells import load
from flexqwen.study.grid import Cell, Study
from flexqwen.study.surface import fit_law, rank_values
from flexqwen.training.arguments import read_yaml
from tests.helpers.runs import CONFIG, ROOT

PARAMETERS, TOKENS = 1000, 65_536
COEFFICIENT = 2e-2
ITEM = {"ids": [str(n) for n in range(40)], "weights": None, "clusters": None, "subsets": {}}
PLACE = {"dataset_config": "gold_typology", "mask_schedule": "linear"}


def half(**changes) -> dict:
    """A planned comparison of half of the rows causal with all; its lists are its own, since aliases are refused."""
    same = {"measure": "bits_per_byte/test_original", "mode": "causal", "axis": "causal_fraction"}
    return {**same, "pair": ["1/2", 1], "expected": "below 0", **changes}


SURFACE = {
    "grid": [
        [
            {
                "unique_tokens": [TOKENS, TOKENS // 16],
                "causal_fraction": [1, "1/2", 0],
                "dataset_config": "gold_typology",
            }
        ],
        [{"unique_tokens": TOKENS // 64, "causal_fraction": [1, "1/2", 0], "dataset_config": "gold_typology"}],
        [{"unique_tokens": TOKENS, "causal_fraction": 1, "dataset_config": "matched_typology"}],
    ],
    "seeds": [0, 1, 2],
    "measure": {"heldout": ["test_original"], "tasks": {"minimal_pairs": {}, "bosque_pos": {}, "memorisation": {}}},
    "sweep": {
        "over": "causal_fraction",
        "lines": "repetitions",
        "where": PLACE,
        "predict": {"name": "big", "parameters": 9000, "tokens": 90_000, "unique_tokens": 9000},
    },
    "planned": {
        "often": half(where=PLACE | {"repetitions": 64}),
        "at first": half(where=PLACE | {"repetitions": 1}),
        "even": half(mode="masked", pair=["1/2", 0], where=PLACE | {"repetitions": 1}, expected="between -0.5 and 0.5"),
        "once": half(measure="memorisation/continuations", where=PLACE | {"repetitions": 1}),
        "more often": half(where=PLACE | {"repetitions": 64}, minus={"repetitions": 1}),
    },
    "training": {
        **CONFIG,
        "max_steps": 128,
        "per_device_train_batch_size": 8,
        "logging_steps": 64,
        "dataset": "d",
        "tokenizer": "t",
        "token_stores": "s",
    },
}


def plant(study: Study, cell: Cell) -> dict:
    """The loss of each mode: masked rows cost the causal mode 0.2, and overfit a quarter as much."""
    share, repetitions = float(study.value(cell.point, "causal_fraction")), study.value(cell.point, "repetitions")
    excess = COEFFICIENT * (repetitions - 1) * PARAMETERS * repetitions / TOKENS
    is_gold = study.value(cell.point, "dataset_config") == "gold_typology"
    causal = 2 + 0.2 * (share < 1) + excess * (1 if share == 1 else 0.25) + 0.1 * (not is_gold)
    return {"causal": causal, "masked": 2 + 0.3 * (share == 0) + 0.1 * excess}


def write_cell(study: Study, cell: Cell, items: int = 40, flat: bool = False) -> None:
    generator = np.random.default_rng(cell.seed)
    shared, losses = generator.normal(0, 0.2, items), plant(study, cell)

    def row(task, subset, mode, values):
        kept = {"items": [float(f"{value:.5g}") for value in values]}
        return {"task": task, "version": 1, "mode": mode, "metric": "m", "subset": subset, "baseline": 0.5, **kept}

    figures = []
    for mode in set(study.modes(cell.point)) - {"fused"}:
        noise = generator.normal(0, 0.003) + generator.normal(0, 0.01, items)
        figures.append(row("bits_per_byte", "test_original", mode, (losses[mode] + shared + noise) * (not flat)))
        figures.append(row("minimal_pairs", "all", mode, shared + noise > 0.2 * (losses[mode] - 2.5)))
        figures.append(row("memorisation", "documents", mode, shared + noise))
        if mode == "causal":
            figures.append(row("memorisation", "continuations", mode, abs(shared) / 9))
    figures.append(row("bosque_pos", "all", "finetuned", shared < 0.2))
    steps = [
        {"tokens": n * TOKENS // 4, "flops": n * 1e9, **{m: 9 / n + x for m, x in losses.items()}} for n in (1, 2, 4)
    ]
    made_by = {
        "study": study.identity({"dataset": "a", "tokenizer": "b"}),
        "digests": {"dataset": "a", "tokenizer": "b"},
    }
    made_by |= {"machine": {"cpu": "c", "gpu": None, "cores": 2, "threads": 1}, "code": "x"}
    made_by |= {"versions": {"torch": "2", "transformers": "5"}}
    made_by["items"] = {f"{one['task']}/{one['subset']}": digest(ITEM)[:12] for one in figures}
    cost = {"updates": 64, "tokens": TOKENS, "passes": 1.0, "labels_causal": 9, "labels_masked": 1, "flops": 1e12}
    content = {"cell": {**dict(cell.point), "seed": cell.seed}, "options": study.points[cell.point]}
    content |= {"parameters": PARAMETERS, "made_by": made_by, "cost": cost | {"train_seconds": 60}, "curve": steps}
    runner.write_json(study.cell_file(cell), content | {"figures": figures})


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """The study, none of whose cells is made."""
    monkeypatch.chdir(tmp_path)
    Path("planted.yaml").write_text(yaml.safe_dump(SURFACE))
    study = grid.read("planted.yaml")
    keys = ["bits_per_byte/test_original", "minimal_pairs/all", "bosque_pos/all"]
    keys += ["memorisation/continuations", "memorisation/documents"]
    runner.write_json(study.results / runner.ITEMS, dict.fromkeys(keys, ITEM))
    return study


def test_what_was_planted_is_found(study, rendered):
    for cell in study.cells:
        write_cell(study, cell)
    results = load(study)
    loss = results.measures[0]
    assert [rank_values(results, loss, "causal", n)[0] for n in (1, 16, 64)] == [1, 1, Fraction(1, 2)]
    assert rank_values(results, loss, "masked", 1) == [Fraction(1, 2)]
    law = fit_law(results, loss, "causal", 1)
    assert law.coefficient.value == pytest.approx(COEFFICIENT, rel=0.05) and law.miss < 0.5
    assert law.coefficient.low < COEFFICIENT < law.coefficient.high and law.excess.keys() == {16, 64}
    assert law.exponent == pytest.approx(1, abs=0.2)
    assert fit_law(results, loss, "causal", Fraction(1, 2)).coefficient.value == pytest.approx(COEFFICIENT / 4, rel=0.1)
    report.write(study)
    made = Path("results/planted/README.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in made.splitlines() if line.startswith("| ")}
    verdicts = {"often": "supported", "more often": "supported", "once": "not shown", "even": "supported"}
    for name, verdict in (verdicts | {"at first": "contradicted"}).items():
        assert rows[name].endswith(f"| {verdict} |")
    assert law.predict(10, 9000, 9000).value == pytest.approx(9 * COEFFICIENT, rel=0.05) and "predicted: `big`" in made
    report.check(study)
    for name in ("loss.png", "sweep.png"):
        with Image.open(study.results / name) as image:
            assert min(image.size) > 500


@pytest.mark.parametrize(
    "kept", [slice(0, 1), slice(2, 3), slice(0, 7), slice(0, None, 4), slice(1, None, 3), slice(9, 21)]
)
def test_any_part_of_the_cells_is_reported(kept, study):
    for cell in study.cells[kept]:
        write_cell(study, cell)
    report.write(study)
    report.check(study)
    made = Path("results/planted/README.md").read_text()
    assert not re.search(r"\| (supported|not shown|contradicted) \|", made)
    assert f"| runs | {len(study.cells[kept])} of {len(study.cells)} finished |" in made and "not made" in made


def test_the_law_begins_at_the_fewest_repetitions(study):
    """And where nothing is in excess, it says so and divides by nothing."""
    for cell in study.cells:
        write_cell(study, cell)
    results = load(study)
    loss, whole = results.measures[0], fit_law(results, results.measures[0], "causal", 1)
    results.cells = {cell: content for cell, content in results.cells.items() if cell.seed == 0}
    assert fit_law(results, loss, "causal", 1).coefficient.seeds == 1
    content = yaml.safe_load(Path("planted.yaml").read_text())
    content["grid"][0][0]["unique_tokens"] = [TOKENS // 4, TOKENS // 16]
    Path("planted.yaml").write_text(yaml.safe_dump({**content, "planned": {}}))
    later = grid.read("planted.yaml")
    for cell in later.cells:
        write_cell(later, cell)
    law = fit_law(load(later), loss, "causal", 1)
    assert law.coefficient.value == pytest.approx(whole.coefficient.value, rel=0.05)
    assert law.exponent is None and law.excess.keys() == {16, 64}
    for cell in later.cells:
        write_cell(later, cell, flat=True)
    law = fit_law(load(later), loss, "causal", 1)
    assert (law.coefficient.value, law.miss, law.exponent) == (0, 0, None)


def test_a_p_value_is_that_of_the_interval():
    generator = np.random.default_rng(0)
    weights, names = np.ones(200), list(range(200))
    for seeds, shift in itertools.product((1, 3), (0.02, 0.1, 0.3)):
        values = generator.normal(shift, 1, (seeds, 200)) + generator.normal(0, 0.02, (seeds, 1))
        _, low, high = joint_interval(values, weights, names)
        p_value = joint_p_value(values, weights, names)
        assert (p_value < 0.05) == (not low <= 0 <= high) or abs(p_value - 0.05) < 0.01
    assert joint_p_value(np.ones((3, 4)), np.ones(4), range(4)) == 0
    assert joint_p_value(np.zeros((3, 4)), np.ones(4), range(4)) == 1


def test_a_p_value_is_of_what_is_expected():
    """Between two bounds it is Schuirmann's pair of tests; the seeds' variance may come from elsewhere."""
    values, weights = np.full((3, 400), 0.01) + np.random.default_rng(0).normal(0, 0.1, (3, 400)), np.ones(400)
    values -= values.mean() - 0.01
    given = values, weights, range(400), (3 * 0.004**2, 20)
    for bound in (-0.02, 0.02):
        error = np.hypot(values.mean(0).std() / 20, 0.004)
        assert 2 * stats.norm.sf(abs(0.01 - bound) / error) == pytest.approx(joint_p_value(*given, [bound]), abs=0.02)
    assert joint_p_value(*given, [-0.02, 0.02]) == joint_p_value(*given, [0.02])
    assert joint_p_value(*given, [0.02]) < joint_p_value(*given[:3], (3 * 0.004**2, 2), [0.02])
    low, high = joint_interval(*given)[1:]
    assert high - low < np.diff(joint_interval(*given[:3], (3 * 0.004**2, 2))[1:])


def test_the_variance_of_the_seeds_is_pooled(study):
    """Over the planned pairs that are measured so, each once: causally 2, and 1 in masked mode."""
    for cell in study.cells:
        write_cell(study, cell)
    results = load(study)
    loss, variances = results.measures[0], []
    for line in (1, 64):
        pair = [results.place(share, line)[0] for share in (Fraction(1, 2), 1)]
        variances.append(results.sample(loss, [pair], "causal")[0].mean(1).var(ddof=1))
    assert results.pool_variance(loss, "causal") == (pytest.approx(np.mean(variances)), 4)
    assert results.pool_variance(loss, "masked")[1] == 2
    once, more = (next(plan for plan in study.planned if plan.name == name) for name in ("at first", "more often"))
    widths = [estimate.high - estimate.value for estimate in (results.test(once)[0], results.test(more)[0])]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(2), rel=0.2)  # the items' part is its own


def test_holms_correction():
    assert correct_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm, 1979
    assert correct_p_values([0.6, 0.9]) == [1, 1] and correct_p_values([]) == []


@pytest.mark.parametrize("name", ["study-surface", "study-gpu"])
def test_what_counts_was_planned(name):
    study = grid.read(str(ROOT / f"configs/{name}.yaml"))
    named = [row.split(" | ")[1] for row in (ROOT / study.plan).read_text().splitlines() if row.startswith("| H")]
    assert sorted(named) == sorted(one.name for one in study.planned)


def test_the_surface_is_run_seed_by_seed():
    study = grid.read(str(ROOT / "configs/study-surface.yaml"))
    assert len(study.cells) == 126 and {cell.seed for cell in study.cells[:33]} == {0}
    assert {study.value(point, "repetitions") for point in study.points} == {1, 4, 8, 12, 16, 64}


def test_the_gpu_study_has_the_model_of_small():
    small, larger = read_yaml(ROOT / "configs/small.yaml"), grid.read(str(ROOT / "configs/study-gpu.yaml"))
    rates = grid.read(str(ROOT / "configs/study-gpu-rates.yaml"))
    shape = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "tokenizer"]
    shape += ["num_key_value_heads"]
    assert all(small[name] == larger.training[name] == rates.training[name] for name in shape)
    assert small["learning_rate"] == larger.training["learning_rate"]
    assert {one.value(point, "repetitions") for one in (larger, rates) for point in one.points} == {16}
