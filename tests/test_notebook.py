"""The notebook runs from top to bottom, and is committed without outputs."""

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "jaxprune.ipynb"


def test_no_output_is_committed():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]


def test_prose_before_each_cell_says_what_one_will_see():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for before, cell in itertools.pairwise(cells):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", cell["id"]
            assert "You will see" in "".join(before["source"]), cell["id"]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """In less than five minutes, by a kernel of this environment."""
    for name in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing: pip install -e '.[test]'")
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # Whatever the machine's own kernels are.
    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    )
    monkeypatch.setattr(AsyncKernelManager, "kernel_spec", spec)
    for name in ("JAX_NUMPY_DTYPE_PROMOTION", "XLA_FLAGS"):  # as for anybody else
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    assert sum("srcdoc" in page for page in pages) == 1
    text = "".join(output.get("text", "") for output in outputs)
    for line in ("largest safe K within one point:", "of 64 channels", "parameters"):
        assert line in text
