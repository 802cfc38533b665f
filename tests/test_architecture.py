"""Which module may know which; and that the core needs neither TensorFlow nor torch."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxprune

PACKAGE = Path(jaxprune.__file__).parent
# The rooms from the ground up. What each imports, no more and no less.
IMPORTS = {
    "_base": set(),
    "conv": {"_base"},
    "data": {"_base"},
    "ranking": {"_base"},
    "graph": {"_base", "conv"},
    "tasks": {"_base", "graph"},
    "results": {"_base", "data", "ranking"},
    "adapters": {"_base", "conv", "graph"},
    "report": {"_base", "results"},
    "costs": {"_base", "adapters", "graph"},
    "fills": {"_base", "adapters", "graph"},
    "compaction": {"_base", "adapters", "fills", "graph"},
    "evaluation": {"_base", "adapters", "data", "fills", "graph", "ranking", "tasks"},
    "shrinking": {
        "_base", "adapters", "compaction", "costs", "fills", "graph", "ranking",
        "tasks",
    },
    "training": {"_base", "compaction", "data", "graph", "tasks"},
    "recipes": {"_base", "adapters", "conv", "data", "graph", "training"},
    "sweep": {
        "_base", "adapters", "data", "evaluation", "fills", "graph", "ranking",
        "results", "tasks",
    },
    "cli": {
        "_base", "adapters", "compaction", "costs", "data", "evaluation", "fills",
        "graph", "ranking", "recipes", "report", "results", "shrinking", "sweep",
        "tasks", "training",
    },
    "__main__": {"cli"},
}  # fmt: skip


def imports(room: str) -> set[str]:
    """Other rooms that a room imports."""
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
        "import sys, experiments.sweep, experiments.plot;"
        "print([m for m in ('tensorflow', 'torch', 'keras', 'tensorflow_datasets',"
        " 'h5py', 'wandb', 'matplotlib.pyplot') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr


def test_metadata_lies_in_setup_cfg_alone():
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text()
    assert "[build-system]" in pyproject and "[project]" not in pyproject


def test_the_package_imports_nothing_until_it_is_used():
    code = (
        "import sys, jaxprune; print(len(jaxprune.__all__));"
        "print([m for m in ('jax', 'numpy', 'matplotlib') if m in sys.modules]);"
        "names = [getattr(jaxprune, name) for name in jaxprune.__all__];"
        "print('tensorflow_datasets' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names, slow, tfds = out.stdout.split("\n")[:3]
    assert int(names) > 40, out.stderr
    assert (slow, tfds) == ("[]", "False")


def test_nothing_of_the_library_knows_a_flag():
    for room in set(IMPORTS) - {"cli", "__main__", "recipes", "report"}:
        files = (PACKAGE / room).rglob("*.py")
        for path in files if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]:
            assert not re.search(r"(?<![\w-])--[a-z]", path.read_text()), path


def test_two_modules_know_of_absl_s_flags():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "experiments").rglob("*.py")]
    knowing = {p.name for p in files if re.search(r"absl.*\bflags", p.read_text())}
    assert knowing == {"process.py", "settings.py"}


def test_signatures_are_checked_in_every_room_but_the_command_line():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    options = tomllib.loads(text)["tool"]["pytest"]["ini_options"]["addopts"]
    (packages,) = re.findall(r"--jaxtyping-packages=(\S+)", options)
    *rooms, _ = packages.split(",")
    assert {f"jaxprune.{room}" for room in set(IMPORTS) - {"cli", "__main__"}} == set(
        rooms
    )
