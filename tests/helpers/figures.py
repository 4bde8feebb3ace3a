"""Figures that are made but not rendered, which is most of the time of a small build, of a short run or of a report."""

from contextlib import contextmanager

from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

_render = Figure.savefig


def _write_dot(figure, file, format, metadata, **_) -> None:
    if format == "pdf":
        file.write(b"%PDF-1.4\n")
        return
    told = PngImagePlugin.PngInfo()
    for name, value in metadata.items():
        if value is not None:
            told.add_text(name, value)
    Image.new("1", (1, 1)).save(file, "png", pnginfo=told)


def render_no_figures() -> None:
    """From now on, a figure's file is a dot that says the same of its source."""
    Figure.savefig = _write_dot


@contextmanager
def rendered_figures():
    before, Figure.savefig = Figure.savefig, _render
    try:
        yield
    finally:
        Figure.savefig = before
