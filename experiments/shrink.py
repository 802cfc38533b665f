"""`python -m experiments.shrink`: the command `jaxprune shrink`."""

from jaxprune.cli import process
from jaxprune.cli.commands.shrink import main

if __name__ == "__main__":
    process.run(main)
