r"""Ranks a layer's channels and measures the network with the k lowest pruned.

    jaxprune sweep --model=digits_pair
    jaxprune sweep --model=mnist_pair --data_dir=...
    jaxprune sweep --model=cifar_vgg --init_from=my_model.h5 --fill=all
    jaxprune sweep --model=digits_pair --criterion=all --random_orders=20
    jaxprune sweep --model=digits_pair --seeds=0,1,2,3,4

Trains first where the run directory has no trained network. Writes one folder per
sweep, `sweep-<layer>-<criterion>-<fill>`; of several criteria also a comparison,
`criteria-<layer>-<fill>`; and report.html, of all sweeps in the run directory.
digits_pair takes about 2 minutes on 2 CPU cores, training included.
"""

from pathlib import Path

from absl import flags

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import process, pruning_options, seeds
from jaxprune.cli.commands import report
from jaxprune.cli.flags import (
    define_batch_size,
    define_choices,
    define_max_drop,
    define_network,
    define_processes,
)
from jaxprune.cli.sweep.plan import Sweeps, asked
from jaxprune.cli.sweep.run import sweep_all
from jaxprune.fills.fill import FILLS
from jaxprune.report import page
from jaxprune.results.result import SweepResult

FLAGS = flags.FLAGS
FIRST = (
    "model data data_dir init_from workdir layer criterion fill ks max_drop"
).split()
define_network()
define_processes()
define_batch_size()
define_choices()
define_max_drop()
flags.DEFINE_integer("mask_chunk", None, "Masks evaluated at once.", lower_bound=1)
flags.DEFINE_bool("report", True, "Write report.html, see `jaxprune report`.")
flags.DEFINE_integer(
    "random_orders", 0, "Random orders to compare the criteria with.", 0, 1000
)


def main() -> None:
    """Trains or restores, ranks, sweeps, saves and draws."""
    pruning_options.check_names((*FILLS, "all"), several=True)
    if FLAGS.seeds is None:
        sweeps, _, page_of_all = _one()
        process.finish(*page_of_all, *sweeps.to_open)
    else:
        seeds.sweep_each(lambda: _one(resume=True)[1])


def _one(resume: bool = False) -> tuple[Sweeps, list[SweepResult], list[Path]]:
    """The sweeps of one network, their results, and the page of all."""
    sweeps = asked()
    results = sweep_all(sweeps, resume)
    return sweeps, results, _report(sweeps.run.workdir)


def _report(workdir: Path) -> list[Path]:
    """Writes the page; its path, or none where another sweep is damaged."""
    if not FLAGS.report or not processes.is_first():
        return []
    try:
        page.write(workdir, workdir / report.NAME)
    except InputError as error:
        print(f"{report.NAME} is not written: {error}")
        return []
    return [workdir / report.NAME]
