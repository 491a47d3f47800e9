"""The notebooks: executed with small numbers, and committed as they were run with theirs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
#: In the place of what the cell tagged ``parameters`` says.
SMALL: dict[str, dict[str, Any]] = {
    "classify_and_look_inside": {"steps": 2, "batch_size": 4},
    "fine_tune_on_your_photos": {"epochs": 3, "photos_per_class": 6},
    "segment_large_images": {"epochs": 2, "pictures": 8, "large": (160, 224)},
    "ss2d_in_your_u_net": {"steps": 2, "batch_size": 2},
}


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return found


@pytest.mark.slow
@pytest.mark.network  # the kernel is spoken to over loopback
@pytest.mark.filterwarnings("default")  # of Jupyter's packages
@pytest.mark.parametrize("name", SMALL)
def test_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("skimage")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (tagged,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    values = SMALL[name]
    assert all(word in notebook.cells[tagged].source for word in values)
    notebook.cells.insert(tagged + 1, nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in values.items())))

    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    assert "error" not in printed.lower()  # IPython goes on after a command that failed


@pytest.mark.parametrize("name", SMALL)
def test_as_committed(name: str) -> None:
    """With the outputs of one run from top to bottom, small, and without a trace of the machine."""
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    file = NOTEBOOKS / f"{name}.ipynb"
    assert file.stat().st_size < 700_000
    assert not any(word in file.read_text(encoding="utf-8") for word in ("/home/", "/root/", "/tmp/"))


def test_all_are_here() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)
