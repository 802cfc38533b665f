"""Which indices of a network's arrays can only go together.

Every index of every axis of every leaf has a label, a number. Values take labels over
from what they are computed of. Where two labels meet, in a sum of arrays or a product
with a kernel, they are tied: they go together or not at all. Label 0 stays: the batch,
positions, the network's results, and whatever meets an operation that is not
understood, for which the reason is kept.

A sum over channels by itself, such as a LayerNorm's, needs all of them. Where `streams`
is asked for, it leaves out the terms of channels that go, and what it is divided by
stays: then the network without them is what is masked.

One rule for each operation says which labels its results have; all are in RULES.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool

from jaxprune.graph.layers import Layer, find_layers, with_bias
from jaxprune.graph.trace import Equation, Program, loop_carry
from jaxprune.graph.unions import STAYS, Unions

# Labels of a value: for each axis, those of its indices.
Axes = list[np.ndarray]


class NotUnderstood(Exception):
    """An operation that has no rule, or not for this."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a program.

    Attributes:
      program: the program.
      layers: its contractions, by name.
      values: of every value, the labels of each axis.
      unions: labels that are tied, and labels that stay.
      sums: sums over channels that may leave out terms, by name.
      shuffles: equations that move channels within one axis, see `find_shuffles`.
      stored: values that depend on parameters alone in a way that is not understood:
        of fewer channels they cannot be computed, so that they are kept as they are.
      choice: see `Splits`.
    """

    program: Program
    layers: Mapping[str, Layer]
    values: Mapping[int, Axes]
    unions: Unions
    sums: Mapping[str, Layer]
    shuffles: "Shuffles"
    stored: frozenset[int]
    choice: "Splits"

    def reader(self, name: str) -> Layer:
        """The layer, or the sum over channels, of this name."""
        return self.sums[name] if name in self.sums else self.layers[name]

    def is_read(self, layer: Layer) -> bool:
        """Whether a layer sums over its features, and not over a group of them each.

        A convolution with groups does where all groups have the same labels.
        """
        return layer.groups == 1 or not all(
            (self.roots(layer.kernel_value, axis) == STAYS).all()
            for axis in layer.axes.kernel_features
        )

    def leaf(self, path: str) -> Axes:
        """The labels of a leaf; the same whatever the batch's shape is."""
        return self.values[self.program.leaves[path]]

    def roots(self, value: int, axis: int) -> np.ndarray:
        """The lowest label that each index of an axis is tied to; 0 where it stays."""
        return self.unions.roots(self.values[value][axis])

    def kept(
        self, value: int, removed: Bool[np.ndarray, " _"]
    ) -> list[Bool[np.ndarray, " _"]]:
        """For each axis of a value, True where an index is left."""
        return [~removed[self.unions.find(axis)] for axis in self.values[value]]


# Where a reshape makes several axes of one, which of them may be cut: for the sizes
# before and after, the axis. A program's choice is made once, see `find_labels`.
Splits = Mapping[tuple[int, tuple[int, ...]], int]


def find_labels(
    program: Program,
    choice: Splits | None = None,
    streams: bool = False,
    dimensions: bool = False,
) -> Labels:
    """Labels of a program.

    Args:
      program: a network.
      choice: axes of a reshape that may be cut; by default, those with which most
        indices of the leaves can go.
      streams: whether sums over channels may leave out terms.
      dimensions: whether, of axes that are as good, the last is chosen; by default it
        is the first.
    """
    complete = partial(_complete, program, find_layers(program), streams)
    if choice is not None:
        return complete(choice)[0]
    best, splits = complete({})
    for key, axes in splits.items():
        if dimensions:
            axes = axes[::-1]
            best, _ = complete({**best.choice, key: axes[0]})
        for axis in axes[1:]:
            other, _ = complete({**best.choice, key: axis})
            if _free(other) > _free(best):
                best = other
    return best


def _free(labels: Labels) -> int:
    """How many indices of leaves can go."""
    return sum(
        int((labels.unions.roots(axis) != STAYS).sum())
        for path in labels.program.leaves
        for axis in labels.leaf(path)
    )


def _complete(
    program: Program, layers: Mapping[str, Layer], streams: bool, choice: Splits
) -> tuple[Labels, dict[tuple[int, tuple[int, ...]], list[int]]]:
    """Labels, and the reshapes in which there was a choice.

    A sum over parameters alone, such as a kernel's norm, is not one that leaves out
    terms where channels go: it is stored as it is. One over what no layer has, such as
    the rank of an adapter, keeps all of it.
    """
    stored: set[int] = set()
    while True:
        walk = _Walk(program, layers, streams, choice, stored)
        labels = walk.run()
        if more := walk.sums_over_channels():
            stored |= more
            continue
        return labels, walk.splits


class _Walk:
    """Goes through a program once, and ties."""

    def __init__(
        self,
        program: Program,
        layers: Mapping[str, Layer],
        streams: bool,
        choice: Splits,
        stored: set[int],
    ):
        self.program, self.layers, self.choice = program, layers, choice
        self.streams = streams
        self.shuffles = find_shuffles(program)
        self.by_equation = {layer.equation.number: layer for layer in layers.values()}
        self.to_store = stored
        self.unions = Unions()
        self.values: dict[int, Axes] = {}
        self.stored: set[int] = set()
        self.splits: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        self.static_sums: list[tuple[Equation, np.ndarray]] = []
        self.sums: list[Equation] = []
        self.inside = 0  # so many bodies

    def run(self) -> Labels:
        program = self.program
        for value in program.leaves.values():  # first, so that their labels are alike
            self.values[value] = self.fresh(program.shape(value))
        self.of_leaves = self.unions.count
        for value in program.constants:
            self.values[value] = self.fresh(program.shape(value))
        for value in program.batch:
            self.values[value] = self.staying(program.shape(value))
        self.equations(program.equations)
        for value in program.results:
            for axis in self.values[value]:
                self.stay(axis, "they are the network's output")
        for eqn, labels in self.static_sums:
            if not self.sums_over_channels():
                self.stay(labels, f"{eqn.described} adds them up, in parameters alone")
        return Labels(
            program, self.layers, self.values, self.unions, self.sums_by_name(),
            self.shuffles, frozenset(self.stored), self.choice,
        )  # fmt: skip

    def sums_by_name(self) -> dict[str, Layer]:
        """Sums over channels, numbered: a smaller network's have the same names."""
        found = {}
        for number, eqn in enumerate(self.sums):
            name, output = f"reduce_sum#{number}", eqn.outputs[0]
            layer = Layer(name, "sum", eqn, self.program, 0, None, None, output)
            found[name] = with_bias(layer)
        return found

    def sums_over_channels(self) -> set[int]:
        """Equations that add up parameters over channels of layers."""
        if not self.static_sums:
            return set()
        held = [np.zeros(0, np.int64)]
        for layer in self.layers.values():
            held += [self.values[layer.input][a] for a in layer.axes.features]
            held += [self.values[layer.product][a] for a in layer.axes.channels]
        roots = self.unions.roots(np.concatenate(held))
        roots = roots[roots != STAYS]
        return {
            eqn.number
            for eqn, labels in self.static_sums
            if np.isin(self.unions.find(labels), roots).any()
        } - self.to_store

    def equations(self, equations: Sequence[Equation]) -> None:
        for eqn in equations:
            if eqn.bodies:
                self.bodies(eqn)
            else:
                outputs = self.step(eqn)
                self.values.update(zip(eqn.outputs, outputs, strict=True))

    def step(self, eqn: Equation) -> list[Axes]:
        """Labels of an equation's results."""
        given = [self.values[value] for value in eqn.inputs]
        try:
            if eqn.number in self.shuffles:
                return [_shuffled(self, eqn, given[0])]
            if eqn.number in self.to_store or eqn.name not in RULES:
                raise NotUnderstood
            return RULES[eqn.name](self, eqn, given)
        except NotUnderstood:
            shapes = [self.program.shape(value) for value in eqn.outputs]
            if self.is_static(eqn) and not self.inside:
                self.stored.update(eqn.outputs)
                return [self.fresh(shape) for shape in shapes]
            for axes in given:
                for axis in axes:
                    self.stay(axis, f"{eqn.described} is not understood")
            return [self.staying(shape) for shape in shapes]

    def bodies(self, eqn: Equation) -> None:
        """A loop, a branch or a custom derivative."""
        program, outer = self.program, self.program.outer
        self.inside += 1
        for body in eqn.bodies:
            for value in body.inputs:
                axes = self.values[outer[value]]
                if len(axes) > len(program.shape(value)):  # of a scan, step by step
                    self.stay(axes[0], f"{eqn.described} takes them one by one")
                    axes = axes[1:]
                self.values[value] = axes
            self.equations(body.equations)
            for returned, given in loop_carry(eqn, body):
                self.tie_axes(eqn, self.values[returned], self.values[given])
        last = eqn.bodies[-1].outputs
        for body in eqn.bodies if eqn.name == "cond" else ():
            for one, other in zip(body.outputs, last, strict=True):
                self.tie_axes(eqn, self.values[one], self.values[other])
        for out, value in zip(eqn.outputs, last, strict=True):
            axes = self.values[value]
            if len(axes) < len(program.shape(out)):
                axes = [np.zeros(program.shape(out)[0], np.int64), *axes]
            self.values[out] = axes
        self.inside -= 1

    # What rules are written with.

    def is_static(self, eqn: Equation) -> bool:
        """Whether an equation's results depend on parameters alone."""
        return not self.program.live.intersection(eqn.outputs)

    def fresh(self, shape: Sequence[int]) -> Axes:
        """Labels of their own."""
        return [self.unions.new(size) for size in shape]

    def staying(self, shape: Sequence[int]) -> Axes:
        return [np.zeros(size, np.int64) for size in shape]

    def all_stay(self, labels: np.ndarray) -> bool:
        return bool((self.unions.roots(labels) == STAYS).all())

    def stay(self, labels: np.ndarray, reason: str) -> None:
        self.unions.stay(labels, reason)

    def lose(self, eqn: Equation, labels: np.ndarray) -> None:
        """An axis of one index goes: where it was one of several channels, it stays."""
        if len(labels) == 1:
            self.stay(labels, f"{eqn.described} takes it by its position")

    def tie(self, eqn: Equation, a: np.ndarray, b: np.ndarray) -> None:
        if a is b or (a.shape == b.shape and (a == b).all()):
            return
        self.unions.tie(a, b, eqn.described)

    def tie_axes(self, eqn: Equation, one: Axes, other: Axes) -> None:
        for a, b in zip(one, other, strict=True):
            self.tie(eqn, a, b)


Rule = Callable[[_Walk, Equation, list[Axes]], list[Axes]]


def _elementwise(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    """Ties labels that meet in an element; numbers, and axes of one, meet all."""
    shape = walk.program.shape(eqn.outputs[0])
    arrays = [axes for axes in given if len(axes) == len(shape)]
    if not arrays:
        return [walk.fresh(shape) for _ in eqn.outputs]
    found = []
    for dim, size in enumerate(shape):
        same = [axes[dim] for axes in arrays if len(axes[dim]) == size]
        for axes in arrays if size > 1 else ():
            walk.lose(eqn, axes[dim])
        for other in same[1:]:
            walk.tie(eqn, same[0], other)
        found.append(same[0])
    return [found]


def _each_by_itself(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    return given


def _made(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    """Numbers that are made here: those of indices that are left are taken of all."""
    if not walk.is_static(eqn):
        raise NotUnderstood
    return [walk.fresh(walk.program.shape(value)) for value in eqn.outputs]


def _broadcast(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    shape = walk.program.shape(eqn.outputs[0])
    found: list[np.ndarray | None] = [None] * len(shape)
    dims = eqn.params["broadcast_dimensions"]
    for axis, dim in zip(given[0], dims, strict=True):
        if len(axis) == shape[dim]:
            found[dim] = axis
        else:
            walk.lose(eqn, axis)
    return [
        [
            walk.unions.new(size) if axis is None else axis
            for axis, size in zip(found, shape, strict=True)
        ]
    ]


def _transpose(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    return [[given[0][axis] for axis in eqn.params["permutation"]]]


def _squeeze(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    gone = eqn.params["dimensions"]
    for axis in gone:
        walk.lose(eqn, given[0][axis])
    return [[labels for axis, labels in enumerate(given[0]) if axis not in gone]]


def _tile(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    return [[np.tile(a, n) for a, n in zip(given[0], eqn.params["reps"], strict=True)]]


def _expand_dims(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    rest = iter(given[0])
    count = len(walk.program.shape(eqn.outputs[0]))
    new = eqn.params["dimensions"]
    return [[walk.unions.new(1) if a in new else next(rest) for a in range(count)]]


def _rev(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    turned = eqn.params["dimensions"]
    return [[axis[::-1] if a in turned else axis for a, axis in enumerate(given[0])]]


def _concatenate(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    dim = eqn.params["dimension"]
    for axes in given[1:]:
        for a, (one, other) in enumerate(zip(given[0], axes, strict=True)):
            if a != dim:
                walk.tie(eqn, one, other)
    joined = np.concatenate([axes[dim] for axes in given])
    return [[joined if a == dim else axis for a, axis in enumerate(given[0])]]


def _stack(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    for axes in given[1:]:
        walk.tie_axes(eqn, given[0], axes)
    found = list(given[0])
    found.insert(eqn.params["axis"], np.zeros(len(given), np.int64))
    return [found]


def _slice(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    params = eqn.params
    strides = params["strides"] or (1,) * len(given[0])
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return [[axis[slice(*b)] for axis, b in zip(given[0], bounds, strict=True)]]


def _split(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    dim = eqn.params["axis"]
    parts = np.split(given[0][dim], np.cumsum(eqn.params["sizes"])[:-1])
    return [
        [part if a == dim else axis for a, axis in enumerate(given[0])]
        for part in parts
    ]


def _pad(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    found = []
    for axis, (low, high, inner) in zip(
        given[0], eqn.params["padding_config"], strict=True
    ):
        if inner and len(axis):
            wide = walk.unions.new(len(axis) + inner * (len(axis) - 1))
            wide[:: inner + 1] = axis
            axis = wide
        axis = axis[max(-low, 0) : len(axis) - max(-high, 0)]
        ends = [walk.unions.new(max(size, 0)) for size in (low, high)]
        found.append(np.concatenate([ends[0], axis, ends[1]]))
    return [found]


def _reduce(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    """An axis that is summed over goes; its indices stay, where all are needed."""
    gone = eqn.params["axes"]
    if walk.streams and eqn.name == "reduce_sum" and not walk.is_static(eqn):
        walk.sums.append(eqn)
    else:
        for dim in gone:
            _joined(walk, eqn, given[0][dim])
    found = [axis for dim, axis in enumerate(given[0]) if dim not in gone]
    return [found for _ in eqn.outputs]


def _joined(walk: _Walk, eqn: Equation, labels: np.ndarray) -> None:
    """Labels whose elements an operation puts together."""
    if walk.all_stay(labels):
        return
    if walk.is_static(eqn):
        walk.static_sums.append((eqn, labels))
    else:
        walk.stay(labels, f"{eqn.described} joins them")


def _window(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    params = eqn.params
    shape = walk.program.shape(eqn.outputs[0])
    found = []
    for dim, axis in enumerate(given[0]):
        alone = params["window_dimensions"][dim] == params["window_strides"][
            dim
        ] == 1 and tuple(params["padding"][dim]) == (0, 0)
        if not alone:
            walk.stay(axis, f"{eqn.described} joins them")
        found.append(axis if alone else np.zeros(shape[dim], np.int64))
    return [found]


def _along(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    """A running sum, a sort: one axis is joined, the others are not."""
    dim = eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"]
    for axes in given:
        walk.stay(axes[dim], f"{eqn.described} joins them")
        walk.tie_axes(eqn, given[0], axes)
    return [given[0] for _ in eqn.outputs]


def _dot(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    summed, batch = eqn.params["dimension_numbers"]
    left, right = given
    for pairs in (summed, batch):
        for a, b in zip(*pairs, strict=True):
            walk.tie(eqn, left[a], right[b])
    if walk.is_static(eqn):
        for a in summed[0]:
            _joined(walk, eqn, left[a])
    gone = [{*summed[i], *batch[i]} for i in range(2)]
    return [
        [
            *(left[a] for a in batch[0]),
            *(axis for a, axis in enumerate(left) if a not in gone[0]),
            *(axis for a, axis in enumerate(right) if a not in gone[1]),
        ]
    ]


def _conv(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    params, (x, kernel) = eqn.params, given
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if params["batch_group_count"] != 1 or eqn.inputs[1] in walk.program.live:
        raise NotUnderstood
    why = f"{eqn.described} slides over them"
    for axes, spec in ((x, numbers.lhs_spec), (kernel, numbers.rhs_spec)):
        for dim in spec[2:]:
            walk.stay(axes[dim], why)
    features = x[numbers.lhs_spec[1]]
    channels, inputs = (kernel[dim] for dim in numbers.rhs_spec[:2])
    if groups == 1:
        walk.tie(eqn, features, inputs)
        if walk.is_static(eqn):
            _joined(walk, eqn, features)
    else:
        parts = [axis.reshape(groups, -1) for axis in (features, channels)]
        if _are_stacked(walk, parts):
            walk.tie(eqn, parts[0], inputs)
        else:  # each group as a whole, with all that it reads and returns
            walk.stay(inputs, f"{eqn.described} has groups of them")
            members = np.concatenate(parts, axis=1)
            walk.tie(eqn, members, members[:, :1])
    shape = walk.program.shape(eqn.outputs[0])
    found = walk.staying(shape)
    found[numbers.out_spec[0]] = x[numbers.lhs_spec[0]]
    found[numbers.out_spec[1]] = channels
    return [found]


def _are_stacked(walk: _Walk, parts: Axes) -> bool:
    """Whether all groups of a convolution have the same labels, as members of a stack.

    `vmap` writes a convolution of several kernels so.
    """
    rows = [walk.unions.roots(part.ravel()).reshape(part.shape) for part in parts]
    return parts[0].shape[1] > 1 and all((r == r[:1]).all() for r in rows)


def _dynamic_slice(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    shape = walk.program.shape(eqn.outputs[0])
    found = []
    for axis, size in zip(given[0], shape, strict=True):
        if len(axis) != size:
            walk.stay(axis, f"{eqn.described} takes them by their position")
            axis = np.zeros(size, np.int64)
        found.append(axis)
    return [found]


def _dynamic_update_slice(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    for axis, update in zip(given[0], given[1], strict=True):
        if len(axis) == len(update):
            walk.tie(eqn, axis, update)
        else:
            for labels in (axis, update):
                walk.stay(labels, f"{eqn.described} takes them by their position")
    return [given[0]]


def _gather(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    """Whole slices keep their labels; what is indexed stays."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if numbers.operand_batching_dims:
        raise NotUnderstood
    operand, indices = given
    why = f"{eqn.described} takes them by their position"
    found = walk.staying(walk.program.shape(eqn.outputs[0]))
    whole = [a for a in range(len(operand)) if a not in numbers.collapsed_slice_dims]
    for out, axis in zip(numbers.offset_dims, whole, strict=True):
        if sizes[axis] == len(operand[axis]):
            found[out] = operand[axis]
        else:
            walk.stay(operand[axis], why)
    for axis in numbers.collapsed_slice_dims:
        walk.stay(operand[axis], why)
    for labels in indices:
        walk.stay(labels, why)
    return [found]


def _reshape(walk: _Walk, eqn: Equation, given: list[Axes]) -> list[Axes]:
    """Axes that are put together or taken apart, in blocks of equal size."""
    order = eqn.params["dimensions"]  # of the axes, where they are moved as well
    axes = given[0] if order is None else [given[0][axis] for axis in order]
    for axis in axes:
        walk.lose(eqn, axis)
    old = [len(axis) for axis in axes]
    new = walk.program.shape(eqn.outputs[0])
    found: Axes = [walk.unions.new(1) for _ in new]
    for before, after in _blocks(old, new):
        if len(before) == len(after) == 1:
            found[after[0]] = axes[before[0]]
            continue
        flat = _merged(walk, eqn, [axes[a] for a in before])
        parts = _parted(walk, eqn, flat, tuple(new[a] for a in after))
        for a, labels in zip(after, parts, strict=True):
            found[a] = labels
    return [found]


def _blocks(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Axes before and after a reshape that hold the same elements; none of size 1."""
    if 0 in (*old, *new):
        raise NotUnderstood
    before = [a for a, size in enumerate(old) if size != 1]
    after = [a for a, size in enumerate(new) if size != 1]
    found = []
    while before:
        a, b = [before.pop(0)], [after.pop(0)]
        sizes = old[a[0]], new[b[0]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                a.append(before.pop(0))
                sizes = sizes[0] * old[a[-1]], sizes[1]
            else:
                b.append(after.pop(0))
                sizes = sizes[0], sizes[1] * new[b[-1]]
        found.append((a, b))
    return found


def _merged(walk: _Walk, eqn: Equation, axes: Axes) -> np.ndarray:
    """Labels of several axes as one, which can have those of one of them."""
    free = [i for i, axis in enumerate(axes) if not walk.all_stay(axis)]
    # Those with parameters among them, rather than those that a broadcast has made.
    known = [
        i for i in free if (walk.unions.find(axes[i]) < walk.of_leaves).any()
    ]  # fmt: skip
    chosen = (known or free)[-1:]
    for i in free:
        if i not in chosen:
            walk.stay(axes[i], f"{eqn.described} joins them with another axis")
    shape = [len(axis) for axis in axes]
    if not chosen:
        return np.zeros(int(np.prod(shape)), np.int64)
    (i,) = chosen
    ones = [1] * len(axes)
    ones[i] = shape[i]
    return np.broadcast_to(axes[i].reshape(ones), shape).ravel()


def _parted(
    walk: _Walk, eqn: Equation, flat: np.ndarray, shape: tuple[int, ...]
) -> Axes:
    """Labels of one axis as several, of which one can have them."""
    box = walk.unions.roots(flat).reshape(shape)
    varying = [a for a in range(len(shape)) if (box != box.take([0], a)).any()]
    if len(varying) > 1:
        key = flat.size, shape
        walk.splits.setdefault(key, varying)
        varying = [walk.choice.get(key, varying[0])]
        rows = np.moveaxis(flat.reshape(shape), varying[0], 0)
        rows = rows.reshape(shape[varying[0]], -1)
        walk.tie(eqn, rows, rows[:, :1])
    if not varying and box.any():  # one unit holds them all: any axis can have it
        varying = [0]
    labels = flat.reshape(shape)
    return [
        np.moveaxis(labels, a, 0).reshape(size, -1)[:, 0].copy()
        if a in varying
        else np.zeros(size, np.int64)
        for a, size in enumerate(shape)
    ]


@dataclass(frozen=True)
class Shuffle:
    """One of the three operations that put channels of an axis in another order.

    A reshape takes the axis apart, a transpose turns its parts round, a reshape joins
    them again. What is left of such an axis cannot be taken apart. So the values in
    between stand for the axis itself, and the transpose moves the channels.

    Attributes:
      axis: the channels' axis.
      shape: of the result, its parts taken as one axis.
      order: for each place in the axis, the channel that comes there; None for the
        reshapes.
    """

    axis: int
    shape: tuple[int, ...]
    order: np.ndarray | None


# By the number of an equation.
Shuffles = Mapping[int, Shuffle]


def find_shuffles(program: Program) -> Shuffles:
    """The equations that put channels of one axis in another order."""
    found: dict[int, Shuffle] = {}
    for first in program.equations:
        if first.name != "reshape" or first.params["dimensions"] is not None:
            continue
        chain = [first]
        for name in ("transpose", "reshape"):
            readers = program.read_by[chain[-1].outputs[0]]
            if len(readers) == 1 and readers[0].name == name:
                chain += readers
        shape = program.shape(first.inputs[0])
        if len(chain) < 3 or program.shape(chain[2].outputs[0]) != shape:
            continue
        parts, order = (
            program.shape(chain[0].outputs[0]),
            chain[1].params["permutation"],
        )
        axis, count = _part(shape, parts)
        inside = order[axis : axis + count]
        others = [a for a in range(len(parts)) if not axis <= a < axis + count]
        if count > 1 and [*order[:axis], *order[axis + count :]] == others:
            places = np.arange(shape[axis]).reshape(parts[axis : axis + count])
            moved = places.transpose([a - axis for a in inside]).ravel()
            for eqn, place in zip(chain, (None, moved, None), strict=True):
                found[eqn.number] = Shuffle(axis, shape, place)
    return found


def _part(shape: Sequence[int], parts: Sequence[int]) -> tuple[int, int]:
    """The axis that a reshape takes apart, and into how many; 0 where not just one."""
    count = len(parts) - len(shape) + 1
    for axis, size in enumerate(shape):
        inside = parts[axis : axis + count]
        if (*shape[:axis], *inside, *shape[axis + 1 :]) == tuple(parts):
            return axis, count if int(np.prod(inside)) == size else 0
    return 0, 0


def _shuffled(walk: _Walk, eqn: Equation, given: Axes) -> Axes:
    shuffle = walk.shuffles[eqn.number]
    if shuffle.order is None:
        return given
    return [a[shuffle.order] if i == shuffle.axis else a for i, a in enumerate(given)]


ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min
    mul name ne neg nextafter not or population_count pow real reduce_precision rem
    round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical
    sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor
""".split()
# Operations whose results are made whole, however many of their indices are left.
GENERATORS = (
    "iota", "random_bits", "random_fold_in", "random_seed", "random_split",
    "random_unwrap", "random_wrap", "rng_bit_generator", "threefry2x32",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(
        """
        argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
        reduce_xor
        """.split(),
        _reduce,
    ),
    **dict.fromkeys(
        "reduce_window reduce_window_max reduce_window_min reduce_window_sum".split(),
        _window,
    ),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum sort".split(), _along),
    **dict.fromkeys(GENERATORS, _made),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "optimization_barrier": _each_by_itself,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
