"""Scripts as forked processes, which are cheap to start; what befalls them."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

# Seconds after which a script counts as hanging: a trial takes a few.
PATIENCE = 180.0


@dataclass(frozen=True)
class Faults:
    """What befalls a script.

    Attributes:
      at: the number of the change to files at which the signal comes; 0 for never.
      signal: that it gets then.
      file_bytes: beyond which no file can be written, as on a full disk.
      environment: variables to set.
    """

    at: int = 0
    signal: int = signal.SIGKILL
    file_bytes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a script ended.

    Attributes:
      code: its exit code; minus a signal's number; None of one that was hanging.
      text: what it printed, errors included.
      changes: how often it changed files; None where it did not live to tell.
    """

    code: int | None
    text: str
    changes: int | None

    @property
    def is_traceback(self) -> bool:
        """Whether it ended with a traceback, or with the system's own words."""
        own = (1, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
        return "Traceback (most" in self.text or self.code in own

    @property
    def error(self) -> str:
        """The last line that is not empty."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    @property
    def is_refused(self) -> bool:
        """Whether it ended with one line and the exit code of bad input."""
        lines = [line for line in self.text.splitlines() if "error:" in line]
        return self.code == 2 and len(lines) == 1 and self.error.startswith("error: ")


@dataclass(frozen=True)
class Child:
    """A script under way."""

    process: BaseProcess
    log: Path

    def send(self, number: int) -> None:
        """A signal, if the script still lives."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def wait(self, patience: float = PATIENCE) -> Ended:
        """How it ended; one that hangs is killed."""
        self.process.join(patience)
        code = self.process.exitcode
        if code is None:
            self.send(signal.SIGKILL)
            self.process.join()
        changes = self.log.with_suffix(".changes")
        count = int(changes.read_text()) if changes.exists() else None
        text = self.log.read_text(errors="replace")
        self.log.unlink()
        changes.unlink(missing_ok=True)
        return Ended(code, text, count)


class Starter:
    """Starts scripts, with one cache for all of them."""

    def __init__(self, logs: Path, cache: Path):
        self._context = multiprocessing.get_context("forkserver")
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        here = str(Path(__file__).parent)
        if here not in paths:  # the fork server's, which imports `children`
            os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, paths)])
        self._context.set_forkserver_preload(["children"])
        self._logs, self._cache, self._count = logs, cache, 0

    def start(
        self, script: str, *arguments: str, folder: Path, faults: Faults | None = None
    ) -> Child:
        """A script under way in `folder`."""
        faults = faults or Faults()
        environment = {"XDG_CACHE_HOME": str(self._cache), **faults.environment}
        faults = replace(faults, environment=environment)
        self._count += 1
        log = self._logs / f"{os.getpid()}-{self._count}.log"
        log.touch()  # where it does not live to make it
        process = self._context.Process(
            target=begin, args=(script, arguments, folder, log, faults)
        )
        process.start()
        return Child(process, log)

    def run(
        self, script: str, *arguments: str, folder: Path, faults: Faults | None = None
    ) -> Ended:
        """A script from its beginning to its end."""
        return self.start(script, *arguments, folder=folder, faults=faults).wait()


def begin(
    script: str, arguments: tuple[str, ...], folder: Path, log: Path, faults: Faults
) -> None:
    """What a child does. Its parent has no use for what `children` imports."""
    import children

    children.run(script, arguments, folder, log, faults)
