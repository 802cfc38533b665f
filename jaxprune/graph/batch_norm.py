"""BatchNorm in training mode, read from the graph of a network in evaluation mode.

In evaluation mode a BatchNorm takes off a mean and divides by the root of a variance,
both of them parameters. Given a batch's own mean and variance in their place, it does
what it does in training, whichever framework it is of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune.graph.evaluate import Runner
from jaxprune.graph.network import Graph
from jaxprune.graph.trace import Program

# What frameworks call the mean that a BatchNorm takes off, and its variance.
NAMES = {
    "mean": "var",
    "moving_mean": "moving_variance",
    "running_mean": "running_var",
}
# Equinox keeps both in a tuple of its state.
_STATE, _PLACES = "state/", {"0": "1"}
_AFFINE = ("sub", "mul", "add", "add_any", "div", "convert_element_type")


@dataclass(frozen=True)
class Statistic:
    """A mean or a variance.

    Attributes:
      path: the leaf that keeps it.
      value: what is used: the leaf, or the leaf divided by a number.
      divisor: that number's value, if there is one.
    """

    path: str
    value: int
    divisor: int | None


@dataclass(frozen=True)
class BatchNorm:
    """One call of a BatchNorm.

    Attributes:
      mean: what it takes off.
      variance: what it divides by the root of.
      value: its input.
      axes: of the input, those that are averaged over.
    """

    mean: Statistic
    variance: Statistic
    value: int
    axes: tuple[int, ...]


class BatchNorms(NamedTuple):
    """Those of a network.

    Attributes:
      found: every call, in order of execution.
      others: paths of means that are used in another way, as inside a loop.
    """

    found: list[BatchNorm]
    others: list[str]


class Moments(NamedTuple):
    """Mean and mean square over a batch, as float32 with the input's axes."""

    mean: Array
    square: Array

    @property
    def variance(self) -> Array:
        """The batch's own, biased, as frameworks use it in training."""
        return jnp.maximum(self.square - self.mean**2, 0)


def find_batch_norms(graph: Graph) -> BatchNorms:
    """The BatchNorms: where a batch meets a mean, or its variance, for the first time.

    Some compute (x - mean) / root, some x / root - mean / root.
    """
    program, found, others = graph.program, [], []
    for paths in _pairs(program):
        inputs = _inputs(program, paths)
        if inputs is None:
            others.append(paths[0])
        for value in inputs or ():
            axes = _averaged(graph, paths, value)
            if axes:
                mean, variance = (_statistic(program, path) for path in paths)
                found.append(BatchNorm(mean, variance, value, axes))
    order = {value: number for number, value in enumerate(program.batch)}
    order |= {out: e.number for e in program.every for out in e.outputs}
    return BatchNorms(sorted(found, key=lambda norm: order[norm.value]), others)


def normalised_by_batch(
    graph: Graph, arrays: Mapping[str, Any], batch: Any, norms: Sequence[BatchNorm]
) -> tuple[Any, list[Moments]]:
    """What the network returns where BatchNorms use the batch's own statistics.

    Args:
      graph: the network, for the batch's shape.
      arrays: its leaves by path.
      batch: its inputs.
      norms: those that do so, in order of execution; the others use what they keep.

    Returns:
      The network's results, and the moments of what each of these norms is given.
    """
    program, moments = graph.program, []
    runner = Runner(program, {}, {}, None, False)
    env = runner.start(arrays, batch, {})
    for norm in norms:
        runner.equations(program.needed([norm.value], env), env)
        wide = env[norm.value].astype(jnp.float32)
        found = Moments(*(a.mean(norm.axes, keepdims=True) for a in (wide, wide**2)))
        for statistic, number in (
            (norm.mean, found.mean),
            (norm.variance, found.variance),
        ):
            kind = program.types[statistic.value]
            env[statistic.value] = number.reshape(kind.shape).astype(kind.dtype)
        moments.append(found)
    runner.equations(program.needed(program.results, env), env)
    results = [env[value] for value in program.results]
    return jax.tree.unflatten(program.output, results), moments


def kept(
    graph: Graph, arrays: Mapping[str, Any], statistic: Statistic, number: Any
) -> Array:
    """A mean or variance as its leaf keeps it."""
    number = jnp.asarray(number)
    if statistic.divisor is not None:
        program = graph.program
        runner = Runner(program, {}, {}, None, False)
        env = runner.start(arrays, None, {})
        runner.equations(program.needed([statistic.divisor], env), env)
        number = number * env[statistic.divisor]
    before = arrays[statistic.path]
    return number.reshape(jnp.shape(before)).astype(before.dtype)


def _pairs(program: Program) -> Iterator[tuple[str, str]]:
    """Paths of leaves that may be a mean and its variance."""
    for path in program.leaves:
        module, slash, name = path.rpartition("/")
        names = _PLACES if path.startswith(_STATE) else NAMES
        variance = f"{module}{slash}{names.get(name, '')}"
        if variance in program.leaves and variance != path:
            shapes = (program.shape(program.leaves[p]) for p in (path, variance))
            if len({*shapes}) == 1:
                yield path, variance


def _inputs(program: Program, paths: tuple[str, str]) -> list[int] | None:
    """The input of each call; None if they meet the batch in another way."""
    leaves = [program.leaves[path] for path in paths]
    fixed = program.behind(leaves) - program.live
    found: list[int] = []
    inside: set[int] = set()  # from where it begins to its result
    for eqn in program.equations:
        live = [value for value in eqn.inputs if value in program.live]
        own = not fixed.isdisjoint(eqn.inputs)
        if not live or not (own or inside.intersection(live)):
            continue
        affine = len(live) == 1 and eqn.name in _AFFINE
        if affine:
            if live[0] not in inside:
                found.append(live[0])
            inside.update(eqn.outputs)
        elif own:
            return None
    return found


def _averaged(graph: Graph, paths: tuple[str, str], value: int) -> tuple[int, ...]:
    """The axes of an input that its statistics do not have; none if it has none.

    They are aligned with the input somewhere, and keep their labels on the way there.
    """
    program, labels = graph.program, graph.labels
    rank = len(program.shape(value))
    for path in paths:
        leaf = program.leaves[path]
        own = [
            axis.tobytes()
            for axis in labels.leaf(path)
            if len(program.shape(leaf)) < rank or len(axis) > 1
        ]
        for other in sorted(program.behind([leaf]) - program.live):
            if len(program.shape(other)) == rank:
                axes = [axis.tobytes() for axis in labels.values[other]]
                rest = tuple(a for a, axis in enumerate(axes) if axis not in own)
                if len(rest) < rank:
                    return rest
                break
    return ()


def _statistic(program: Program, path: str) -> Statistic:
    """A leaf, or what a number makes of it before it is used."""
    leaf = program.leaves[path]
    readers = program.read_by[leaf]
    if len(readers) == 1 and readers[0].name == "div":
        number = readers[0].inputs[1]
        if readers[0].inputs[0] == leaf and program.shape(number) == ():
            return Statistic(path, readers[0].outputs[0], number)
    return Statistic(path, leaf, None)
