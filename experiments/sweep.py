"""`python -m experiments.sweep`: the command `jaxprune sweep`."""

from jaxprune.cli import process
from jaxprune.cli.commands.sweep import main

if __name__ == "__main__":
    process.run(main)
