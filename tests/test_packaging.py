"""What pip installs: a wheel from the checkout, in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxprune.cli import provenance

CHECKOUT = Path(__file__).parent.parent
SOURCES = "jaxprune README.md LICENSE pyproject.toml setup.cfg".split()
ROOMS = "data graph recipes ranking sweep compaction cli".split()

# Imports every module, and prints the file of each and of what is read beside them.
IMPORT = """
import importlib, importlib.util, pkgutil
from importlib import resources
import jaxprune
print(jaxprune.__name__, jaxprune.__file__)
for found in pkgutil.walk_packages(jaxprune.__path__, "jaxprune."):
    print(found.name, importlib.util.find_spec(found.name).origin)
    importlib.import_module(found.name)
files = resources.files(jaxprune)
for name in ("page.css", "page.html", "page.js"):
    print(name, files / "report" / "page" / "templates" / name)
for name in ("py.typed", "__init__.pyi"):
    print(name, files / name)
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
        for path in (CHECKOUT / "jaxprune").rglob("*")
        if path.suffix in (".py", ".pyi", ".typed", ".css", ".html", ".js")
    }
    assert {str(Path(f).relative_to(installed)) for f in files.values()} == expected
    assert all(Path(file).is_file() for file in files.values())
    assert {f"jaxprune.{room}" for room in ROOMS} <= set(files)


def test_the_wheel_holds_every_file_of_the_packages(installed):
    """What modules read beside them, too."""

    def files(folder):
        return {
            str(path.relative_to(folder))
            for path in (folder / "jaxprune").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(installed) == files(CHECKOUT)


def _run(installed, cwd, *command):
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    }
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
    assert err == "error: nowhere holds no sweep: run jaxprune sweep first\n"


def test_it_installs_nothing_beside_the_package(installed):
    """Somebody's own `experiments/` is theirs."""
    found = {path.name for path in installed.iterdir()} - {"bin"}
    assert {name.split("-")[0] for name in found} == {"jaxprune"}


@pytest.mark.slow
def test_a_sweep_beside_somebodys_own_experiments(installed, tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise SystemExit('theirs')")
    script = str(installed / "bin" / "jaxprune")
    code, out, err = _run(
        installed, tmp_path, script, "sweep", "--model=digits_pair", "--epochs=1",
        "--train_pairs=256", "--test_pairs=64", "--widths=4,4,8", "--dense=8",
        "--warmup_epochs=0",
    )  # fmt: skip
    assert code == 0, err
    assert "open next:" in out


def _git(folder, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=b"]
    command = ["git", *name, *arguments]
    return subprocess.check_output(command, cwd=folder, text=True).strip()


def _commit(monkeypatch, folder):
    """As the copy in the folder would record it."""
    monkeypatch.setattr(
        provenance, "__file__", str(folder / "jaxprune" / "cli" / "provenance.py")
    )
    return provenance._commit()


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
    source = tmp_path / "jaxprune" / "cli" / "provenance.py"
    source.parent.mkdir(parents=True)
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
