"""Two processes at once in one run directory: each ends well, or says who is there.

Whoever was refused is started again, and then all is there as if they had come one
after the other.
"""

import re
import shutil
import time

import numpy as np
import pytest

from canonical import content, difference, left_over
from runs import COMPACT, JOBS, Job, Runs
from tally import trials

pytestmark = pytest.mark.slow
PAIRS = {
    "train, train": 8, "train, another seed": 6, "train, sweep": 6, "sweep, sweep": 6,
    "sweep, compact": 6, "compact, compact": 6, "shrink, compact": 4, "plot, plot": 2,
    "plot, sweep": 4, "report, sweep": 2,
}  # fmt: skip
AFTER_TRAINING = JOBS["train"], JOBS["sweep"]
OTHER_SEED = Job("train", ("--seed=1",))
OTHER_K = Job("compact", tuple(a.replace("--k=3", "--k=5") for a in COMPACT))
WHAT = {
    "train, train": (JOBS["train"], JOBS["train"]),
    "train, another seed": (JOBS["train"], OTHER_SEED),
    "train, sweep": (JOBS["train"], JOBS["train and sweep"]),
    "sweep, sweep": (JOBS["sweep"], JOBS["sweep"]),
    "sweep, compact": (JOBS["sweep"], JOBS["compact"]),
    "compact, compact": (JOBS["compact"], OTHER_K._replace(before=(JOBS["train"],))),
    "shrink, compact": (JOBS["shrink"], JOBS["compact"]),
    "plot, plot": (JOBS["plot"], JOBS["plot"]),
    "plot, sweep": (JOBS["plot"], JOBS["sweep"]._replace(before=AFTER_TRAINING)),
    "report, sweep": (JOBS["report"], JOBS["sweep"]),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, starter):
    return Runs(tmp_path_factory.mktemp("pairs"), starter)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name, runs, starter, tally):
    """50 in all."""
    tally.kind = "pairs of processes"
    one, other = WHAT[name]
    alternatives = name == "train, another seed"
    for seed in range(trials(PAIRS[name])):
        rng = np.random.default_rng([seed, *name.encode()])
        folder = runs.begin(one)
        both = [one, other][:: 1 if rng.random() < 0.5 else -1]
        children = []
        for job in both:
            children.append(starter.start(job.script, *job.command, folder=folder))
            time.sleep(rng.choice([0, rng.uniform(0, 0.2), rng.uniform(0, 2)]))
        ended = [child.wait() for child in children]
        said = f"{name}: {[(e.code, e.text[-500:]) for e in ended]}"
        if any(e.is_traceback for e in ended):
            tally.add("traceback", said)
        elif not all(e.code == 0 or _is_told(e, alternatives) for e in ended):
            tally.add("wrong", said)
        elif alternatives:
            winner = both[[e.code for e in ended].index(0)]
            tally.add(*_compare(folder, runs.expected(winner), said))
        else:
            again = [
                starter.run(job.script, *job.command, folder=folder)
                for job, e in zip(both, ended, strict=True)
                if e.code != 0
            ]
            assert all(e.code == 0 for e in again), [e.text for e in again]
            done = runs.after((*one.before, one, other))
            tally.add(*_compare(folder, content(done / "run"), said))
        shutil.rmtree(folder)
    tally.close()


def _is_told(ended, alternatives):
    """Whether a process was told, in one line, who is there or has been."""
    by = r"run is in use by (process \d+ on .* since 20|another process)"
    there = by + ("|run holds another configuration: seed is" if alternatives else "")
    return ended.is_refused and re.search(there, ended.error)


def _compare(folder, expected, said):
    what = difference(content(folder / "run"), expected)
    what = what or " ".join(left_over(folder / "run"))
    outcome = "lost" if "missing" in what else "wrong" if what else "equal"
    return outcome, f"{said} {what}"
