"""Which module may know which; and that the core needs neither TensorFlow nor torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxprune

PACKAGE = Path(jaxprune.__file__).parent
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "conv": {"winograd"},
    "metrics": {"errors"},
    "ranking": {"errors"},
    "models": {"conv", "errors"},
    "taps": {"errors"},
    "tfds_cache": {"errors", "files"},
    "data": {"errors", "tfds_cache"},
    "train": {"data", "errors", "mesh"},
    "checkpoint": {"errors", "taps"},
    "results": {"errors", "files", "metrics"},
    "tagging": set(),
    "dependence": {"errors", "tagging", "taps"},
    "masking": {"dependence", "errors", "taps"},
    "mesh": set(),
    "winograd": set(),
    "processes": {"data", "errors"},
    "around": set(),
    "evaluate": {"around", "mesh"},
    "tapped": {"around", "data", "errors", "masking", "mesh", "processes", "taps"},
    "running_sum": {"dependence", "errors", "evaluate", "masking", "mesh", "taps"},
    "sweep": {
        "around",
        "dependence",
        "errors",
        "evaluate",
        "masking",
        "mesh",
        "processes",
        "ranking",
        "results",
        "running_sum",
        "tapped",
        "taps",
    },
    "plots_maps": {"results"},
    "plots": {"errors", "files", "metrics", "plots_maps", "results"},
    "proof": {"dependence", "errors", "masking", "taps"},
    "artefact": {"errors", "files"},
    "compact_network": {"artefact", "conv", "dependence", "errors", "models", "proof"},
    "cut": {"dependence", "errors", "masking", "proof", "taps"},
    "compact": {"compact_network", "cut", "dependence", "errors", "masking", "proof"},
    "cost": {"dependence", "masking", "taps"},
    "recalibrate": {"errors", "taps"},
    "plots_bench": set(),
    "plots_compact": {"plots"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxprune":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            head, _, module = node.module.partition(".")
            found |= {module} if head == "jaxprune" else set()
    return found


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("*.py")))
def test_imports_follow_the_table(module):
    if module == "__init__":
        return
    assert imports(PACKAGE / f"{module}.py") <= MAY_IMPORT[module]


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
