"""`python -m experiments.train`: the command `jaxprune train`."""

from jaxprune.cli import process
from jaxprune.cli.commands.train import main

if __name__ == "__main__":
    process.run(main)
