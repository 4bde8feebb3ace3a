"""Results: files and tables."""

import json
from dataclasses import replace

import pytest

from flexqwen.cli import InputError
from flexqwen.evaluation.results import format_results, read_results, write_results
from tests.helpers.results import result


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
    line = format_results([result([1.0] * 1500 + [0.0] * 500)]).splitlines()[-1]
    assert "0.750 [0.7" in line and "0.500 chance" in line and "2,000" in line


def test_a_single_text_has_no_interval_in_the_table_and_a_single_answer_has_wilsons():
    assert "| 1.014 [–, –] |" in format_results([result([1.014], metric="bits_per_byte")])
    assert "| 1.000 [0.207, 1.000] |" in format_results([result([1.0])])
