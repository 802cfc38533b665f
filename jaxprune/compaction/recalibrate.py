"""BatchNorm statistics estimated again, without training."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.adapters.networks import takes_network
from jaxprune.graph.batch_norm import (
    NAMES,
    find_batch_norms,
    kept,
    normalised_by_batch,
)
from jaxprune.graph.network import Network


@takes_network
def recalibrate(network: Network, inputs: Iterable[Array | np.ndarray]) -> Any:
    """Parameters with each BatchNorm's mean and variance as they are over `inputs`.

    Every batch is normalised by its own statistics, as in training. The mean and
    variance that are kept are those over all batches together.

    Args:
      network: the network in evaluation mode, or in its place a function or `apply`,
        and its variables.
      inputs: batches of one size.

    Returns:
      The parameters, in a tree like the network's.

    Raises:
      InputError: no inputs, or the network has no BatchNorm.
    """
    arguments.check_kind("inputs", inputs, Iterable, "batches of inputs")
    step = jax.jit(lambda arrays, x: _moments(network, arrays, x))
    sums: list[np.ndarray] = []
    count = 0
    for x in inputs:
        x = arguments.check_finite("a batch of inputs", x)
        if not x.size:
            raise InputError(f"a batch of inputs must hold some, got {list(x.shape)}")
        network = network.with_example(x)
        found = step(network.arrays, x)
        pairs = [np.asarray(pair, np.float64) for pair in found]
        sums = [a + b for a, b in zip(sums, pairs, strict=True)] if count else pairs
        count += 1
    if not count:
        raise InputError("inputs holds no batch")
    if not sums:
        raise InputError(
            "there is nothing to recalibrate: the network has no BatchNorm in "
            f"evaluation mode, which takes off a parameter called one of "
            f"{', '.join(NAMES)}"
        )
    return network.tree(_with_moments(network, [total / count for total in sums]))


def _moments(
    network: Network, arrays: Any, x: Array | np.ndarray
) -> list[tuple[Array, Array]]:
    """Mean and mean square of what each call of a BatchNorm is given."""
    graph = network.graph(x)
    norms = find_batch_norms(graph).found
    _, moments = normalised_by_batch(graph, arrays, x, norms)
    return [(found.mean, found.square) for found in moments]


def _with_moments(network: Network, moments: list[np.ndarray]) -> dict[str, Any]:
    """The network's arrays with these; of one that is called more often, the mean."""
    graph = network.graph()
    by_norm = defaultdict(list)
    norms = find_batch_norms(graph).found
    for norm, pair in zip(norms, moments, strict=True):
        by_norm[norm.mean, norm.variance].append(pair)
    arrays = dict(network.arrays)
    for statistics, pairs in by_norm.items():
        mean, square = np.mean(pairs, axis=0)
        variance = np.maximum(square - mean**2, 0)
        for statistic, number in zip(statistics, (mean, variance), strict=True):
            array = kept(graph, network.arrays, statistic, number)
            arrays[statistic.path] = np.asarray(array)
    return arrays
