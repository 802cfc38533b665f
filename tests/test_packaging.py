"""What pip installs: a wheel from the checkout, in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import facts

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
files = resources.files(jaxprune)
for name in ("page.css", "page.html", "page.js"):
    print(name, files / "report" / "page" / "templates" / name)
print("py.typed", files / "py.typed")
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


@pytest.mark.slow
def test_every_module_is_imported_from_the_wheel(installed, tmp_path):
    """In a fresh process that knows nothing of the checkout."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n{IMPORT}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    # Every module of the checkout, py.typed and the page's templates, from that folder.
    expected = {
        str(path.relative_to(CHECKOUT))
        for name in ("jaxprune", "experiments")
        for path in (CHECKOUT / name).rglob("*")
        if path.suffix in (".py", ".typed", ".css", ".html", ".js")
    }
    assert {str(Path(f).relative_to(installed)) for f in files.values()} == expected
    assert all(Path(file).is_file() for file in files.values())
    assert {f"jaxprune.{room}" for room in ROOMS} <= set(files)


def test_the_wheel_holds_every_file_of_the_packages(installed):
    """What modules read beside them, too."""

    def files(folder):
        return {
            str(path.relative_to(folder))
            for name in ("jaxprune", "experiments")
            for path in (folder / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(installed) == files(CHECKOUT)


def _run(installed, cwd, *command):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_console_command_of_the_wheel(installed, tmp_path):
    script = str(installed / "bin" / "jaxprune")
    code, out, err = _run(installed, tmp_path, script, "--help")
    assert code == 0, err
    assert "sweep     Ranks" in out
    code, out, err = _run(installed, tmp_path, script, "plot", "--workdir=nowhere")
    assert (code, out) == (2, "")
    assert err == "error: nowhere holds no sweep: run experiments.sweep first\n"


def _git(folder, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=b"]
    command = ["git", *name, *arguments]
    return subprocess.check_output(command, cwd=folder, text=True).strip()


def _commit(monkeypatch, folder):
    """As the copy in the folder would record it."""
    monkeypatch.setattr(facts, "__file__", str(folder / "experiments" / "facts.py"))
    return facts._commit()


def test_a_foreign_repository_s_commit_is_not_recorded(installed, monkeypatch):
    folder = installed.parent
    _git(folder, "init", "-q")
    _git(folder, "add", "copy/README.md")
    _git(folder, "commit", "-q", "-m", "theirs")
    try:
        assert _commit(monkeypatch, installed) is None
    finally:
        shutil.rmtree(folder / ".git")
    assert _commit(monkeypatch, installed) is None


def test_the_commit_of_a_clone_is_recorded(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    source = tmp_path / "experiments" / "facts.py"
    source.write_text("as it was\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "ours")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    assert _commit(monkeypatch, tmp_path) == commit
    source.write_text("changed\n")
    assert _commit(monkeypatch, tmp_path) == f"{commit}-dirty"


def test_one_version_everywhere():
    (version,) = re.findall(r"^version = (.*)$", _text("setup.cfg"), re.M)
    newest, date = re.findall(r"^## \[(.*)\] - (.*)$", _text("CHANGELOG.md"), re.M)[0]
    cited = dict(line.split(": ", 1) for line in _text("CITATION.cff").splitlines()
                 if re.match(r"[a-z]", line) and ": " in line)  # fmt: skip
    assert version == newest == cited["version"]
    assert date == cited["date-released"]


def _text(name):
    return (CHECKOUT / name).read_text()
