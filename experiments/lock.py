"""One process at a time in a run directory."""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jaxprune.errors import InputError
from jaxprune.files import clean

_HELD = ExitStack()
# Seconds that a process that is just ending has to let go.
_PATIENCE = 1.0


def hold(workdir: Path) -> None:
    """Holds the run directory until `release`, and clears up after a killed process.

    The system lets go of the lock when the process dies, however it does. Hosts that
    share the folder see each other's locks as far as its file system passes them on.

    Raises:
      InputError: another process holds it; it is named.
    """
    _HELD.enter_context(_held(workdir))


def release() -> None:
    """Lets go of what is held."""
    _HELD.close()


@contextmanager
def _held(workdir: Path) -> Iterator[None]:
    made = [p for p in (workdir, *workdir.parents) if not p.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise InputError(
            f"{workdir} is in use by {_holder(path)}: wait until it ends, or give "
            "another --workdir"
        ) from None
    try:
        path.write_text(json.dumps(_this_process()))
        clean(workdir)
        yield
    finally:
        # Before it is let go: whoever has opened the file by now sees that it is gone.
        path.unlink(missing_ok=True)
        lock.release()
        for folder in made:  # where nothing was written, nothing is left
            with suppress(OSError):
                folder.rmdir()


def _this_process() -> dict[str, str]:
    return {
        "process": f"{os.getpid()} on {socket.gethostname()}",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.orig_argv)[:200],
    }


def _holder(path: Path) -> str:
    """Who holds the lock, as far as it says."""
    try:
        about = json.loads(path.read_text())
        return f"process {about['process']} since {about['since']} ({about['command']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
