"""Times of the networks, each framework's in a process of its own, in turns.

In a turn, a process calls each of its networks twice at each batch size: once so that
what the other process has pushed out of the caches is back, once for the clock.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.measure import Prepared, timed
from experiments.bench.plan import OURS, PYTORCH
from experiments.bench.race import Child
from experiments.bench.shrink.stages import ContestSettings
from jaxprune.cli import run_directory
from jaxprune.cli.weights import train_or_restore
from jaxprune.compaction.load import load_compact

WHOLE = "whole network"
WHAT = "latency"


def measure(
    folder: Path, batches: Sequence[int], turns: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Times the networks that lie in a folder, and the whole ones.

    Args:
      folder: where `Competitor.save` has written each, by framework and method.
      batches: numbers of images in a call.
      turns: timed calls of each network at each batch size.

    Returns:
      Framework -> method -> batch size -> median and quartiles in seconds.
    """
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child((by, WHAT), [f"--networks={folder}"], {}))
            for by in (OURS, PYTORCH)
        ]
        taken = [[child.turn()["seconds"] for child in children] for _ in range(turns)]
    return {
        child.key[0]: {
            name: {
                str(batch): _spread([turn[i][name][str(batch)] for turn in taken])
                for batch in batches
            }
            for name in taken[0][i]
        }
        for i, child in enumerate(children)
    }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return {
        "median": float(middle),
        "lower_quartile": float(low),
        "upper_quartile": float(high),
    }


def prepare(
    settings: ContestSettings, by: str, networks: Path
) -> tuple[Prepared, dict[str, Any]]:
    """A child's part: the framework's networks in a folder, ready to be timed."""
    batches = settings.batches()
    run = run_directory.load(
        settings, train_imported=False, alone=False
    )  # the parent holds the folder
    split = run.splits["test"]
    images = split.read(np.arange(max(batches)) % len(split))
    load = _ours if by == OURS else _theirs
    calls = load(run, networks, {batch: images[:batch] for batch in batches})
    for by_batch in calls.values():
        for call in by_batch.values():
            call()

    def turn() -> dict[str, Any]:
        seconds: dict[str, dict[str, float]] = {}
        for name, by_batch in calls.items():
            seconds[name] = {}
            for batch, call in by_batch.items():
                call()
                seconds[name][str(batch)] = timed(call)
        return {"seconds": seconds}

    return Prepared(turn), {}


# Name of a network -> batch size -> a call that waits for the result.
Calls = dict[str, dict[int, Callable[[], Any]]]


def _ours(
    run: run_directory.Run, folder: Path, images: Mapping[int, np.ndarray]
) -> Calls:
    whole = run.whole.function, train_or_restore(run)
    networks: dict[str, tuple[Any, Any]] = {WHOLE: whole}
    for path in folder.iterdir():
        small = load_compact(path)
        networks[path.name] = small.function, dict(small.arrays)
    inputs = {batch: jax.jit(run.scale)(x) for batch, x in images.items()}

    def calls(apply: Any, variables: Any) -> dict[int, Callable[[], Any]]:
        program = jax.jit(lambda variables, x: apply(variables, x))
        held = jax.device_put(variables)
        return {
            batch: partial(lambda x: jax.block_until_ready(program(held, x)), x)
            for batch, x in inputs.items()
        }

    return {name: calls(*network) for name, network in networks.items()}


def _theirs(
    run: run_directory.Run, folder: Path, images: Mapping[int, np.ndarray]
) -> Calls:
    import torch

    from experiments.bench import pytorch

    inputs = {batch: pytorch.scaled(run.config, x) for batch, x in images.items()}

    def calls(path: Path) -> dict[int, Callable[[], Any]]:
        # Written by this script a moment ago: what it holds is code of ours.
        network = torch.load(path, weights_only=False, map_location=pytorch.DEVICE)
        network = pytorch.compiled(pytorch.ready(network))

        @torch.inference_mode()
        def call(x: torch.Tensor) -> None:
            network(x)
            pytorch.finish()

        return {batch: partial(call, x) for batch, x in inputs.items()}

    return {path.name: calls(path) for path in folder.iterdir()}
