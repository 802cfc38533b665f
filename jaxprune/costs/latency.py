"""How long a network takes at other widths: from layers that are timed here.

Each convolution and dense layer is timed by itself at a few numbers of input and output
features; in between, a straight line along either. What a network takes beyond its
layers is found from the whole one and a few narrower ones: some of it is there at any
width, some goes with the elements that layers return (pools, norms), some with the
parameters, which are read from memory in every call where they do not fit in a cache.

Axes: I, O numbers of features given and returned that a layer is timed at; M networks.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import nnls

from jaxprune._base.batch import size_of
from jaxprune.costs.clock import Clock
from jaxprune.costs.widths import Costs, Number, Widths
from jaxprune.graph.evaluate import contract, is_ours
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network

# Shares of the features that a layer is timed at, on either side.
_SHARES = (0.06, 0.25, 0.5, 0.75, 1.0)
# The largest multiple that widths may be rounded to: as many float32 numbers are in a
# register of AVX-512. An accelerator's matrix units take more at once.
_MULTIPLE, _ACCELERATOR_MULTIPLE = 16, 64
# What counts as being as fast: a layer's time differs by as much from one run to the
# next, and coarse widths cost accuracy for certain.
_AS_FAST = 1.15


@dataclass(frozen=True)
class Timed:
    """A layer's seconds.

    Attributes:
      given: numbers of input features, ascending [I].
      returned: numbers of output features, ascending [O].
      seconds: for each pair [I, O].
      positions: of its output, for one input of the network.
    """

    given: tuple[int, ...]
    returned: tuple[int, ...]
    seconds: Float[np.ndarray, "I O"]
    positions: int

    def at(self, given: Number, returned: Number) -> float:
        """Between the numbers that were timed, a straight line along each side."""
        column = [np.interp(returned, self.returned, row) for row in self.seconds]
        return float(np.interp(given, self.given, column))


class Rest(NamedTuple):
    """Seconds of a network's call that are not its layers'.

    Attributes:
      per_element: for each that layers return for one input.
      per_parameter: for each of the network.
      fixed: at any width.
    """

    per_element: float = 0.0
    per_parameter: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class LatencyTable:
    """Predicted seconds of a call, by widths.

    Attributes:
      batch: inputs of a call.
      costs: number of features of each layer.
      layers: timed layers.
      rest: seconds of a network beyond them.
    """

    batch: int
    costs: Costs
    layers: Mapping[str, Timed]
    rest: Rest

    def seconds(self, widths: Widths) -> float:
        """Of a call; `widths` of all groups."""
        beyond = np.dot(self.rest, self._causes(widths))
        return self.of_layers(widths) + float(beyond)

    def of_layers(self, widths: Widths) -> float:
        """Seconds of all layers, each by itself."""
        return sum(self.layer(name, widths) for name in self.layers)

    def with_rest(
        self, widths: Sequence[Widths], seconds: Float[np.ndarray, " M"]
    ) -> "LatencyTable":
        """The table with the rest of a few networks, the first of them the whole one.

        Found by least squares of the networks' relative errors, nothing negative.
        """
        causes = np.array([self._causes(each) for each in widths], float)
        layers = np.array([self.of_layers(each) for each in widths])
        weights = 1 / np.maximum(seconds, np.finfo(float).tiny)
        # Of one network alone, all is ascribed to elements: the first of equal columns.
        shares = causes / causes[0]
        found, _ = nnls(shares * weights[:, None], (seconds - layers) * weights)
        return replace(self, rest=Rest(*(found / causes[0])))

    def _causes(self, widths: Widths) -> tuple[Number, Number, Number]:
        """The quantities that the rest grows with, in its order."""
        return self._elements(widths), self.costs.parameters(widths), 1

    def layer(self, name: str, widths: Widths) -> float:
        """Seconds of one layer."""
        given, returned = self.costs.ends[name]
        return self.layers[name].at(given.features(widths), returned.features(widths))

    def _elements(self, widths: Widths) -> Number:
        return sum(
            timed.positions * self.costs.ends[name][1].features(widths)
            for name, timed in self.layers.items()
        )


def measure_latency(
    whole: Network,
    costs: Costs,
    x: Any,
    *,
    narrower: Sequence[tuple[Network, Widths]] = (),
    cache: Path | None = None,
    on_layer: Callable[[str], Any] = lambda name: None,
) -> LatencyTable:
    """Times a network's layers on this machine.

    Args:
      whole: the network.
      costs: see `jaxprune.costs.widths.network_costs`.
      x: one batch of inputs.
      narrower: cut from it, with the widths of all groups.
      cache: folder in which times are kept, by device and version.
      on_layer: called with each layer's name once it is timed.
    """
    clock = Clock(cache)
    found = whole.graph(x).layers
    layers = {}
    for name in costs.ends:
        if not found[name].in_a_loop:
            layers[name] = _time_layer(clock, found[name])
            on_layer(name)
    clock.save()
    networks = [whole, *(small for small, _ in narrower)]
    seconds = clock.measure_in_turns(networks, x)
    table = LatencyTable(size_of(x), costs, layers, Rest())
    return table.with_rest([costs.whole, *(widths for _, widths in narrower)], seconds)


def measure_multiple(
    whole: Network, costs: Costs, x: Any, *, cache: Path | None = None
) -> int:
    """What widths should be multiples of on this machine, by the largest layer's times.

    Args:
      whole: the network.
      costs: see `jaxprune.costs.widths.network_costs`.
      x: one batch of inputs.
      cache: see `measure_latency`.
    """
    clock = Clock(cache)
    layers = whole.graph(x).layers
    timed = [name for name in costs.ends if not layers[name].in_a_loop]
    if not timed:
        return 1
    largest = max(timed, key=lambda name: costs.layers[name].count(costs.whole))
    multiple = _fastest_multiple(clock, layers[largest])
    clock.save()
    return multiple


def _time_layer(clock: Clock, layer: Layer) -> Timed:
    groups = layer.groups
    each = layer.inputs // groups, layer.channels // groups
    if groups == 1:
        widths = [_grid(f) for f in each]
        pairs = [(i, o, 1) for i, o in itertools.product(*widths)]
    else:  # whole groups go: what is given follows from what is returned
        counts = _grid(groups)
        widths = [(each[0],), tuple(each[1] * g for g in counts)]
        pairs = [(each[0] * g, each[1] * g, g) for g in counts]
    seconds = [_seconds(clock, layer, *pair) for pair in pairs]
    grid = np.reshape(seconds, [len(w) for w in widths])
    shape = layer.program.shape(layer.product)
    positions = int(np.prod(shape)) // shape[0] // layer.channels
    return Timed(widths[0], widths[1], grid, positions)


def _seconds(
    clock: Clock, layer: Layer, given: int, returned: int, groups: int
) -> float:
    """Of a layer with other numbers of features, channels and groups."""
    program, axes = layer.program, layer.axes
    x = _resized(program.types[layer.input], axes.features, given)
    kernel = _resized(
        program.types[layer.kernel_value], axes.kernel_features, given // groups
    )
    kernel = _resized(kernel, axes.kernel_channels, returned)
    params = dict(layer.equation.params)
    if layer.kind == "conv":
        params["feature_group_count"] = groups
    shown = {k: v for k, v in params.items() if k in _SHOWN}
    by = " by jaxprune.conv" if is_ours(layer.equation) else ""
    described = f"{layer.equation.name}{by} {shown}"

    def product(kernel: Array, x: Array) -> Array:
        operands = (x, kernel) if layer.x == 0 else (kernel, x)
        result: Array = contract(layer.equation, *operands, params)
        return result

    return clock.time(product, kernel, x, described)


# Parameters that decide how long a contraction takes.
_SHOWN = (
    "dimension_numbers", "window_strides", "padding", "lhs_dilation", "rhs_dilation",
    "feature_group_count", "precision", "preferred_element_type",
)  # fmt: skip


def _resized(
    array: jax.ShapeDtypeStruct, axes: Sequence[int], size: int
) -> jax.ShapeDtypeStruct:
    """Some axes of so many elements together: the first of them has them all."""
    shape = list(array.shape)
    for axis in axes[1:]:
        shape[axis] = 1
    shape[axes[0]] = size
    return jax.ShapeDtypeStruct(tuple(shape), array.dtype)


def _fastest_multiple(clock: Clock, layer: Layer) -> int:
    """The multiple for widths, a power of two: the smallest that is as fast as any.

    All widths between two of the largest multiple's are as likely, given and returned
    alike.
    """
    on_cpu = jax.default_backend() == "cpu"
    largest = _MULTIPLE if on_cpu else _ACCELERATOR_MULTIPLE
    top = layer.channels // largest * largest
    if layer.groups != 1 or not top:
        return 1
    seconds = {
        width: _seconds(clock, layer, width, width, 1)
        for width in range(top - largest + 1, top + 1)
    }
    multiples = [2**i for i in range(largest.bit_length())]
    mean = {m: np.mean([seconds[-(-w // m) * m] for w in seconds]) for m in multiples}
    best = min(mean.values())
    return next(m for m in multiples if mean[m] <= _AS_FAST * best)


def _grid(features: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(features * share)) for share in _SHARES}))
