"""Layers: the contractions of a program, with the array that each is a product with.

A convolution or a dot product sums over features of what it is given. Its kernel is a
leaf of the parameters, or is computed of leaves; where both of its operands depend on
the batch, as in attention, it has none.

Axes: F input features, U output channels, T taps of a convolution, all as one axis
whatever the number and order of the axes that the code has for them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune.graph.trace import CONTRACTIONS, Equation, Program

# Operations that only move the elements of an array; each can be undone.
MOVES = (
    "reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p",
    "convert_element_type",
)  # fmt: skip
_ADDS = ("add", "add_any", "sub")


@dataclass(frozen=True, eq=False)
class Layer:
    """One call of a contraction.

    Attributes:
      name: from the path of its kernel, "block_1/conv"; a second call is "conv#2".
      kind: "conv", "dense", or "product" where both operands depend on the batch; "sum"
        for a sum over channels by itself, which is no layer of a network.
      equation: the contraction.
      program: that it is part of.
      x: number of the operand that is summed over; it depends on the batch.
      kernel: number of the operand that is the kernel; None for a product.
      leaf: path of the kernel, or of the largest array that it is computed of; None
        where it is a constant.
      output: the value that the layer returns, its bias added.
      bias: path of the bias; None where there is none.
      adds: the equations that add what is constant to the contraction's output.
      added: paths of the leaves that are added there.
      inner: the values on the way from the contraction to `output`.
      repeats: number of times that the loops around it run it.
    """

    name: str
    kind: str
    equation: Equation
    program: Program
    x: int
    kernel: int | None
    leaf: str | None
    output: int
    bias: str | None = None
    adds: tuple[Equation, ...] = ()
    added: tuple[str, ...] = ()
    inner: tuple[int, ...] = ()
    repeats: int = 1

    def __repr__(self) -> str:
        return f"Layer({self.name}, {self.kind}, {self.inputs} -> {self.channels})"

    @property
    def input(self) -> int:
        """The value that is summed over."""
        return self.equation.inputs[self.x]

    @property
    def kernel_value(self) -> int:
        """The value of the kernel."""
        assert self.kernel is not None
        return self.equation.inputs[self.kernel]

    @property
    def product(self) -> int:
        """The value that the contraction itself returns."""
        return self.equation.outputs[0]

    @property
    def groups(self) -> int:
        """Of a convolution: each group's outputs read that group's inputs alone."""
        count: int = self.equation.params.get("feature_group_count", 1)
        return count

    @cached_property
    def axes(self) -> "Axes":
        """Which axes of the operands and the result are summed over, and so on."""
        eqn = self.equation
        if self.kind == "sum":
            return Axes(tuple(eqn.params["axes"]), (), (), (), ())
        if self.kind == "conv":
            numbers = eqn.params["dimension_numbers"]
            return Axes(
                features=(numbers.lhs_spec[1],),
                kernel_features=(numbers.rhs_spec[1],),
                kernel_channels=(numbers.rhs_spec[0],),
                taps=tuple(numbers.rhs_spec[2:]),
                channels=(numbers.out_spec[1],),
            )
        (left, right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
        summed, batch = (left, right), (batch_left, batch_right)
        other = 1 - self.x
        ndim = [len(self.program.shape(value)) for value in eqn.inputs]
        free = [
            [a for a in range(ndim[i]) if a not in (*summed[i], *batch[i])]
            for i in range(2)
        ]
        first = len(batch_left) + (len(free[0]) if other == 1 else 0)
        return Axes(
            features=tuple(summed[self.x]),
            kernel_features=tuple(summed[other]),
            kernel_channels=tuple(free[other]),
            taps=tuple(batch[other]),
            channels=tuple(range(first, first + len(free[other]))),
        )

    @property
    def channels(self) -> int:
        """Number of output channels, U."""
        shape = self.program.shape(self.product)
        return int(np.prod([shape[axis] for axis in self.axes.channels]))

    @property
    def inputs(self) -> int:
        """Number of input features, F."""
        shape = self.program.shape(self.input)
        return int(np.prod([shape[axis] for axis in self.axes.features]))

    @property
    def products_per_output(self) -> int:
        """How many products are added up for one element of the result."""
        taps = 1
        if self.kind == "conv":
            shape = self.program.shape(self.kernel_value)
            taps = int(np.prod([shape[axis] for axis in self.axes.taps]))
        return taps * self.inputs // self.groups

    @property
    def described(self) -> str:
        """Its kind, for a message."""
        return {"conv": "a convolution", "dense": "a dense layer"}.get(
            self.kind, "a product of two values"
        )

    @property
    def in_a_loop(self) -> bool:
        """Whether the call is inside a loop or branch, where no value can be read."""
        return self.equation not in self.program.equations

    @property
    def takes_drop_alone(self) -> str:
        """How it reads features that nothing can be predicted for; "" otherwise."""
        if self.kernel is None:
            return "as a product of two values of an image"
        if self.in_a_loop:
            return "inside a loop or a branch"
        return "in several convolutions at once" if self.groups > 1 else ""

    def features(self, x: Any) -> Any:
        """The operand with its features on one last axis, [..., F]."""
        return together(x, self.axes.features)

    def from_features(self, features: Any) -> Any:
        """The inverse of `features`."""
        return apart(features, self.axes.features, self.program.shape(self.input))

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the operand's other axes, but for the images."""
        shape = self.program.shape(self.input)
        rest = [n for a, n in enumerate(shape) if a not in self.axes.features]
        return tuple(rest[1:])

    def outputs(self, y: Any) -> Any:
        """The result with its channels on one last axis, [..., U]."""
        return together(y, self.axes.channels)

    def from_outputs(self, y: Any, shape: Sequence[int] | None = None) -> Any:
        """The inverse of `outputs`; `shape` where that is not the whole network's."""
        whole = self.program.shape(self.product)
        return apart(y, self.axes.channels, whole if shape is None else shape)

    def rows(self, kernel: Any) -> Float[Any, "*taps F U"]:
        """The kernel with taps first, features and channels last."""
        axes = self.axes
        order = (*axes.taps, *axes.kernel_features, *axes.kernel_channels)
        moved = kernel.transpose(order)
        channels = int(np.prod([kernel.shape[a] for a in axes.kernel_channels]))
        taps = moved.shape[: len(axes.taps)]
        features = moved.size // channels // int(np.prod(taps))
        return moved.reshape(*taps, features, channels)

    def from_rows(self, rows: Any) -> Any:
        """The inverse of `rows`, for as many features and channels."""
        axes = self.axes
        shape = self.program.shape(self.kernel_value)
        order = (*axes.taps, *axes.kernel_features, *axes.kernel_channels)
        return rows.reshape([shape[a] for a in order]).transpose(np.argsort(order))


@dataclass(frozen=True)
class Axes:
    """Of a contraction.

    Attributes:
      features: of the operand, those that are summed over.
      kernel_features: the same of the kernel.
      kernel_channels: of the kernel, those that are left.
      taps: of the kernel, positions of a convolution, or axes that both operands share.
      channels: of the result, those of the kernel.
    """

    features: tuple[int, ...]
    kernel_features: tuple[int, ...]
    kernel_channels: tuple[int, ...]
    taps: tuple[int, ...]
    channels: tuple[int, ...]


def together(x: Any, axes: Sequence[int]) -> Any:
    """Some axes of an array as one, the last."""
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    if [*rest, *axes] == list(range(x.ndim)) and len(axes) == 1:
        return x
    moved = x.transpose((*rest, *axes))
    return moved.reshape(*moved.shape[: len(rest)], -1)


def apart(x: Any, axes: Sequence[int], shape: Sequence[int]) -> Any:
    """The inverse of `together`, where `shape` is the array's.

    Axes that are not put together may have another length now, and so may one alone.
    """
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    if [*rest, *axes] == list(range(len(shape))) and len(axes) == 1:
        return x
    if len(axes) > 1:
        x = x.reshape(*x.shape[:-1], *(shape[axis] for axis in axes))
    return x.transpose(np.argsort((*rest, *axes)))


def find_layers(program: Program) -> dict[str, Layer]:
    """All calls of contractions that depend on the batch, in order, by name."""
    found: dict[str, Layer] = {}
    calls: Counter[str] = Counter()
    for eqn, repeats in walk(program.equations):
        if eqn.name not in CONTRACTIONS or eqn.outputs[0] not in program.live:
            continue
        live = [value in program.live for value in eqn.inputs]
        x = live.index(True)
        kernel = None if all(live) else 1 - x
        leaf = None
        if kernel is not None:
            leaf = _main_leaf(program, eqn.inputs[kernel])
        name = layer_of(leaf, program) if leaf else _unnamed(eqn)
        calls[name] += 1
        if calls[name] > 1:
            name = f"{name}#{calls[name]}"
        kind = "product" if kernel is None else _KINDS[eqn.name]
        layer = Layer(
            name, kind, eqn, program, x, kernel, leaf, eqn.outputs[0], repeats=repeats
        )
        found[name] = layer if kernel is None else with_bias(layer)
    return found


_KINDS = {"conv_general_dilated": "conv", "dot_general": "dense"}


def _unnamed(eqn: Equation) -> str:
    return "/".join(filter(None, (eqn.scope, eqn.name)))


def walk(
    equations: Sequence[Equation], repeats: int = 1
) -> Iterator[tuple[Equation, int]]:
    """Equations, behind each those of its bodies, and how often they are run.

    A `while` is taken to run once: how often is not known.
    """
    for eqn in equations:
        yield eqn, repeats
        inside = repeats * int(eqn.params["length"] if eqn.name == "scan" else 1)
        for body in eqn.bodies:
            yield from walk(body.equations, inside)


def layer_of(path: str, program: Program) -> str:
    """The layer of a leaf: "params/block/conv/kernel" -> "block/conv".

    A leaf that lies at the top of its tree is a layer by itself.
    """
    parts = path.split("/")
    if program.in_collections and len(parts) > 1:
        parts = parts[1:]
    return "/".join(parts[:-1] or parts)


def _main_leaf(program: Program, value: int) -> str | None:
    """The largest leaf that a value is computed of."""
    paths = leaves_behind(program, value)
    sizes = {p: int(np.prod(program.shape(program.leaves[p]))) for p in paths}
    return max(sizes, key=sizes.__getitem__, default=None)


def leaves_behind(program: Program, value: int) -> list[str]:
    """Paths of all leaves that a value is computed of."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in program.path_of:
            found[program.path_of[value]] = None
        elif value in program.outer:
            waiting.append(program.outer[value])
        elif value in program.made_by:
            eqn = program.made_by[value]
            waiting += eqn.inputs
            waiting += [v for body in eqn.bodies for v in body.outputs]
    return list(found)


def with_bias(layer: Layer) -> Layer:
    """The layer with what its own parameters, or its offset, add to its output."""
    program = layer.program
    if layer.in_a_loop or (layer.leaf is None and layer.kind != "sum"):
        return layer
    own = layer_of(layer.leaf, program) if layer.leaf else layer.name
    value, adds, bias = layer.product, [], None
    way, inner, added = [layer.product], [], []
    while True:
        consumers = program.read_by[value]
        if len(consumers) != 1 or consumers[0].name not in (*_ADDS, *_CASTS):
            break
        (eqn,) = consumers
        if eqn.name in _CASTS:
            following = program.read_by[eqn.outputs[0]]
            if len(following) != 1 or following[0].name not in _ADDS:
                break
            value = eqn.outputs[0]
            way.append(value)
            continue
        others = [v for v in eqn.inputs if v != value]
        if len(others) != 1 or others[0] in program.live:
            break
        leaves = leaves_behind(program, others[0])
        owners = {layer_of(p, program).removeprefix(f"{OFFSETS}/") for p in leaves}
        if owners != {own}:
            break
        value = eqn.outputs[0]
        adds.append(eqn)
        added += leaves
        inner = list(way)
        way.append(value)
        if len(leaves) == 1 and moved_leaf(program, others[0], _SPREADS) is not None:
            bias = leaves[0]
    if not adds:
        return layer
    return replace(
        layer, output=adds[-1].outputs[0], bias=bias, adds=tuple(adds),
        added=tuple(added), inner=tuple(inner),
    )  # fmt: skip


# Where a compact network keeps the maps that it adds to what layers return.
OFFSETS = "offsets"
_CASTS = ("convert_element_type", "reduce_precision")
_SPREADS = (*MOVES, "broadcast_in_dim")


def moved_leaf(
    program: Program, value: int, moves: Sequence[str] = MOVES
) -> tuple[str, tuple[Equation, ...]] | None:
    """The leaf that a value is, moved: its path, and the equations that move it."""
    steps: list[Equation] = []
    while value not in program.path_of:
        eqn = program.made_by.get(value)
        if eqn is None or eqn.name not in moves:
            return None
        steps.append(eqn)
        value = eqn.inputs[0]
    return program.path_of[value], tuple(steps[::-1])


def undo_moves(
    steps: Sequence[Equation], leaf: jax.ShapeDtypeStruct, moved: Any
) -> np.ndarray:
    """The leaf that moves turn into an array; in float64, if that is its type."""

    def move(array: Array) -> Array:
        for eqn in steps:
            if eqn.name != "convert_element_type":
                array = eqn.primitive.bind(array, **eqn.params)
        return array

    # Moves of places, not of numbers, lose nothing whatever the type.
    places = jnp.arange(int(np.prod(leaf.shape)), dtype=jnp.int32).reshape(leaf.shape)
    order = np.asarray(move(places)).reshape(-1)
    result = np.empty(order.shape, np.asarray(moved).dtype)
    result[order] = np.asarray(moved).reshape(-1)
    return result.reshape(leaf.shape)
