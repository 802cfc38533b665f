"""Which module may know which; and that the core needs neither TensorFlow nor torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxprune

PACKAGE = Path(jaxprune.__file__).parent
# The ground, a module a row; then the rooms. What each imports, no more and no less.
IMPORTS = {
    "errors": set(),
    "files": set(),
    "winograd": set(),
    "mesh": {"errors"},
    "arguments": {"errors"},
    "processes": {"errors"},
    "schema": {"errors"},
    "sealed": {"errors", "files", "schema"},
    "conv": {"winograd"},
    "data": {"arguments", "errors", "files", "schema", "sealed"},
    "graph": {"arguments", "conv", "errors"},
    "adapters": {"arguments", "conv", "errors", "graph"},
    "networks": {
        "adapters", "arguments", "conv", "data", "errors", "graph", "mesh", "schema",
        "sealed",
    },
    "ranking": {"arguments", "errors"},
    "cost": {"adapters", "errors", "graph", "sealed"},
    "fills": {"adapters", "arguments", "errors", "graph", "mesh", "processes"},
    "sweep": {
        "adapters", "arguments", "data", "errors", "files", "fills", "graph", "mesh",
        "processes", "ranking", "schema", "sealed",
    },
    "compaction": {
        "adapters", "arguments", "errors", "files", "fills", "graph", "schema",
        "sealed",
    },
    "shrinking": {
        "adapters", "arguments", "compaction", "cost", "errors", "fills", "graph",
        "ranking",
    },
    "report": {"errors", "files", "schema", "sealed", "sweep"},
}  # fmt: skip


def imports(room: str) -> set[str]:
    """Other rooms, and modules of the ground, that a room imports."""
    found = set()
    files = (PACKAGE / room).rglob("*.py")
    for path in files if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "jaxprune":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                head, *rest = node.module.split(".")
                found |= set(rest[:1]) if head == "jaxprune" else set()
    return found - {room}


@pytest.mark.parametrize("room", IMPORTS)
def test_imports_are_those_of_the_table(room):
    assert imports(room) == IMPORTS[room]


def test_the_table_names_every_room():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} == set(IMPORTS)


def test_the_core_imports_no_other_framework():
    code = (
        "import sys, jaxprune, experiments.sweep, experiments.plot;"
        "print([m for m in ('tensorflow', 'torch', 'keras', 'tensorflow_datasets',"
        " 'h5py', 'wandb', 'matplotlib.pyplot') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_metadata_lies_in_setup_cfg_alone():
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert "[build-system]" in pyproject and "[project]" not in pyproject
