"""The card: what the Hub and a reader are told, made from the finished folder."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

import carolina_originality
from flexqwen.data.card import draw_agreement, draw_lengths, list_cautions
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


def test_a_sample_and_a_small_build_say_so(built, corpus, tmp_path, capsys):
    (corpus / "corpus/GENERATED.txt").unlink()
    words = ("build", "--corpus", corpus, "--workers", 1, "--documents")
    carolina_originality.main([*map(str, words), "500", "--output", str(tmp_path / "part")])
    told, error = capsys.readouterr()
    sample = "caution: a sample, 500 of 800 documents: copies in the others are not seen, so n-gram originality is"
    few = "caution: gold is too small to train a model on: "
    first, second = error.splitlines()
    assert first.startswith(sample) and second.startswith(few) and "119 documents asked for" in second
    assert "agree" not in told and "Pearson" not in told
    card = " ".join((tmp_path / "part/README.md").read_text().split())
    assert all(f"**Caution:** {line.removeprefix('caution: ')}." in card for line in (first, second))
    assert "The two are not compared" in card and "Pearson" not in card

    carolina_originality.main([*map(str, words), "9999", "--output", str(tmp_path / "whole")])  # than there are
    told, error = capsys.readouterr()
    assert error.startswith(few) and error.count("\n") == 1 and "agree" in told
    assert list_cautions(read_manifest(built)) == []
