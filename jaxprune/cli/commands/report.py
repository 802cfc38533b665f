r"""Writes the report of a run directory, one HTML file, from saved files alone.

    jaxprune report --workdir=runs/cifar_vgg

Writes report.html there: a slider for K and everything that is known of the network
with K channels pruned, a slider for the budgets of the whole network. It needs no
network, and can be handed on; its links to smaller networks lead to files of the run
directory. `jaxprune sweep` and `jaxprune shrink` write it, too.
"""

from pathlib import Path

from jaxprune._base import processes
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
    made = (*workdir.glob("sweep-*/summary.json"), workdir / "shrink/summary.json")
    if not any(path.is_file() for path in made):
        raise InputError(
            f"{workdir} holds nothing to report: run jaxprune sweep or shrink first"
        )
    lock.hold(workdir)
    page.write(workdir, workdir / NAME)
    process.finish(workdir / NAME)


def write(workdir: Path) -> list[Path]:
    """Writes the page; its path, or none where something in the folder is damaged."""
    if not processes.is_first():
        return []
    try:
        page.write(workdir, workdir / NAME)
    except InputError as error:
        print(f"{NAME} is not written: {error}")
        return []
    return [workdir / NAME]
