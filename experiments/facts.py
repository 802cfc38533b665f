"""What a reader must know to trust or repeat a result."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from experiments.choices import Choices
from experiments.job import Job
from jaxprune.networks import checkpoint
from jaxprune.sweep.result import SweepResult

_OF_A_SWEEP = (
    "layer", "criterion", "fill", "weights", "tap", "rank_split", "eval_split",
    "calibration_split", "ridge", "config", "data",
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
        "eval_split": choices.eval_split,
        **choices.calibration(fill),
        **network(run, variables),
    }


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
    return differing(saved.about, facts, _OF_A_SWEEP)


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
