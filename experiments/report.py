"""`python -m experiments.report`: the command `jaxprune report`."""

from jaxprune.cli import process
from jaxprune.cli.commands.report import main

if __name__ == "__main__":
    process.run(main)
