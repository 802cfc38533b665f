"""`python -m experiments.plot`: the command `jaxprune plot`."""

from jaxprune.cli import process
from jaxprune.cli.commands.plot import main

if __name__ == "__main__":
    process.run(main)
