"""What a reader must know to trust or repeat a result."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from experiments import scoring
from experiments.choices import Choices
from experiments.job import Job
from jaxprune.errors import InputError
from jaxprune.networks import checkpoint
from jaxprune.sweep.result import SweepResult

_OF_A_SWEEP = (
    "weights", "tap", "rank_split", "eval_split", "dtype", "calibration_split", "ridge",
    "loss_images",
)  # fmt: skip
_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "optax", "numpy")


def describe(run: Job, choices: Choices, fill: str, variables: Any) -> dict[str, Any]:
    """Network, choices, device, versions and commit; JSON-able."""
    return {
        "criterion": choices.criterion,
        "tap": choices.tap,
        "rank_split": choices.rank_split,
        "eval_split": choices.eval_split,
        **choices.calibration(fill),
        **scoring.facts(run, choices),
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


def check_folder(folder: Path, ks: tuple[int, ...], about: dict[str, Any]) -> None:
    """Raises InputError if the folder holds a sweep that was made otherwise."""
    if not (folder / "summary.json").exists():
        return
    saved = SweepResult.load(folder)
    found = differences(saved, about)
    if saved.ks != ks:
        found.append(f"it has {len(saved.ks)} values of K, not these {len(ks)}")
    if found:
        raise InputError(
            f"{folder} holds another sweep: {'; '.join(found)}. Remove it, "
            "or give another --workdir"
        )


def differing(
    saved: dict[str, Any], facts: dict[str, Any], keys: Iterable[str]
) -> list[str]:
    """Which of the facts are otherwise than when something was saved."""
    return [
        f"{key} is {saved.get(key)!s:.24}, not {facts.get(key)!s:.24}"
        for key in keys
        if saved.get(key) != facts.get(key)
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
