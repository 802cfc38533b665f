"""BatchNorm statistics estimated again, without training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.adapters.networks import takes_network
from jaxprune.graph.evaluate import Change, run
from jaxprune.graph.layers import MOVES, moved_leaf
from jaxprune.graph.network import Graph, Network

# What frameworks call the mean that a BatchNorm takes off, and its variance.
_NAMES = {
    "mean": "var",
    "moving_mean": "moving_variance",
    "running_mean": "running_var",
}


@dataclass(frozen=True)
class _Norm:
    """A BatchNorm.

    Attributes:
      mean: path of its mean.
      variance: path of its variance.
      value: its input.
      equation: number of the equation that takes the mean off.
      operand: number of that equation's operand that is the mean.
      axes: of the value, those that are averaged over.
    """

    mean: str
    variance: str
    value: int
    equation: int
    operand: int
    axes: tuple[int, ...]


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
    total: dict[tuple[str, str], np.ndarray] = {}
    count = 0
    for x in inputs:
        arguments.check_finite("a batch of inputs", x)
        network = network.with_example(x)
        for paths, pair in step(network.arrays, x).items():
            total[paths] = total.get(paths, 0) + np.asarray(pair, np.float64)
        count += 1
    if not total:
        raise InputError(
            "there is nothing to recalibrate: no inputs, or no BatchNorm in evaluation "
            "mode, which takes off a parameter called one of "
            f"{', '.join(_NAMES)}"
        )
    arrays = dict(network.arrays)
    for paths, (mean, square) in ((p, t / count) for p, t in total.items()):
        variance = np.maximum(square - mean**2, 0)
        for path, found in zip(paths, (mean, variance), strict=True):
            before = arrays[path]
            arrays[path] = found.reshape(np.shape(before)).astype(before.dtype)
    return network.tree(arrays)


def _moments(
    network: Network, arrays: Mapping[str, Any], x: Array
) -> dict[tuple[str, str], tuple[Array, Array]]:
    """Mean and mean square of what each BatchNorm is given, by its paths."""
    graph = network.graph(x)
    norms = _find_norms(graph)
    found: dict[tuple[str, str], tuple[Array, Array]] = {}
    before: dict[int, Change] = {}
    given: dict[int, Any] = {}
    program = graph.program
    # In order of execution: each is given what the ones before it have normalised.
    for norm in norms:
        (value,) = run(
            program, arrays, x, want=[norm.value], given=given, before=before
        )
        wide = value.astype(jnp.float32)
        mean, square = (a.mean(norm.axes, keepdims=True) for a in (wide, wide**2))
        found[norm.mean, norm.variance] = mean, square
        variance = program.leaves[norm.variance]
        shape, dtype = program.shape(variance), program.types[variance].dtype
        given[norm.value] = value
        given[variance] = (square - mean**2).reshape(shape).astype(dtype)
        before[norm.equation] = _with_mean(norm, mean)
    return found


def _with_mean(norm: _Norm, mean: Array) -> Change:
    def change(operands: list[Any]) -> list[Any]:
        operands = list(operands)
        like = operands[norm.operand]
        operands[norm.operand] = jnp.broadcast_to(mean, like.shape).astype(like.dtype)
        return operands

    return change


def _find_norms(graph: Graph) -> list[_Norm]:
    """The BatchNorms, in order: where a mean is taken off that has a variance."""
    program, found = graph.program, []
    for eqn in program.equations:
        for operand, value in enumerate(eqn.inputs) if eqn.name == "sub" else ():
            other = eqn.inputs[1 - operand]
            moved = moved_leaf(program, value, (*MOVES, "broadcast_in_dim"))
            if moved is None or other not in program.live:
                continue
            module, _, name = moved[0].rpartition("/")
            variance = f"{module}/{_NAMES.get(name, '')}".lstrip("/")
            if variance not in program.leaves:
                continue
            own = [axis.tobytes() for axis in graph.labels.leaf(moved[0])]
            labels = [axis.tobytes() for axis in graph.labels.values[value]]
            axes = tuple(a for a, axis in enumerate(labels) if axis not in own)
            if len(axes) < len(labels):
                norm = _Norm(moved[0], variance, other, eqn.number, operand, axes)
                found.append(norm)
    return found
