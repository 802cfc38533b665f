r"""Trains a network, or continues a training that was stopped.

    python -m experiments.train --model=cifar_vgg
    python -m experiments.train --model=mnist_pair --data_dir=...

Writes config.json, checkpoints/ and train.jsonl (one line per epoch) to --workdir. If
it is killed at any moment, run the same command again: it continues from the last
finished epoch and ends with the same parameters. mnist_pair takes about 11 minutes on
2 CPU cores, cifar_vgg is for a GPU or TPU; BUILD_NOTES.md has the figures to expect.
"""

from experiments import cli, job
from experiments.flags import define_batch_size, define_network, define_processes
from experiments.weights import train_or_restore
from jaxprune.errors import InputError

define_network()
define_processes()
define_batch_size()


def main() -> None:
    """Trains the network that the flags describe."""
    run = job.load(train_imported=True)
    if run.training.epochs == 0:
        raise InputError(
            f"{run.workdir} has epochs=0: its weights were imported to be used as they "
            "are; give another --workdir to train them on"
        )
    train_or_restore(run)
    cli.finish(run.workdir / "train.jsonl", run.checkpoints)


if __name__ == "__main__":
    cli.run(main)
