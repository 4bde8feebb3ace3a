"""Paired comparison of two evaluations."""

import numpy as np
import pytest

from flexqwen.evaluation.comparison import compare, compare_folders, format_comparison, name_keys
from flexqwen.evaluation.results import write_results
from tests.helpers.results import result


def test_comparison_is_paired_by_id():
    generator = np.random.default_rng(0)
    hard = generator.random(400)
    ids = [f"i{n}" for n in range(400)]
    a = result((hard < 0.50).astype(float), ids)
    b = result((hard < 0.54).astype(float)[::-1], ids[::-1])  # better by 4 points on the same items, in another order
    (difference,), left = compare([a], [b])
    assert left == [] and difference.n == 400
    assert difference.value == pytest.approx(b.value - a.value)
    assert difference.details["verdict"] == "B is higher" and 0 < difference.interval[0] < difference.interval[1] < 0.1
    unpaired = np.hypot(np.diff(a.interval), np.diff(b.interval))[0]
    assert np.diff(difference.interval)[0] < unpaired / 2
    assert "B is higher" in format_comparison([difference])
    assert compare([b], [a])[0][0].details["verdict"] == "A is higher"


def test_comparison_draws_clusters_whole():
    generator = np.random.default_rng(0)
    x, y = (np.repeat(generator.random(50), 16) for _ in range(2))
    names = np.repeat(np.arange(50), 16).tolist()
    ((apart,), _), ((together,), _) = (
        compare([result(x, clusters=clusters)], [result(y, clusters=clusters)]) for clusters in (None, names)
    )
    assert apart.value == together.value and together.n == 800
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
    assert [row.details["verdict"] for row in differences] == ["not distinguishable, n = 100"]
    assert differences[0].interval == [0, 0]
    ((few,), _) = compare([result([0.0, 0.0])], [result([1.0, 1.0])])
    assert few.value == 1 and few.details["verdict"] == "not distinguishable, n = 2"
    for number, verdict in ((5, "not distinguishable, n = 5"), (6, "B is higher")):  # of no share, but of bits
        x = np.linspace(10, 11, number)
        ((bits,), _) = compare([result(x)], [result(x + 1.5)])
        assert bits.details["verdict"] == verdict
    ((third,), _) = compare([result([0.0] * 40)], [result([1.0] * 40)], "C")
    assert third.details["verdict"] == "C is higher" and "C 1.000" in format_comparison([third])
    assert {key[1:5:3] for key in left} == {(1, "only A"), (2, "v"), (3, "v"), (1, "all")}


def test_what_is_not_compared_is_named_in_a_line():
    keys = [("pairs", 2, "causal", metric, f"part {n}") for n in range(8) for metric in ("accuracy", "margin")]
    assert name_keys(keys, 2) == "accuracy of pairs part 0, causal; margin of pairs part 0, causal; 14 more"
    assert name_keys(keys[:1]) == "accuracy of pairs part 0, causal"


@pytest.mark.parametrize(
    ("mode", "setting", "is_compared"),
    [
        ("masked", "mask_groups", False),
        ("masked", "kind", False),
        ("masked", "limit", True),
        ("finetuned", "limit", False),
    ],
)
def test_what_was_measured_otherwise_is_not_compared(mode, setting, is_compared, tmp_path):
    for name, value in (("a", 7), ("b", None)):
        measured = {f"t/{mode}": {setting: value}, "t/causal": {}}
        header = {"model": name, "made_by": {"measured": measured}}
        write_results(tmp_path / name, header, [result([0.0, 1.0], mode=mode), result([0.0, 1.0])])
    differences, left = compare_folders([tmp_path / "a", tmp_path / "b"])
    assert [row.mode for row in differences] == ([mode, "causal"] if is_compared else ["causal"])
    assert [key[2] for key in left] == ([] if is_compared else [mode])
