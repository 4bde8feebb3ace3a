"""Figures as files."""

from matplotlib.figure import Figure
from PIL import Image

from flexqwen.drawing import save_figure


def test_the_same_figure_has_the_same_bytes_and_says_its_source(tmp_path, rendered):
    found = []
    for name in "ab":
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([1, 3, 2], label="loss")
        save_figure(figure, tmp_path / f"{name}.png", "run 7")
        found.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert found[0] == found[1] and found[0][1].startswith(b"%PDF")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Source"] == "run 7" and min(image.size) > 100 and len(set(image.convert("L").tobytes())) > 9
