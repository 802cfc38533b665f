r"""Writes the report of a run directory, one HTML file, from saved files alone.

    jaxprune report --workdir=runs/cifar_vgg

Writes report.html there: a slider for K, and everything that is known of the network
with K channels pruned. It needs no network, and can be handed on; its links to smaller
networks lead to files of the run directory. `jaxprune sweep` writes it, too.
"""

from pathlib import Path

from jaxprune._base.errors import InputError
from jaxprune.cli import lock, process
from jaxprune.cli.settings import WorkdirSettings as Settings
from jaxprune.report import page

NAME = "report.html"


def main(settings: Settings) -> None:
    """Writes the report."""
    if settings.workdir is None:
        raise InputError("say which run with --workdir")
    workdir = Path(settings.workdir)
    if not any(workdir.glob("sweep-*/summary.json")):
        raise InputError(f"{workdir} holds no sweep: run jaxprune sweep first")
    lock.hold(workdir)
    page.write(workdir, workdir / NAME)
    process.finish(workdir / NAME)
