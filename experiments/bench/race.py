"""Processes that take turns: each makes one timed run when it is told to.

A child writes one line of JSON when it is ready, and one for each line that it reads.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from experiments.bench.measure import Prepared
from experiments.bench.plan import Key, Measured
from jaxprune._base.errors import InputError
from jaxprune.cli import cluster


def race(
    keys: Sequence[Key],
    runs: int,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    on_run: Callable[[], Any] = lambda: None,
) -> dict[Key, Measured]:
    """Measures a few things in turns: A B A B.

    Args:
      keys: measurements.
      runs: timed runs of each.
      arguments: more flags for the children.
      environment: more variables for the children.
      on_run: called when a child is ready, and after each timed run.

    Raises:
      InputError: a measurement failed; the line says why.
    """
    with ExitStack() as stack:
        # One after another, so that nothing else runs while one compiles.
        children: list[Child] = []
        for key in keys:
            child = Child(key, arguments, environment or {})
            children.append(stack.enter_context(child))
            on_run()
        turns: list[list[dict[str, Any]]] = []
        for _ in range(runs):
            turns.append([])
            for child in children:
                turns[-1].append(child.turn())
                on_run()
        return {
            child.key: _measured(child, [row[i] for row in turns])
            for i, child in enumerate(children)
        }


def _measured(child: "Child", turns: Sequence[dict[str, Any]]) -> Measured:
    ready = child.ready
    facts = {**ready["facts"], **turns[-1]}
    compiling = [t["compile_seconds"] for t in turns if "compile_seconds" in t]
    facts["compile_seconds"] = (
        float(np.median(compiling)) if compiling else ready["compile_seconds"]
    )
    return Measured(
        *child.key,
        seconds=tuple(t["seconds"] / ready["share"] for t in turns),
        share=ready["share"],
        extrapolated=ready["extrapolated"] or ready["share"] < 1,
        facts=facts,
    )


class Child:
    """A process for one measurement; leaving the context ends it.

    Attributes:
      key: its measurement.
      ready: line that it wrote when it was ready.
    """

    def __init__(
        self, key: Key, arguments: Sequence[str], environment: Mapping[str, str]
    ):
        self.key = key
        self.ready: dict[str, Any] = {}
        self._command = [
            sys.executable, "-m", "experiments.bench", *sys.argv[1:],
            f"--measure={':'.join(key)}", *arguments,
        ]  # fmt: skip
        self._environment = {**os.environ, **environment}

    def __enter__(self) -> "Child":
        cluster.say(f"measuring {', '.join(self.key)} ...")
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")
        # A session of its own: Ctrl-C reaches this process alone, which ends the child.
        self._process = subprocess.Popen(
            self._command, env=self._environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        try:
            self.ready = self._read()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def turn(self) -> dict[str, Any]:
        """One timed run.

        Raises:
          InputError: the child failed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is nothing to read, either
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        code = self._process.returncode
        lines = lines or [f"it ended with exit code {code} and no message"]
        line = next((x for x in reversed(lines) if "rror" in x), lines[-1])
        line = line.removeprefix("error: ")
        raise InputError(f"measuring {', '.join(self.key)} failed: {line}")

    def _end(self) -> None:
        with suppress(ProcessLookupError):  # its own children go with it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):
                file.close()  # type: ignore[union-attr]


def serve(prepare: Callable[[], tuple[Prepared, dict[str, Any]]]) -> None:
    """A child's part: prepares, says so, and makes a run for every line it reads.

    Args:
      prepare: returns the measurement, and facts for its row.
    """
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    # Whatever else is printed must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    prepared, facts = prepare()
    answer(
        {
            "share": prepared.share,
            "extrapolated": prepared.extrapolated,
            "compile_seconds": prepared.compile_seconds,
            "facts": {**facts, **(prepared.facts or {})},
        }
    )
    while True:
        lines.get()
        turn = prepared.turn()
        answer({**turn, "peak_memory_mb": prepared.peak_memory()})


def _listen(lines: "queue.Queue[str]") -> None:
    """Hands lines on; ends the process, whatever it does, when the parent has gone."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)
