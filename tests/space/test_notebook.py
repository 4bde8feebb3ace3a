"""The notebook runs whole. `make test-space` runs this; NOTEBOOK=<file> keeps it there with its outputs."""

import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="make test-space has nbclient")
import nbformat  # noqa: E402

from tests.helpers.tiny import make_model  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.mark.real_data
def test_the_notebook_runs(eval_data, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    model = os.environ.get("MODEL", str(tmp_path / "model"))
    if "MODEL" not in os.environ:
        make_model(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(model)
        tokenizer.save_pretrained(model)
    notebook = nbformat.read(ROOT / "notebooks/flexqwen.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    source = first.source
    first.source += f"\nCHECKPOINT = {model!r}" + "\nSECONDS = 10" * ("NOTEBOOK" not in os.environ)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    first.source = source
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "accuracy" in outputs[-1].text
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
    assert len(nbformat.writes(notebook)) < 100_000
    if place := os.environ.get("NOTEBOOK"):
        nbformat.write(notebook, place)
