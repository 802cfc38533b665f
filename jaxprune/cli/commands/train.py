r"""Trains a network, or continues a training that was stopped.

    jaxprune train --model=cifar_vgg
    jaxprune train --model=mnist_pair --data_dir=...

Writes config.json, checkpoints/ and train.jsonl (one line per epoch) to --workdir. If
it is killed at any moment, run the same command again: it continues from the last
finished epoch and ends with the same parameters. mnist_pair takes about 11 minutes on
2 CPU cores, cifar_vgg is for a GPU or TPU.
"""

from dataclasses import dataclass

from jaxprune._base.errors import InputError
from jaxprune.cli import process, run_directory
from jaxprune.cli.settings import BatchSettings, ProcessSettings
from jaxprune.cli.weights import train_or_restore

FIRST = (
    "model data_dir workdir dataset epochs "
    "train_batch_size learning_rate seed dtype devices"
).split()


@dataclass(frozen=True, kw_only=True)
class Settings(BatchSettings, ProcessSettings):
    """Settings of the command."""


def main(settings: Settings) -> None:
    """Trains the network that the settings describe."""
    run = run_directory.load(settings, train_imported=True)
    if run.training.epochs == 0:
        raise InputError(
            f"{run.workdir} has epochs=0: its weights were imported to be used as they "
            "are; give another --workdir to train them on"
        )
    train_or_restore(run)
    process.finish(run.workdir / "train.jsonl", run.checkpoints)
