"""The command `jaxprune`: it lists the commands and runs one, quickly."""

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

from jaxprune import __main__ as command

# Prints what the command prints, and whether anything slow was imported for it.
RUN = """
import runpy, sys
sys.argv[0] = "jaxprune"
try:
    runpy.run_module("jaxprune", run_name="__main__")
finally:
    slow = {"jax", "numpy", "absl", "matplotlib", "flax"} & set(sys.modules)
    print("imported:", sorted(slow))
"""


def run(*arguments):
    """Of the module, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command_and_imports_nothing_slow(arguments):
    code, lines, err = run(*arguments)
    assert (code, err) == (0, "")
    assert lines[-1] == "imported: []"
    for name in command.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.endswith(".") and len(line) <= 100


def test_version():
    assert run("--version")[1][0] == f"jaxprune {version('jaxprune')}"


@pytest.mark.parametrize(
    ("name", "hint"), [("swep", " did you mean 'sweep'?"), ("zzz", ""), ("--k=1", "")]
)
def test_an_unknown_command_is_one_line(name, hint):
    code, lines, err = run(name)
    assert (code, lines) == (2, ["imported: []"])
    choices = ", ".join(command.COMMANDS)
    assert err == f"error: unknown command '{name}';{hint} choices: {choices}\n"


def test_it_is_installed_as_a_command():
    (point,) = entry_points(group="console_scripts", name="jaxprune")
    assert point.load() is command.main
