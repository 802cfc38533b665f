"""Provenance: facts that it takes to trust or repeat a result."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxprune._base import manifest
from jaxprune._base.errors import InputError
from jaxprune.cli import scoring
from jaxprune.cli.pruning_options import PruningOptions
from jaxprune.cli.run_directory import Run
from jaxprune.data import datasets
from jaxprune.results.load import AnyResult, load

_OF_A_SWEEP = (
    "weights", "tap", "rank_split", "select_split", "eval_split", "dtype", "precision",
    "calibration_split", "ridge", "loss_images", "config", "data",
)  # fmt: skip
_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "optax", "numpy")
# Of a network's framework, where it is no other's than these.
_FRAMEWORKS = {"Keras model": ("keras",), "Equinox module": ("equinox",)}


def describe(
    run: Run, choices: PruningOptions, fill: str, variables: Any
) -> dict[str, Any]:
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
        **scoring.facts(run, choices),
        **network(run, variables),
    }


def deciding(about: dict[str, Any]) -> dict[str, Any]:
    """The facts that decide a sweep's predictions, on any number of devices."""
    return {key: about.get(key) for key in (*_OF_A_SWEEP, "versions", "commit")}


def overlaps(run: Run, choices: PruningOptions) -> list[str]:
    """Overlaps of the splits, in words; best if empty."""
    done: dict[str, str | None] = {
        "trained": run.config.train_split,
        "ranked": choices.rank_split,
        "chosen": choices.select_split,
    }
    lines = _on_images(run, done, choices.eval_split, "reported")
    if choices.select_split != choices.eval_split:
        del done["chosen"]
        lines += _on_images(run, done, choices.select_split, "that K is chosen on")
    return lines


def _on_images(
    run: Run, done: Mapping[str, str | None], which: str, role: str
) -> list[str]:
    """The stages that used some, or all, images of a split."""
    images = len(datasets.choose_split(run.splits, which))
    by_count: dict[int, list[str]] = {}
    for what, split in done.items():
        if split is None:  # nobody knows
            continue
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


def network(run: Run, variables: Any) -> dict[str, Any]:
    """Network, device, versions and commit; JSON-able."""
    framework = getattr(run.whole.origin, "framework", "")
    packages = (*_PACKAGES, *_FRAMEWORKS.get(framework, ()))
    return {
        "model": run.config.model,
        "dataset": run.config.dataset,
        "dtype": run.config.dtype,
        "precision": run.settings.precision,
        "seed": run.config.seed,
        "weights": manifest.fingerprint(variables),
        "config": dataclasses.asdict(run.config),
        "data": run.splits.fingerprint,
        "device": device(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "commit": _commit(),
    }


def device() -> str:
    """Number and kind of the devices of all processes."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def differences(saved: AnyResult, facts: dict[str, Any]) -> list[str]:
    """The facts of a saved sweep that differ from today's."""
    return differing(saved.about, facts, _OF_A_SWEEP)


def saved_sweep(
    folder: Path, ks: tuple[int, ...], about: dict[str, Any]
) -> AnyResult | None:
    """The folder's sweep, if there is one, as it would be made again.

    None where another version of JAX has made it: sweeps are not compared across those.

    Raises:
      InputError: it was made otherwise.
    """
    if not (folder / "summary.json").exists():
        return None
    saved = load(folder)
    found = differences(saved, about)
    if saved.ks != ks:
        found.append(f"it has {len(saved.ks)} values of K, not these {len(ks)}")
    if found:
        raise InputError(
            f"{folder} holds another sweep: {'; '.join(found)}. Remove it, "
            "or give another --workdir"
        )
    versions = (facts.get("versions", {}).get("jax") for facts in (saved.about, about))
    if len({*versions}) > 1:
        return None
    return replace(saved, about={**saved.about, **about})


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
    """The commit of the source this runs from, if a git repository has it as its own.

    What pip has installed may lie in someone else's repository.
    """
    path = Path(__file__)
    where = path.relative_to(path.parents[2]).as_posix()
    if _git("ls-files", "--full-name", "--", path.name) != where:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40")


def _git(*arguments: str) -> str | None:
    """The output of git in this folder; None where it fails."""
    try:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL,
            text=True,
        ).strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
