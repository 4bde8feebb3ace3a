"""The card: what the Hub and a reader are told, made from the finished folder."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from flexqwen.data.card import draw_agreement, draw_lengths
from flexqwen.data.texts import read_manifest
from tests.helpers.datasets import call


def test_card(built):
    text = (built / "README.md").read_text()
    assert text.startswith("---\npretty_name: Carolina Originality, generated sample\n")
    for figure in re.findall(r"\]\((figures/.*?)\)", text):
        assert (built / figure).read_bytes().startswith(b"\x89PNG")
    assert "Typology confounds originality" in text and "`gold_typology`" in text


def test_a_sample_is_called_so_and_no_other_corpus(built, corpus, tmp_path, capsys):
    def front(folder: Path) -> dict:
        return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])

    assert read_manifest(built)["generated"] is True
    assert front(built)["source_datasets"] == ["original"] and front(built)["license"] == "apache-2.0"
    text = (built / "README.md").read_text()
    assert (
        "not Corpus Carolina: every text here was generated" in text and "texts come from Corpus Carolina" not in text
    )
    assert "every text was generated" in call(capsys, "inspect", built)
    assert "every text was generated" in call(capsys, "inspect", corpus, "--workers", 1)

    (corpus / "corpus/GENERATED.txt").unlink()
    output = tmp_path / "out"
    assert "generated" not in call(capsys, "build", "--corpus", corpus, "--output", output, "--workers", 1)
    assert read_manifest(output)["generated"] is False
    assert front(output)["source_datasets"] == ["carolina-c4ai/corpus-carolina"]
    text = (output / "README.md").read_text()
    assert "texts come from Corpus Carolina" in text and "CC BY 4.0" in text and "generated" not in text


def test_legends_hide_no_data():
    lengths = np.geomspace(21, 20_000, 400).astype(int)  # a histogram that fills its frame
    configs = ("gold", "matched", "gold_typology", "matched_typology")
    index = {"tokens": lengths, "originality": np.arange(400) // 4, "ngram_originality": np.arange(400) / 4}
    for figure in (draw_agreement(pa.table(index)), draw_lengths(dict.fromkeys(configs, lengths))):
        figure.draw_without_rendering()
        legends = [(axis, axis.get_legend()) for axis in figure.axes if axis.get_legend()]
        assert legends
        for axis, legend in legends:
            assert legend.get_window_extent().y0 >= axis.get_window_extent().y1
            assert not legend.get_window_extent().overlaps(axis.title.get_window_extent()) or not axis.get_title()
