"""A script's main in a forked process, with what is to befall it.

The fork server imports this module, and with it all that takes time, once: a child
starts in hundredths of a second. No backend of JAX is there before the fork.
"""

import importlib
import os
import resource
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = ""  # one device, as a user's CPU has
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "standard"

from forked import Faults
from jaxprune.graph import sizes
from jaxprune.sweep import checkpoint

# What the scripts import, some of it only when they run.
for _name in (
    "filelock", "matplotlib.pyplot", "scipy.stats", "sklearn.datasets",
    "sklearn.model_selection", "tqdm", "jaxprune.training.checkpoint",
    "jaxprune.report.criteria",
):  # fmt: skip
    importlib.import_module(_name)
# What changes files, as Python's audit hooks see it before it is done.
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def run(
    script: str, arguments: tuple[str, ...], folder: Path, log: Path, faults: Faults
) -> None:
    """Runs a script as `python -m` does, in `folder`; what it prints goes to `log`.

    The number of changes to files goes to `log` with the suffix .changes.
    """
    os.chdir(folder)
    os.environ.update(faults.environment)
    file = os.open(log, os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [script, *arguments]
    sys.orig_argv = [sys.executable, "-m", f"experiments.{script}", *arguments]
    module = importlib.import_module(
        "experiments.bench.__main__"
        if script == "bench"
        else f"jaxprune.cli.commands.{script}"
    )
    from jaxprune.cli import process

    changes = _Changes(folder, faults)
    sys.addaudithook(changes)
    if faults.file_bytes is not None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults.file_bytes, limit))
    # Small enough that a tiny sweep has several files to go on from.
    sizes._CPU_ELEMENTS = 2000
    checkpoint._SECONDS = 0.0
    try:
        process.run(module.main)
    finally:
        changes.over = True
        sys.stdout.flush()
        log.with_suffix(".changes").write_text(str(changes.count))


class _Changes:
    """Counts changes to files in a folder, and sends the signal at one of them."""

    def __init__(self, folder: Path, faults: Faults):
        self.folder, self.faults = str(folder), faults
        self.count, self.over = 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.over or not (event in _CHANGES or event == "open"):
            return
        path = arguments[0]
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if isinstance(path, int) or not self._is_inside(os.fsdecode(path)):
            return
        self.count += 1
        if self.count == self.faults.at:
            os.kill(os.getpid(), self.faults.signal)

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self.folder) or not path.startswith("/")
