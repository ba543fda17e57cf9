"""The notebooks run from the first cell to the last, and what they hold are the outputs of such a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra test brings it")
nbclient = pytest.importorskip("nbclient", reason="the extra test brings it")
pytest.importorskip("ipykernel", reason="the extra test brings it")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: What a notebook imports besides the core.
EXTRAS = {
    "02_staged_mixed_chain": ["at"],
    "05_prior_mean_for_xopt": ["xopt"],
    "06_serve_as_ioc": ["p4p", "panel"],
}
LIMIT = 120  # [s] for a cell
LARGEST = 300_000  # [byte]


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_all_notebooks_are_here() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_says_nothing_on_stderr(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every notebook asserts its own known answer."""
    for package in EXTRAS.get(path.stem, []):
        pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output.text for output in outputs_of(notebook) if output.get("name") == "stderr"]
    assert not said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_with_the_pictures_of_one_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    assert any("image/png" in output.get("data", {}) for output in outputs_of(notebook))
    assert not [output for output in outputs_of(notebook) if output.output_type == "error"]
    assert path.stat().st_size < LARGEST
