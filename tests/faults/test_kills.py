"""A script that is killed and started again ends as if nothing had been.

Half of the kills come at one of the script's changes to files (renames among them), the
others at any time; some get a second one while they go on.
"""

import shutil
import signal
import time

import numpy as np
import pytest

from canonical import content, difference, left_over
from forked import Faults
from runs import JOBS, Runs
from tally import trials

pytestmark = pytest.mark.slow
KILLS = {
    "train": 24, "sweep": 14, "train and sweep": 10, "compare": 10, "compact": 12,
    "compact again": 8, "shrink": 12, "plot": 6, "report": 4,
}  # fmt: skip
# Beside kills: what asks a script to end, or stops it for a while.
ASKED = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, starter):
    return Runs(tmp_path_factory.mktemp("kills"), starter)


@pytest.mark.parametrize("name", KILLS)
def test_kills(name, runs, starter, tally, request):
    """100 in all."""
    tally.kind = "kills"
    job, rng = JOBS[name], np.random.default_rng([14, sorted(KILLS).index(name)])
    expected = runs.expected(job)
    folder = runs.begin(job)
    started = time.monotonic()
    changes = starter.run(job.script, *job.command, folder=folder).changes
    seconds = time.monotonic() - started
    assert not difference(content(folder / "run"), expected)
    for _ in range(trials(KILLS[name])):
        folder = runs.begin(job)
        tally.add(*_trial(job, folder, (changes, seconds), expected, starter, rng))
        shutil.rmtree(folder)
    tally.close()


def _trial(job, folder, whole, expected, starter, rng):
    """One or two kills, and a run that is left alone; how it ended, and what was done.

    Args:
      job: what is done.
      folder: where.
      whole: changes to files and seconds of a run that is left alone.
      expected: what is to be there then.
      starter: starts scripts.
      rng: draws.
    """
    history = [f"{job.script} {' '.join(job.arguments)}"]
    for _ in range(1 + (rng.random() < 0.3)):
        how, ended = _kill(job, folder, whole, starter, rng)
        history.append(f"{how}: {ended.code}")
        if ended.is_traceback:
            return "traceback", f"{history} {ended.text[-600:]}"
    done = starter.run(job.script, *job.command, folder=folder)
    if done.is_traceback:
        return "traceback", f"{history} {done.text[-1200:]}"
    if done.code != 0:
        return "lost", f"{history} {done.code} {done.text[-600:]}"
    found = content(folder / "run")
    if what := difference(found, expected):
        lost = "missing" in what
        return "lost" if lost else "wrong", f"{history} {what}"
    if rest := left_over(folder / "run"):
        return "wrong", f"{history} left: {rest}"
    return "equal", ""


def _kill(job, folder, whole, starter, rng):
    changes, seconds = whole
    number = rng.choice([signal.SIGKILL] * 8 + [*ASKED])
    if rng.random() < 0.5:
        at = int(rng.integers(1, changes + 1))
        faults = Faults(at=at, signal=int(number))
        ended = starter.run(job.script, *job.command, folder=folder, faults=faults)
        return f"signal {number} at change {at} of {changes}", ended
    child = starter.start(job.script, *job.command, folder=folder)
    delay = rng.uniform(0, seconds)
    if rng.random() < 0.2:  # a laptop is closed for a moment first
        time.sleep(delay / 2)
        child.send(signal.SIGSTOP)
        time.sleep(0.2)
        child.send(signal.SIGCONT)
        delay /= 2
    time.sleep(delay)
    child.send(int(number))
    return f"signal {number} after {delay:.2f} s of {seconds:.2f}", child.wait()
