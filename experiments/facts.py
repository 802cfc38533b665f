"""What a reader must know to trust or repeat a result."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from experiments.choices import Choices
from experiments.job import Job
from jaxprune.networks import checkpoint
from jaxprune.sweep.result import SweepResult

_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "optax", "numpy")


def describe(run: Job, choices: Choices, fill: str, variables: Any) -> dict[str, Any]:
    """Network, choices, device, versions and commit; JSON-able."""
    return {
        "model": run.config.model,
        "dataset": run.config.dataset,
        "criterion": choices.criterion,
        "tap": choices.tap,
        "rank_split": choices.rank_split,
        "eval_split": choices.eval_split,
        **choices.calibration(fill),
        "dtype": run.config.dtype,
        "seed": run.config.seed,
        "weights": checkpoint.fingerprint(variables),
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
    return [
        f"{key} is {saved.about.get(key)!s:.24}, not {facts.get(key)!s:.24}"
        for key in (
            "weights",
            "tap",
            "rank_split",
            "eval_split",
            "dtype",
            "calibration_split",
            "ridge",
        )
        if saved.about.get(key) != facts.get(key)
    ]


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
