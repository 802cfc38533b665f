"""The command `jaxprune`, or `python -m jaxprune`: names the commands, runs one.

Imports nothing that takes time: commands are listed in their own words, unrun.
"""

import ast
import difflib
import importlib
import sys
from importlib.metadata import version
from pathlib import Path

from jaxprune.cli import signals

COMMANDS = ("train", "sweep", "compact", "shrink", "plot", "report")
_HELP = ("help", "--help", "-h", "--helpshort", "--helpfull")
_BAD_INPUT = 2  # as `process`'s


def main() -> None:
    """Runs the command that is named, with the flags that follow."""
    signals.quit_at_once()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in _HELP:
        print(_usage())
    elif name == "--version":
        print(f"jaxprune {version('jaxprune')}")
    elif name not in COMMANDS:
        print(f"error: {_unknown(name)}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    else:
        sys.argv[:] = [f"jaxprune {name}", *rest]
        process = importlib.import_module("jaxprune.cli.process")
        process.run(importlib.import_module(f"jaxprune.cli.commands.{name}").main)


def _usage() -> str:
    lines = [f"  {name:<9} {_summary(name)}" for name in COMMANDS]
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
    """The first line of a command's docstring."""
    path = Path(__file__).parent / "cli" / "commands" / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    return text.splitlines()[0]


def _unknown(name: str) -> str:
    """`jaxprune._base.errors.check_choice` says it so; importing it takes seconds."""
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    return f"unknown command '{name}';{hint} choices: {', '.join(COMMANDS)}"


if __name__ == "__main__":
    main()
