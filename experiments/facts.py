"""What a reader must know to trust or repeat a result."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.choices import Choices
from experiments.job import Job
from jaxprune.data import datasets
from jaxprune.networks import checkpoint
from jaxprune.sweep.result import SweepResult

_OF_A_SWEEP = (
    "layer", "criterion", "fill", "weights", "tap", "rank_split", "select_split",
    "eval_split", "calibration_split", "ridge", "config", "data",
)  # fmt: skip
_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "optax", "numpy")


def describe(run: Job, choices: Choices, fill: str, variables: Any) -> dict[str, Any]:
    """Network, choices, device, versions and commit; JSON-able."""
    return {
        "layer": choices.layer,
        "criterion": choices.criterion,
        "fill": fill,
        "tap": choices.tap,
        "rank_split": choices.rank_split,
        "select_split": choices.select_split,
        "eval_split": choices.eval_split,
        "overlaps": overlaps(run, choices),
        **choices.calibration(fill),
        **network(run, variables),
    }


def overlaps(run: Job, choices: Choices) -> list[str]:
    """What was done on images that it should not know, in words; best if empty."""
    done = {
        "trained": run.config.train_split,
        "ranked": choices.rank_split,
        "chosen": choices.select_split,
    }
    lines = _on_images(run, done, choices.eval_split, "reported")
    if choices.select_split != choices.eval_split:
        del done["chosen"]
        lines += _on_images(run, done, choices.select_split, "that K is chosen on")
    return lines


def _on_images(run: Job, done: dict[str, str], which: str, role: str) -> list[str]:
    """What was done on some, or all, images of a split."""
    images = len(datasets.choose_split(run.splits, which))
    by_count: dict[int, list[str]] = {}
    for what, split in done.items():
        shared = datasets.overlap(run.splits, split, which)
        by_count.setdefault(shared, []).append(what)
    by_count.pop(0, None)
    return [
        f"{_listed(what)} on {'' if n == images else f'{n:,} of '}the images {role}"
        for n, what in by_count.items()
    ]


def _listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def network(run: Job, variables: Any) -> dict[str, Any]:
    """Network, device, versions and commit; JSON-able."""
    return {
        "model": run.config.model,
        "dataset": run.config.dataset,
        "dtype": run.config.dtype,
        "seed": run.config.seed,
        "weights": checkpoint.fingerprint(variables),
        "config": dataclasses.asdict(run.config),
        "data": run.splits.fingerprint,
        "device": device(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
    }


def device() -> str:
    """Number and kind of the devices of all processes."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def differences(saved: SweepResult, facts: dict[str, Any]) -> list[str]:
    """What a saved sweep was made with that is otherwise now."""
    # An older sweep chose K on the images that it evaluated.
    about = {"select_split": saved.about.get("eval_split"), **saved.about}
    return differing(about, facts, _OF_A_SWEEP)


def differing(
    saved: dict[str, Any], facts: dict[str, Any], keys: Iterable[str]
) -> list[str]:
    """Which of the facts are otherwise than when something was saved."""
    found = []
    for key in keys:
        before, now = saved.get(key), json.loads(json.dumps(facts.get(key)))
        if isinstance(before, dict) and isinstance(now, dict):
            found += differing(before, now, sorted({*before, *now}))
        elif before != now:
            found.append(f"{key} is {before!s:.24}, not {now!s:.24}")
    return found


def _commit() -> str | None:
    """The commit of the source this runs from, if it lies in a git repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        here = Path(__file__).parent
        return subprocess.check_output(
            command, cwd=here, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
