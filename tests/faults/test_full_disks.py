"""A full disk: one line, nothing half-written, and with room again all goes on.

The disk is a small tmpfs where one may be mounted; a limit for each file otherwise.
"""

import shutil
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest

from canonical import content, difference, left_over
from forked import Faults
from runs import JOBS, Runs
from tally import trials

pytestmark = pytest.mark.slow
# Trials of each job, by place. Without a cache everything is compiled anew.
TRIALS = {
    ("train", "workdir"): 10, ("sweep", "workdir"): 8, ("compact", "workdir"): 8,
    ("shrink", "workdir"): 8, ("plot", "workdir"): 2, ("report", "workdir"): 2,
    ("train", "cache"): 4, ("shrink", "cache"): 1, ("sweep", "TMPDIR"): 5,
    ("compact", "TMPDIR"): 2,
}  # fmt: skip
# KiB of room beyond what is there: from none to enough for all.
ROOM = 0, 4, 16, 64, 256, 1024


@pytest.fixture(scope="module")
def runs(tmp_path_factory, starter):
    return Runs(tmp_path_factory.mktemp("full"), starter)


@contextmanager
def small_disk(folder, kib):
    """Yields whether a disk of this size could be mounted there."""
    folder.mkdir(exist_ok=True)
    options = f"size={max(kib, 4)}k"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def size(folder):
    """KiB that a tmpfs needs for a folder's files."""
    return sum(4 + -(-p.stat().st_size // 4096) * 4 for p in folder.rglob("*"))


@pytest.mark.parametrize(("script", "place"), TRIALS)
def test_full_disks(script, place, runs, starter, tally, tmp_path):
    """50 in all."""
    tally.kind = f"full disks: {place}"
    job = JOBS[script]
    expected = runs.expected(job)
    for seed in range(trials(TRIALS[script, place])):
        rng = np.random.default_rng([seed, *script.encode(), *place.encode()])
        folder = runs.begin(job)
        room = int(rng.choice(ROOM))
        there = size(folder / "run") if place == "workdir" else 0
        where = {"workdir": folder / "run", "cache": tmp_path / "cache"}
        disk = where.get(place, tmp_path / "tmp")
        if place == "workdir" and disk.exists():
            disk.rename(folder / "kept")
        with small_disk(disk, there + room) as mounted:
            if place == "workdir" and (folder / "kept").exists():
                shutil.copytree(folder / "kept", disk, dirs_exist_ok=True)
            faults = Faults(environment=_environment(place, disk))
            if not mounted:
                faults = Faults(file_bytes=1024 * room, environment=faults.environment)
            child = starter.start(
                job.script, *job.command, folder=folder, faults=faults
            )
            ended = child.wait()
            if place == "workdir":
                shutil.copytree(disk, folder / "after")
        if place == "workdir":
            shutil.rmtree(folder / "run")
            (folder / "after").rename(folder / "run")
        said = f"{script}, {place} with {room} KiB: {ended.code} {ended.text[-900:]}"
        tally.add(*_outcome(job, folder, ended, expected, said, starter))
        shutil.rmtree(folder)
    tally.close()


def _environment(place, disk):
    if place == "cache":
        return {"XDG_CACHE_HOME": str(disk)}
    return {"TMPDIR": str(disk)} if place == "TMPDIR" else {}


def _outcome(job, folder, ended, expected, said, starter):
    if ended.is_traceback:
        return "traceback", said
    if ended.code != 0 and not ended.is_refused:
        return "wrong", said
    done = starter.run(job.script, *job.command, folder=folder)
    if done.code != 0:
        return "lost", f"{said}; then {done.code} {done.text[-600:]}"
    what = difference(content(folder / "run"), expected)
    what = what or " ".join(left_over(folder / "run"))
    if what:
        return "wrong", f"{said}; then {what}"
    return ("equal" if ended.code == 0 else "refused"), ""
