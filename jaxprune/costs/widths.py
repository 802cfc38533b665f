"""The cost of a network as a function of its groups' widths.

An axis of an array has indices that no group has, and a number for each unit that a
group keeps. Several axes of a contraction can shrink, so that a cost is a sum of
products of widths.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxprune.costs.multiply_adds import of_layer
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import IMAGES, Graph, Network
from jaxprune.graph.trace import Program

# Name of a group -> number of units that it keeps.
Widths = Mapping[str, int]
Number = int | float


@dataclass(frozen=True)
class Side:
    """An axis.

    Attributes:
      fixed: indices that always stay.
      per_unit: by group, how many belong to one of its units.
    """

    fixed: Number
    per_unit: Mapping[str, float]

    def features(self, widths: Widths) -> Number:
        """How many are left."""
        held = (each * widths[group] for group, each in self.per_unit.items())
        return self.fixed + sum(held)


@dataclass(frozen=True)
class Product:
    """A count that is `factor` times the lengths of the axes that can shrink.

    Attributes:
      factor: for multiply-adds, positions and taps among others.
      sides: the axes.
    """

    factor: Number
    sides: tuple[Side, ...]

    def count(self, widths: Widths) -> Number:
        """The count that is left."""
        count = self.factor
        for side in self.sides:
            count *= side.features(widths)
        return count


@dataclass(frozen=True)
class Costs:
    """The cost of a network, by its groups' widths.

    Attributes:
      whole: width of every group before anything is pruned.
      layers: multiply-adds for one input, of each contraction.
      arrays: parameters, of each array.
      ends: of contractions with a kernel, the features that are given and the channels
        that are returned; not of those of which several axes can shrink.
    """

    whole: Widths
    layers: Mapping[str, Product]
    arrays: Mapping[str, Product]
    ends: Mapping[str, tuple[Side, Side]]

    def multiply_adds(self, widths: Widths) -> Number:
        """Of all contractions, for one input."""
        return self._multiply_adds(widths)

    def parameters(self, widths: Widths) -> Number:
        """Weights and BatchNorm statistics."""
        return self._parameters(widths)

    @cached_property
    def _multiply_adds(self) -> "_Total":
        return _Total(self.layers.values(), self.whole)

    @cached_property
    def _parameters(self) -> "_Total":
        return _Total(self.arrays.values(), self.whole)


class _Total:
    """The sum of products' counts, which greedy descent asks for thousands of times."""

    def __init__(self, products: Collection[Product], groups: Iterable[str]):
        self._groups = list(groups)
        self._factors = np.array([product.factor for product in products], float)
        most = max((len(product.sides) for product in products), default=0)
        self._sides = [self._rows(products, i) for i in range(most)]

    def _rows(self, products: Collection[Product], i: int) -> Float[np.ndarray, "K F"]:
        """Columns: what is fixed of a side, then what a unit of each group holds."""
        one = Side(1, {})
        sides = [(*product.sides, *[one] * (i + 1))[i] for product in products]
        rows = ((s.fixed, *(s.per_unit.get(g, 0) for g in self._groups)) for s in sides)
        return np.array([*rows], float).reshape(-1, 1 + len(self._groups))

    def __call__(self, widths: Widths) -> float:
        kept = np.array([1, *(widths[group] for group in self._groups)])
        counts = self._factors.copy()
        for side in self._sides:
            counts *= side @ kept
        return float(counts.sum())


def network_costs(network: Network) -> Costs:
    """Reads from a network's graph how its cost depends on its groups' widths.

    Args:
      network: the network, with an example.
    """
    graph = network.graph()
    program, axes = graph.program, _Axes(graph)
    arrays = {
        path: axes.product((value, axis) for axis in range(len(program.shape(value))))
        for path, value in program.leaves.items()
        if jnp.issubdtype(program.types[value].dtype, jnp.inexact)
    }
    whole = {name: group.units for name, group in graph.groups.groups.items()}
    layers = {
        name: _of_layer(layer, axes, program, whole)
        for name, layer in graph.layers.items()
    }
    ends = {
        name: found
        for name, layer in graph.layers.items()
        if layer.kernel is not None and (found := _ends(layer, axes)) is not None
    }
    return Costs(whole, layers, arrays, ends)


class _Axes:
    """The axes of a network's values, by the groups whose units lie on them."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._groups = graph.groups.groups
        # By the root of a label, the number of the group that has it; else -1.
        self._group_of = np.full(graph.labels.unions.count, -1)
        for number, group in enumerate(self._groups.values()):
            for (path, axis), owner in group.leaves.items():
                roots = graph.labels.roots(graph.program.leaves[path], axis)
                self._group_of[roots[owner >= 0]] = number

    def is_read(self, layer: Layer) -> bool:
        """Whether a layer sums over its features, see `Labels.is_read`."""
        return self._graph.labels.is_read(layer)

    def side(self, value: int, axis: int) -> Side:
        """An axis of a value."""
        numbers = self._group_of[self._graph.labels.roots(value, axis)]
        counts = np.bincount(numbers[numbers >= 0], minlength=len(self._groups))
        per_unit = {
            name: count / group.units
            for (name, group), count in zip(
                self._groups.items(), counts.tolist(), strict=True
            )
            if count
        }
        return Side(int((numbers < 0).sum()), per_unit)

    def product(self, axes: Iterable[tuple[int, int]]) -> Product:
        """Several axes: values and numbers of axes."""
        sides = [self.side(value, axis) for value, axis in axes]
        factor = math.prod(side.fixed for side in sides if not side.per_unit)
        return Product(factor, tuple(side for side in sides if side.per_unit))

    def joined(self, value: int, axes: Iterable[int]) -> Side | None:
        """Several axes as one; None where more than one can shrink."""
        found = self.product((value, axis) for axis in axes)
        if len(found.sides) > 1:
            return None
        (one,) = found.sides or (Side(1, {}),)
        held = {name: found.factor * count for name, count in one.per_unit.items()}
        return Side(found.factor * one.fixed, held)


def _of_layer(layer: Layer, axes: _Axes, program: Program, whole: Widths) -> Product:
    """The multiply-adds of a contraction."""
    sides = [(layer.product, axis) for axis in range(len(program.shape(layer.product)))]
    if axes.is_read(layer):
        sides += [(layer.input, axis) for axis in layer.axes.features]
    found = axes.product(sides)
    # Positions, taps, repeats: whatever no channel is on.
    rest = of_layer(layer) / IMAGES / found.count(whole)
    return Product(found.factor * rest, found.sides)


def _ends(layer: Layer, axes: _Axes) -> tuple[Side, Side] | None:
    """The features that are given and the channels that are returned."""
    given = axes.joined(layer.input, layer.axes.features)
    returned = axes.joined(layer.product, layer.axes.channels)
    return None if given is None or returned is None else (given, returned)
