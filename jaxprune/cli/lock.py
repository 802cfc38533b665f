"""One process at a time in a run directory."""

import json
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jaxprune._base.errors import InputError
from jaxprune._base.files import clean, remove

_HELD = ExitStack()
# Seconds that a process that is just ending has to let go.
_PATIENCE = 1.0


def hold(workdir: Path) -> None:
    """Holds the run directory until `release`, and clears up after a killed process.

    The system lets go of the lock when the process dies, however it does. Hosts that
    share the folder see each other's locks as far as its file system passes them on.
    Where it knows no locks, the file's being there is the lock: what a killed process
    leaves is removed by the next one of its host.

    Raises:
      InputError: another process holds it; it is named. Or the path is no folder's.
    """
    _HELD.enter_context(_held(workdir))


def release() -> None:
    """Lets go of what is held."""
    _HELD.close()


@contextmanager
def _held(workdir: Path) -> Iterator[None]:
    made = [p for p in (workdir, *workdir.parents) if not p.exists()]
    _make(workdir)
    # Apart from the lock, which is filelock's own where the system has none.
    path, about = workdir / ".lock", workdir / ".holder"
    lock = FileLock(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a system without locks
            lock.acquire(timeout=_PATIENCE)
    except Timeout:
        gone = f"; if it is gone, remove {path}" if hasattr(lock, "pid") else ""
        raise InputError(
            f"{workdir} is in use by {_holder(about)}: wait until it ends, or give "
            f"another --workdir{gone}"
        ) from None
    try:
        remove(about)  # whatever it is
        about.write_text(json.dumps(_this_process()), encoding="utf-8")
        clean(workdir)
        yield
    finally:
        remove(about)
        # Before it is let go: whoever has opened the file by now sees that it is gone.
        path.unlink(missing_ok=True)
        lock.release()
        for folder in made:  # where nothing was written, nothing is left
            with suppress(OSError):
                folder.rmdir()


def _make(workdir: Path) -> None:
    """Makes the folder, where there is none."""
    for path in (workdir, *workdir.parents):
        if os.path.lexists(path) and not path.is_dir():
            raise InputError(f"{path} is no folder: give another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)


def _this_process() -> dict[str, str]:
    return {
        "process": f"{os.getpid()} on {socket.gethostname()}",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(shlex.join(sys.orig_argv).split())[:200],
    }


def _holder(path: Path) -> str:
    """Who holds the lock, as far as it says."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"process {about['process']} since {about['since']} ({about['command']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
