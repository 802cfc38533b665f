"""`python -m experiments.compact`: the command `jaxprune compact`."""

from jaxprune.cli import process
from jaxprune.cli.commands.compact import main

if __name__ == "__main__":
    process.run(main)
