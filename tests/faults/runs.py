"""Run directories as the scripts' campaigns begin with them, made once for each."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from canonical import content, left_over
from forked import Starter
from run_directories import SMALL

TIMES = ("--repeats=1", "--latency_batches=1")


class Job(NamedTuple):
    """A script's work.

    Attributes:
      script: its name.
      arguments: its own, beside those of the network.
      before: what has been done in the run directory when it starts.
    """

    script: str
    arguments: tuple[str, ...] = ()
    before: tuple["Job", ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """All its arguments."""
        network = () if self.script in ("plot", "report") else SMALL
        return (*network, *PLACE, *self.arguments)


PLACE = ("--workdir=run",)
TRAIN = Job("train")
SWEEP = Job("sweep", before=(TRAIN,))
COMPACT = ("--k=3", *TIMES, "--export=stablehlo")
JOBS = {
    "train": TRAIN,
    "sweep": SWEEP,
    "train and sweep": Job("sweep"),
    "compare": Job(
        "sweep", ("--criterion=abs_mean,l1", "--random_orders=1"), before=(TRAIN,)
    ),
    "compact": Job("compact", COMPACT, (TRAIN,)),
    "compact again": Job(
        "compact", ("--k=3", *TIMES), (TRAIN, Job("compact", ("--k=3", *TIMES)))
    ),
    "shrink": Job(
        "shrink",
        ("--speedup=1.3", "--ladder=1.2", "--batch=4", "--multiple_of=1", *TIMES),
        (TRAIN,),
    ),
    "plot": Job("plot", before=(TRAIN, SWEEP)),
    "report": Job("report", before=(TRAIN, Job("sweep", ("--noreport",), (TRAIN,)))),
}


class Runs:
    """Folders with a run directory `run`, as jobs leave them."""

    def __init__(self, root: Path, starter: Starter):
        self._root, self._starter = root, starter
        self._made: dict[tuple[Job, ...], Path] = {}
        self._count = 0

    def after(self, jobs: Sequence[Job]) -> Path:
        """Where these jobs were done, one after another; not to be changed."""
        key = tuple(jobs)
        if key not in self._made:
            before = self.after(key[:-1]) if key else None
            folder = self._root / f"made{len(self._made)}"
            if before is None:
                folder.mkdir()
            else:
                shutil.copytree(before, folder)
                done = self._starter.run(
                    key[-1].script, *key[-1].command, folder=folder
                )
                assert done.code == 0, done.text
                assert not left_over(folder / "run")
            self._made[key] = folder
        return self._made[key]

    def begin(self, job: Job) -> Path:
        """A new folder, in which the job can start."""
        self._count += 1
        folder = self._root / f"trial{self._count}"
        shutil.copytree(self.after(job.before), folder)
        return folder

    def expected(self, job: Job) -> dict:
        """What the run directory holds when the job is done."""
        return content(self.after((*job.before, job)) / "run")
