"""The arrays that are left when channels go, and what those still sent on.

Removing a channel cuts every axis of the parameters that holds it. It still sent
something to the layers that read it. With a fill at the layer's output that is a
constant, since all that follows up to the consumer is computed from constants; with a
mean at the consumers it is that mean; with the linear fill it is a constant and a share
of each kept channel, whose rows take up that share (W_k + A W_p). A constant that is
the same everywhere is added to the consumer's bias. A convolution pads with zeros, so
that at the border it reads the constant less often: there it is a map, kept as its few
different rows and an index to them; so is one of a layer without a bias. Arrays that
the network's own parameters have no place for have paths of their own:

    offsets/<layer>/rows, /index    a map that is added to what a layer returns
    kernels/<layer>                 a kernel that is computed of several arrays, or read
                                    by several layers, with rows folded in
    stored/<number>                 what is computed of parameters alone in a way that
                                    cannot be done with fewer, such as a kernel's norm
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._base.errors import InputError
from jaxprune.compaction.constant import check_constants
from jaxprune.fills.fill import ConstantFill, LinearFill, MeanFill
from jaxprune.fills.masked import Pruning, kept_of, mask_changes
from jaxprune.graph.evaluate import Change, Narrowing, bind, in_float64, run
from jaxprune.graph.groups import kept_indices
from jaxprune.graph.layers import OFFSETS, Layer, moved_leaf, undo_moves
from jaxprune.graph.network import Graph, Network
from jaxprune.graph.trace import Program

KERNELS, STORED = "kernels", "stored"


class Extras(NamedTuple):
    """Arrays that the parameters have no place for, as a run of a program takes them.

    Attributes:
      given: values that are known.
      after: changes of equations' results, by number.
    """

    given: dict[int, Any]
    after: dict[int, Change]


def extras(graph: Graph, narrowing: Narrowing, arrays: Mapping[str, Any]) -> Extras:
    """The arrays beside a program's own leaves; see the module."""
    given: dict[int, Any] = {}
    after: dict[int, Change] = {}
    for path, array in arrays.items():
        collection, _, name = path.partition("/")
        if path in graph.program.leaves:
            continue
        if collection == KERNELS:
            given[graph.layer(name).kernel_value] = array
        elif collection == STORED:
            given[narrowing.stored[int(name)]] = array
        elif name.endswith("/rows"):
            layer = graph.reader(name.removesuffix("/rows"))
            after |= offset_change(layer, arrays)
    return Extras(given, after)


def offset_paths(layer: Layer) -> tuple[str, str]:
    """Where the map of a layer's outputs is: its rows, and their index."""
    return f"{OFFSETS}/{layer.name}/rows", f"{OFFSETS}/{layer.name}/index"


def offset_change(layer: Layer, arrays: Mapping[str, Any]) -> dict[int, Change]:
    """Adds the map that `arrays` has for a layer, if the program itself does not."""
    rows, index = offset_paths(layer)
    if rows not in arrays or rows in layer.program.leaves:
        return {}

    def add(results: list[Any]) -> list[Any]:
        offset = jnp.asarray(arrays[rows])[jnp.asarray(arrays[index])]
        if layer.kind == "sum":
            return [results[0] + offset[0].astype(results[0].dtype)]
        y = layer.outputs(results[0])
        return [layer.from_outputs(y + offset.astype(y.dtype), results[0].shape)]

    return {layer.equation.number: add}


class Smaller(NamedTuple):
    """The arrays that are left.

    Attributes:
      arrays: all of them by path, in the types that the network keeps them in.
      exact: in float64, before they were rounded, those that something is folded into;
        without maps.
    """

    arrays: dict[str, np.ndarray]
    exact: dict[str, np.ndarray]


def cut(network: Network, prunings: Sequence[Pruning]) -> Smaller:
    """The smaller arrays, what pruned channels send on folded in.

    Raises:
      InputError: a layer would return nothing, a fill that is no constant where the
        channels are read, that cannot be folded in there, or is too large to be.
    """
    graph = network.graph()
    kept = kept_of(prunings)
    narrowing = graph.narrowing(kept)
    _check_something_is_left(prunings)
    whole = {path: np.asarray(array) for path, array in network.arrays.items()}
    arrays = dict(whole)
    given = _given_behind_constants(network, prunings)
    for reader in dict.fromkeys(name for p in prunings for name in p.group.readers):
        layer = graph.reader(reader)
        own = [p for p in prunings if reader in p.group.readers]
        own.sort(key=lambda p: isinstance(p.fill, LinearFill))
        _check_predicted_once(layer, own)
        if layer.kind == "sum":
            constants = _constants(layer, own, given)
            if constants.any():
                total = constants.sum(keepdims=True)
                _fold_constants(arrays, layer, total, narrowing)
        if layer.takes_drop_alone:
            continue
        (kernel,) = _in_float64(graph.program, whole, [layer.kernel_value])
        rows = np.asarray(layer.rows(kernel))
        constants = _constants(layer, own, given)
        if constants.any():
            _fold_constants(arrays, layer, _sent(layer, constants, rows), narrowing)
        folded = _folded(layer, own, rows)
        if folded is not None:
            put_kernel(arrays, layer, folded)
    found, exact = {}, {}
    for path, array in arrays.items():
        dtype = array.dtype
        if path in graph.program.leaves:
            array = narrowing.take(graph.program.leaves[path], array)
            dtype = whole[path].dtype
        elif path.startswith(f"{KERNELS}/"):
            value = graph.layer(path.partition("/")[2]).kernel_value
            array = narrowing.take(value, array)
            dtype = graph.program.types[value].dtype
        if array.dtype != dtype:
            exact[path] = array
        with np.errstate(over="ignore"):
            found[path] = np.array(array.astype(dtype), order="C")
        if path in exact and not np.isfinite(found[path]).all():
            raise InputError(f"with what is folded in, {path} overflows {dtype}")
    stored = exactly(graph.program, whole, narrowing.stored)
    for i, (value, array) in enumerate(zip(narrowing.stored, stored, strict=True)):
        found[f"{STORED}/{i}"] = narrowing.take(value, array)
    return Smaller(found, exact)


def exactly(
    program: Program, arrays: Mapping[str, Any], want: Sequence[int], **how: Any
) -> list[np.ndarray]:
    """Values that depend on parameters alone: of float64, rounded to their types.

    Args:
      program, arrays, want, how: see `jaxprune.graph.evaluate.run`.
    """
    values = _in_float64(program, arrays, want, **how)
    types = [program.types[value].dtype for value in want]
    return [v.astype(t) for v, t in zip(values, types, strict=True)]


def _in_float64(
    program: Program, arrays: Mapping[str, Any], want: Sequence[int], **how: Any
) -> list[np.ndarray]:
    """The same, not rounded."""
    with in_float64():
        arrays = {path: np.asarray(array) for path, array in arrays.items()}
        values = run(program, arrays, None, want=want, exact=True, **how)
    return [np.asarray(value) for value in values]


def _check_something_is_left(prunings: Sequence[Pruning]) -> None:
    left: dict[tuple[str, str], np.ndarray] = {}
    for pruning in prunings:
        for role in ("return", "read"):
            owners = pruning.group.producers if role == "return" else (
                pruning.group.consumers
            )  # fmt: skip
            for name, owner in owners.items():
                kept = kept_indices(pruning.keep, owner)
                left[role, name] = left.get((role, name), True) & kept
    for (role, name), kept in sorted(left.items()):
        if not kept.any():
            raise InputError(f"'{name}' would {role} nothing: keep one more of it")


def _given_behind_constants(
    network: Network, prunings: Sequence[Pruning]
) -> dict[str, np.ndarray]:
    """The inputs of consumers where channels are constants at their layer.

    Features [*positions, F] of one image; those of channels that are kept, too.
    """
    graph = network.graph()
    filled = [p for p in prunings if isinstance(p.fill, ConstantFill)]
    check_constants(graph, filled)
    consumers = [*dict.fromkeys(name for p in filled for name in p.group.consumers)]
    if not consumers:
        return {}
    masks = [p.mask for p in prunings]

    @jax.jit
    def read(arrays: Any, x: Any) -> list[Array]:
        before, after = mask_changes(graph, masks)
        want = [graph.layer(name).input for name in consumers]
        return run(
            graph.program, arrays, x, want=want, before=before, after=after, exact=True
        )

    x = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), network.few)
    with in_float64():
        values = read(jax.tree.map(np.asarray, network.arrays), x)
    return {
        name: np.asarray(graph.layer(name).features(value)[0])
        for name, value in zip(consumers, values, strict=True)
    }


def _constants(
    layer: Layer, prunings: Sequence[Pruning], given: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "*positions F"]:
    """The constants of pruned features, whatever the image is; 0 for the others.

    Without positions where it is the same at all of them. A feature may be of several
    groups, as of a head and of a dimension: predictions are made of constants, too.
    """
    constants = np.zeros(layer.inputs)
    if layer.name in given:
        constants = np.zeros(given[layer.name].shape)
    for pruning in prunings:
        fill = pruning.fill
        gone = ~kept_indices(pruning.keep, pruning.group.readers[layer.name])
        if isinstance(fill, ConstantFill):
            constants[..., gone] = given[layer.name][..., gone]
        elif isinstance(fill, MeanFill):
            constants[..., gone] = fill.at_consumer(pruning.group, layer.name)[gone]
        elif isinstance(fill, LinearFill) and layer.kind != "sum":
            regression = pruning.mask.at_consumers[layer.name]
            constants[..., gone] = regression.predict(constants)[..., gone]
    return _one_row(constants)


def _one_row(rows: Float[np.ndarray, "*positions F"]) -> np.ndarray:
    """The row that all positions have, if they have the same; else all of them."""
    flat = rows.reshape(-1, rows.shape[-1])
    alike = np.ptp(flat, axis=0).max(initial=0) <= _ALIKE * np.abs(flat).max(initial=0)
    return flat[0] if alike else rows


def _check_predicted_once(layer: Layer, prunings: Sequence[Pruning]) -> None:
    """Raises InputError if a feature is predicted for two groups.

    Either is predicted from features that the other may have removed.
    """
    taken = np.full(layer.inputs, -1)
    for number, pruning in enumerate(prunings):
        if isinstance(pruning.fill, LinearFill) and layer.kind != "sum":
            held = pruning.group.consumers[layer.name] >= 0
            for other in taken[held & (taken >= 0)][:1]:
                raise InputError(
                    f"'{layer.name}' reads features that are of '{pruning.group.name}' "
                    f"and of '{prunings[other].group.name}', such as a head's and a "
                    "dimension's: one of them can have the fill 'linear', not both"
                )
            taken[held] = number


def _folded(
    layer: Layer, prunings: Sequence[Pruning], rows: np.ndarray
) -> np.ndarray | None:
    """The kernel's rows with those of predicted channels folded in; None where none."""
    folded = None
    for pruning in prunings:
        if isinstance(pruning.fill, LinearFill) and not pruning.keep.all():
            regression = pruning.mask.at_consumers[layer.name]
            folded = regression.fold(rows if folded is None else folded)
    return folded


def _sent(
    layer: Layer, constants: np.ndarray, rows: np.ndarray
) -> Float[np.ndarray, "*positions U"]:
    """A layer's output for constant features; without positions, as `_one_row`."""
    if constants.ndim == rows.ndim - 1 == 1:
        return constants @ rows
    with in_float64():
        features = jnp.broadcast_to(constants, (*layer.positions, layer.inputs))
        operands = [layer.from_features(features[None]), layer.from_rows(rows)]
        if layer.x == 1:
            operands.reverse()
        wide = {"preferred_element_type": np.dtype(np.float64)}
        (sent,) = bind(
            layer.equation,
            [jnp.asarray(operand, jnp.float64) for operand in operands],
            {**layer.equation.params, **wide},
        )
        return _one_row(np.asarray(layer.outputs(sent))[0])


def _fold_constants(
    arrays: dict[str, Any],
    layer: Layer,
    sent: Float[np.ndarray, "*positions U"],
    narrowing: Narrowing,
) -> None:
    """Adds what constants send to the layer's bias, or to the map of its outputs."""
    if sent.ndim == 1 and _has_own_bias(layer):
        bias = arrays[layer.bias or ""]
        arrays[layer.bias or ""] = bias + sent.reshape(bias.shape)
        return
    paths = offset_paths(layer)
    if paths[0] in layer.program.leaves:
        sent = sent + arrays[paths[0]][arrays[paths[1]]]
    else:
        sent = sent[..., _kept_channels(layer, narrowing)]
    flat = sent.reshape(-1, sent.shape[-1]).astype(np.float32)
    rows, index = np.unique(flat, axis=0, return_inverse=True)
    index = index.reshape(sent.shape[:-1]).astype(np.min_scalar_type(len(rows)))
    arrays |= zip(paths, (rows, index), strict=True)


def _kept_channels(layer: Layer, narrowing: Narrowing) -> np.ndarray:
    axes = narrowing.kept(layer.product)
    keep = np.ones(1, bool)
    for axis in layer.axes.channels:
        keep = (keep[:, None] & axes[axis]).ravel()
    return keep


# Of the largest: sums of the same numbers in another order.
_ALIKE = 1e-12


def _has_own_bias(layer: Layer) -> bool:
    """Whether a layer has a bias, with an element for each channel, to itself."""
    if layer.bias is None:
        return False
    value = layer.program.leaves[layer.bias]
    size = int(np.prod(layer.program.shape(value)))
    return layer.program.used_by(value) == 1 and size == layer.channels


def put_bias(arrays: dict[str, Any], layer: Layer, bias: np.ndarray) -> None:
    """Sets what is added to a layer's outputs: its bias, or a map with one row."""
    paths = offset_paths(layer)
    for path in paths:
        arrays.pop(path, None)
    if _has_own_bias(layer):
        path = layer.bias or ""
        before = arrays[path]
        arrays[path] = bias.reshape(before.shape).astype(before.dtype)
        bias = np.zeros_like(bias)
    if paths[0] in layer.program.leaves or bias.any():
        arrays |= zip(paths, (bias[None], np.zeros((), np.uint8)), strict=True)


def has_own_kernel(layer: Layer) -> bool:
    """Whether a layer's kernel is a leaf, moved, that nothing else reads."""
    program, moved = layer.program, moved_leaf(layer.program, layer.kernel_value)
    if moved is None:
        return False
    way = [layer.kernel_value, *(eqn.inputs[0] for eqn in moved[1])]
    return all(program.used_by(value) == 1 for value in way)


def put_kernel(arrays: dict[str, Any], layer: Layer, rows: np.ndarray) -> None:
    """Sets the kernel of a layer alone: its leaf, or one of its own."""
    kernel = layer.from_rows(rows)
    moved = moved_leaf(layer.program, layer.kernel_value)
    if moved is None or not has_own_kernel(layer):
        arrays[f"{KERNELS}/{layer.name}"] = kernel
        return
    path, steps = moved
    leaf = layer.program.types[layer.program.leaves[path]]
    arrays[path] = undo_moves(steps, leaf, kernel)
