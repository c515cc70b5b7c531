"""The notebook runs from top to bottom. `python tests/test_notebook.py` runs it in full, and stores its final pictures.

The test makes 3 steps instead of its hundreds.
"""

import base64
import re
from pathlib import Path

import imageio.v3 as iio
import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "minisagan.ipynb"
PICTURES = ("data", "train", "attention")  # the cells that end in one


def execute(notebook, folder):
    """The notebook with the outputs of all its cells, run in a folder."""
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook):
    """What each code cell put out, by the cell's id."""
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def picture(output):
    return iio.imread(base64.b64decode(output.data["image/png"]), extension=".png")


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert re.fullmatch(r"STEPS = \d+", parameters.source)
    parameters.source = "STEPS = 3"
    found = outputs(execute(notebook, tmp_path))
    for name in PICTURES:
        (output,) = found[name]
        assert picture(output).std() > 10
    gate, op, yours = ("".join(output.text for output in found[name]) for name in ("gate", "op", "yours"))
    assert re.match(r"gamma [+-]0\.\d{3}; \|gamma o\| / \|x\| 0\.\d{3}\nentropy \d\.\d\d bits of 6\n", gate)
    assert re.match(r"ok +swish .*\nFAILED +forgetful .*\n$", op) and re.match(r"ok +cube ", yours)
    assert not list(tmp_path.iterdir())


def test_it_is_stored_without_outputs_but_for_the_final_pictures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for name, stored in outputs(notebook).items():
        assert [list(output.get("data", ())) for output in stored] == [["image/png"]] * (name in PICTURES)
    assert NOTEBOOK.stat().st_size < 500_000


if __name__ == "__main__":
    done = execute(nbformat.read(NOTEBOOK, as_version=4), NOTEBOOK.parent)
    for cell in done.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": o.data["image/png"]}) for o in shown]
            cell.execution_count = None
    done.metadata.language_info = {"name": "python"}  # not this machine's version
    nbformat.write(done, NOTEBOOK)
