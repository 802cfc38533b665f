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

from dataclasses import dataclass
from pathlib import Path

from jaxprune.cli import process, pruning_options, seeds
from jaxprune.cli.commands import report
from jaxprune.cli.seeds import SeedSettings
from jaxprune.cli.settings import ProcessSettings, ReportSettings
from jaxprune.cli.sweep.plan import Sweeps, SweepSettings, asked
from jaxprune.cli.sweep.run import sweep_all
from jaxprune.fills.fill import FILLS
from jaxprune.results.load import AnyResult

FIRST = (
    "model data data_dir init_from workdir layer criterion fill ks max_drop"
).split()


@dataclass(frozen=True, kw_only=True)
class Settings(SweepSettings, SeedSettings, ProcessSettings, ReportSettings):
    """Settings of the command."""


def main(settings: Settings) -> None:
    """Trains or restores, ranks, sweeps, saves and draws."""
    pruning_options.check_names(settings, (*FILLS, "all"), several=True)
    if settings.seeds is None:
        sweeps, _, page_of_all = _one(settings)
        process.finish(*page_of_all, *sweeps.to_open)
    else:
        seeds.sweep_each(settings, lambda own: _one(own, resume=True)[1])


def _one(
    settings: Settings, resume: bool = False
) -> tuple[Sweeps, list[AnyResult], list[Path]]:
    """The sweeps of one network, their results, and the page of all."""
    sweeps = asked(settings)
    results = sweep_all(sweeps, resume)
    page_of_all = report.write(sweeps.run.workdir) if settings.report else []
    return sweeps, results, page_of_all
