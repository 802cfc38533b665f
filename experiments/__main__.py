"""The command `jaxprune`, or `python -m experiments`: names the scripts, runs one.

Imports nothing that takes time: the scripts are listed in their own words, unrun.
"""

import ast
import difflib
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

from experiments import signals

SCRIPTS = ("train", "sweep", "compact", "shrink", "plot", "report", "bench")
_HELP = ("help", "--help", "-h", "--helpshort", "--helpfull")
_BAD_INPUT = 2  # as `cli`'s


def main() -> None:
    """Runs the script that is named, with the flags that follow."""
    signals.quit_at_once()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in _HELP:
        print(_usage())
    elif name == "--version":
        print(f"jaxprune {version('jaxprune')}")
    elif name not in SCRIPTS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    else:
        sys.argv[:] = [f"jaxprune {name}", *rest]
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def _usage() -> str:
    lines = [f"  {name:<9} {_summary(name)}" for name in SCRIPTS]
    return "\n".join(
        [
            "usage: jaxprune COMMAND --flag=value ...",
            "",
            *lines,
            "",
            "`jaxprune COMMAND --help` lists a command's flags. For a first look, with",
            "nothing to download: jaxprune sweep --model=digits_pair",
        ]
    )


def _summary(name: str) -> str:
    """The first line of a script's docstring."""
    folder = Path(__file__).parent
    path = folder / f"{name}.py"
    if not path.exists():
        path = folder / name / "__main__.py"
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.splitlines()[0]


def _unknown(name: str) -> str:
    """`jaxprune.errors.check_choice` says it so; importing it takes seconds."""
    near = difflib.get_close_matches(name, SCRIPTS, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    return f"unknown command '{name}';{hint} choices: {', '.join(SCRIPTS)}"


if __name__ == "__main__":
    main()
