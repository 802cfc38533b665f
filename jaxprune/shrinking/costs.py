"""What a network costs as a function of its groups' widths.

A layer's input and output features are those that no group has, and a number for each
unit that a group keeps. Both sides of a layer shrink, so that a cost is a sum of
products of two widths.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from jaxprune.channels import taps
from jaxprune.channels.flow import ChannelFlow, layer_of
from jaxprune.channels.groups import Groups

# Name of a group -> number of units that it keeps.
Widths = Mapping[str, int]
Number = int | float


@dataclass(frozen=True)
class Side:
    """Features on one side of a layer.

    Attributes:
      fixed: those that always stay.
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
    """A count that is `factor` times the features of two sides.

    Attributes:
      factor: for multiply-adds, positions times taps; for parameters, taps.
      inputs: features that a layer is given.
      outputs: features that it returns.
    """

    factor: int
    inputs: Side
    outputs: Side

    def count(self, widths: Widths) -> Number:
        """The count that is left."""
        return (
            self.factor * self.inputs.features(widths) * self.outputs.features(widths)
        )


@dataclass(frozen=True)
class Costs:
    """What a network costs, by its groups' widths.

    Attributes:
      whole: width of every group before anything is pruned.
      layers: multiply-adds for one input, of each convolution and dense layer.
      arrays: parameters, of each array of the variables.
    """

    whole: Widths
    layers: Mapping[str, Product]
    arrays: Mapping[str, Product]

    def multiply_adds(self, widths: Widths) -> Number:
        """Of all convolutions and dense layers, for one input."""
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
        self._inputs = self._rows(product.inputs for product in products)
        self._outputs = self._rows(product.outputs for product in products)

    def _rows(self, sides: Iterable[Side]) -> Float[np.ndarray, "K F"]:
        """Columns: what is fixed of a side, then what a unit of each group holds."""
        rows = ((s.fixed, *(s.per_unit.get(g, 0) for g in self._groups)) for s in sides)
        return np.array([*rows], float).reshape(-1, 1 + len(self._groups))

    def __call__(self, widths: Widths) -> float:
        kept = np.array([1, *(widths[group] for group in self._groups)])
        counts = (self._inputs @ kept) * (self._outputs @ kept)
        return float(self._factors @ counts)


def model_costs(apply: taps.Apply, variables: Any, x: Array, groups: Groups) -> Costs:
    """Reads from one trace how a network's cost depends on its groups' widths.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      x: an input; only its first example's shape is used.
      groups: of its channels.
    """
    flows = list(groups.groups.values())
    params = flatten_dict(variables, sep="/")
    arrays = {
        path: _product(path, np.shape(value), flows)
        for path, value in params.items()
        if jnp.issubdtype(np.asarray(value).dtype, jnp.inexact)
    }
    layers: dict[str, Product] = {}
    for layer in taps.list_layers(apply, variables, x[:1]):
        if isinstance(layer.module, nn.Conv | nn.Dense):
            kernel = arrays[f"params/{layer.name}/kernel"]
            positions = int(np.prod(layer.output.shape[:-1]))
            before = layers.get(layer.name)
            factor = positions * kernel.factor + (before.factor if before else 0)
            layers[layer.name] = Product(factor, kernel.inputs, kernel.outputs)
    return Costs({f.layer: f.channels for f in flows}, layers, arrays)


def _product(path: str, shape: tuple[int, ...], flows: list[ChannelFlow]) -> Product:
    """How an array's size follows from the groups that its last two axes hold."""
    layer = layer_of(path)
    if not shape:
        return Product(1, Side(1, {}), Side(1, {}))
    held = {
        f.layer: _per_unit(f, f.producers.get(layer, f.parameters.get(path)))
        for f in flows
    }
    outputs = _side(shape[-1], held, flows)
    if not path.endswith("/kernel"):
        return Product(int(np.prod(shape[:-1])), Side(1, {}), outputs)
    read = {f.layer: _per_unit(f, f.readers.get(layer)) for f in flows}
    return Product(int(np.prod(shape[:-2])), _side(shape[-2], read, flows), outputs)


def _per_unit(flow: ChannelFlow, owner: np.ndarray | None) -> float:
    """Features that belong to one of a group's units, on average."""
    return 0.0 if owner is None else float((owner >= 0).sum() / flow.channels)


def _side(
    features: int, per_unit: Mapping[str, float], flows: list[ChannelFlow]
) -> Side:
    held = sum(per_unit[f.layer] * f.channels for f in flows)
    return Side(features - held, {name: n for name, n in per_unit.items() if n})
