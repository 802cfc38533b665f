"""What pip installs: a wheel from the checkout, in a folder of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
SOURCES = "jaxprune experiments README.md LICENSE pyproject.toml setup.cfg".split()
ROOMS = "data channels networks ranking sweep compaction report".split()

# Imports every module, and prints the file of each and of what is read beside them.
# Only the benchmark's peers may be missing.
IMPORT = """
import importlib, importlib.util, pkgutil
from importlib import resources
import experiments, jaxprune
for package in (jaxprune, experiments):
    print(package.__name__, package.__file__)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        print(found.name, importlib.util.find_spec(found.name).origin)
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "torch_pruning"):
                raise
print("py.typed", resources.files(jaxprune) / "py.typed")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what pip installs of a copy of the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    copy, target = folder / "copy", folder / "installed"
    copy.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(
                CHECKOUT / name, copy / name,
                ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
            )  # fmt: skip
        else:
            shutil.copy(CHECKOUT / name, copy)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    # Neither needs a network: setuptools comes with the tests.
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    (wheel,) = folder.glob("jaxprune-*.whl")
    install = ["install", "--no-deps", "--no-index", "--no-compile", "-t", target]
    subprocess.run([*pip, *install, wheel], check=True, cwd=folder)
    return target


def test_every_module_is_imported_from_the_wheel(installed, tmp_path):
    """In a fresh process that knows nothing of the checkout."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n{IMPORT}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    # Every module of the checkout, and py.typed, from that folder.
    expected = {
        str(path.relative_to(CHECKOUT))
        for name in ("jaxprune", "experiments")
        for path in (CHECKOUT / name).rglob("*")
        if path.suffix in (".py", ".typed")
    }
    assert {str(Path(f).relative_to(installed)) for f in files.values()} == expected
    assert all(Path(file).is_file() for file in files.values())
    assert {f"jaxprune.{room}" for room in ROOMS} <= set(files)
