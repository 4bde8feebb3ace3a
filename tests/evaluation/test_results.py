"""Results: intervals, files, paired comparison."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flexqwen.cli import InputError
from flexqwen.evaluation import figures
from flexqwen.evaluation.results import (
    compare,
    comparison_table,
    mean_interval,
    mean_result,
    read_results,
    table,
    write_results,
)

FIELDS = {"task": "t", "version": 1, "mode": "causal", "metric": "accuracy", "baseline": 0.5, "baseline_name": "chance"}


def result(items, ids=None, **changes):
    return mean_result(items, ids or [f"i{n}" for n in range(len(items))], **{**FIELDS, **changes})


def test_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = mean_interval(generator.random(80) < 0.7)
        covered += low <= 0.7 <= high
    assert 88 <= covered <= 99


@pytest.mark.parametrize("weights", [None, "lengths"])
def test_clusters_are_drawn_whole(weights):
    """Copies of an item tell no more than the item: with them in one cluster its interval stays as wide."""
    generator = np.random.default_rng(0)
    items = generator.random(100)
    weights = generator.integers(1, 9, 100) if weights else np.ones(100)
    alone = np.array(mean_interval(items, weights))
    copies, names = np.repeat(items, 9), np.repeat([f"c{n}" for n in range(100)], 9)
    together = mean_interval(copies, np.repeat(weights, 9), names.tolist())
    assert together == pytest.approx(alone)
    assert np.diff(together) == pytest.approx(3 * np.diff(mean_interval(copies, np.repeat(weights, 9))), rel=0.15)
    assert mean_interval(items, weights, range(100)) == alone.tolist()
    order = generator.permutation(900)  # those of one cluster need not stand together
    mixed = mean_interval(copies[order], np.repeat(weights, 9)[order], names[order].tolist())
    assert np.diff(mixed) == pytest.approx(np.diff(together), rel=0.15)


def test_weighted_mean_is_a_ratio_of_sums():
    one = result([2.0, 4.0], weights=[1.0, 3.0])
    assert one.value == pytest.approx(3.5) and one.interval[0] <= one.value <= one.interval[1]


def test_files_give_back_what_was_written(tmp_path):
    rows = [result([1.0, 0.0, 0.5], clusters="aba"), result([1.0, 1.0], subset="x", details={"ties": 1})]
    write_results(tmp_path, {"model": "m"}, rows)
    header, read = read_results(tmp_path)
    assert header == {"model": "m"} and read == rows and read[0].clusters == [0, 1, 0]
    assert '"items"' not in (tmp_path / "results.json").read_text()
    (tmp_path / "items.json").write_text("[")
    with pytest.raises(InputError, match=r"items\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_neither_written_nor_read(wrong, tmp_path):
    rows = [result([1.0, 0.0]), result([1.0, wrong, wrong], mode="masked")]
    message = rf"t, masked: the accuracy of 'all' has item i1 {wrong}"
    with pytest.raises(InputError, match=message):
        write_results(tmp_path, {}, rows)
    for field in ({"value": wrong}, {"interval": [wrong, 1.0]}):
        with pytest.raises(InputError, match=f"{next(iter(field))} {wrong}"):
            write_results(tmp_path, {}, [replace(rows[0], **field)])
    with pytest.raises(InputError, match=r"results\.json is not written"):
        write_results(tmp_path, {}, [replace(rows[0], details={"ties": wrong})])
    assert not (tmp_path / "results.json").exists()
    write_results(tmp_path, {}, rows[:1])
    (tmp_path / "items.json").write_text((tmp_path / "items.json").read_text().replace("0.0", json.dumps(wrong)))
    with pytest.raises(InputError, match=f"{tmp_path}: t, causal: .* item i1 {wrong}"):
        read_results(tmp_path)


def test_every_line_of_the_table_has_n_interval_and_baseline():
    line = table([result([1.0] * 1500 + [0.0] * 500)]).splitlines()[-1]
    assert "0.750 [0.7" in line and "0.500 chance" in line and "2,000" in line


def test_a_line_of_a_figure_is_one_metric_of_one_subset(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.setdefault(path.stem, figure.axes[0]))
    rows = [result([0.0, 1.0], mode=mode) for mode in ("causal", "masked")]
    for subset in ("rte", "sts"):
        for metric in ("accuracy", "macro_f1", "mse"):
            fields = {"task": "u", "mode": "finetuned", "subset": subset, "metric": metric}
            rows.append(result([0.0, 0.6, 1.0], **fields, baseline_name=f"of {metric}"))
    paths = figures.evaluation(rows, tmp_path)
    assert [path.stem for path in paths] == list(drawn) == ["u", "tasks"]
    lines = ["rte, accuracy (n = 3)", "rte, macro_f1 (n = 3)", "sts, accuracy (n = 3)", "sts, macro_f1 (n = 3)"]
    assert [tick.get_text() for tick in drawn["u"].get_yticklabels()][::-1] == lines
    lines = ["t, accuracy (n = 2)", *(f"u, {line}" for line in lines)]
    assert [tick.get_text() for tick in drawn["tasks"].get_yticklabels()][::-1] == lines
    assert [text.get_text() for text in drawn["u"].get_legend().get_texts()] == ["finetuned", "baseline"]
    assert drawn["u"].get_xlabel() == "value (higher is better)"


def test_comparison_is_paired_by_id():
    generator = np.random.default_rng(0)
    hard = generator.random(400)
    ids = [f"i{n}" for n in range(400)]
    a = result((hard < 0.50).astype(float), ids)
    b = result((hard < 0.54).astype(float)[::-1], ids[::-1])  # better by 4 points on the same items, in another order
    (difference,), left = compare([a], [b])
    assert left == [] and difference.n == 400
    assert difference.difference == pytest.approx(b.value - a.value)
    assert difference.verdict == "B is higher" and 0 < difference.interval[0] < difference.interval[1] < 0.1
    unpaired = np.hypot(np.diff(a.interval), np.diff(b.interval))[0]
    assert np.diff(difference.interval)[0] < unpaired / 2
    assert "B is higher" in comparison_table([difference])
    assert compare([b], [a])[0][0].verdict == "A is higher"


def test_comparison_draws_clusters_whole():
    generator = np.random.default_rng(0)
    x, y = (np.repeat(generator.random(50), 16) for _ in range(2))
    names = np.repeat(np.arange(50), 16).tolist()
    ((apart,), _), ((together,), _) = (
        compare([result(x, clusters=clusters)], [result(y, clusters=clusters)]) for clusters in (None, names)
    )
    assert apart.difference == together.difference and together.n == 800
    assert np.diff(together.interval) == pytest.approx(4 * np.diff(apart.interval), rel=0.2)
    some = [f"i{n}" for n in range(0, 800, 16)]  # what both have: one item of each cluster
    ((half,), _) = compare([result(x, clusters=names)], [result(y[::16], some)])
    assert half.n == 50 and half.interval == pytest.approx(together.interval)


def test_comparison_says_when_there_is_no_difference_and_what_cannot_be_compared():
    items = list(np.random.default_rng(0).random(100))
    differences, left = compare(
        [result(items), result(items, subset="only A"), result(items, version=2, subset="v")],
        [
            result(items),
            result(items, version=3, subset="v"),
            result(items, [f"j{n}" for n in range(100)], mode="masked"),
        ],
    )
    assert [row.verdict for row in differences] == ["no difference"] and differences[0].interval == [0, 0]
    assert {key[1:5:3] for key in left} == {(1, "only A"), (2, "v"), (3, "v"), (1, "all")}
