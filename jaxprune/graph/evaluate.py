"""Running a program: whole, from a value on, changed at some equations, or narrower.

A network with fewer channels has the same equations, on operands that lack the indices
which are removed. Most equations hold no size; those that do are in NARROWER.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from jaxprune import conv
from jaxprune.graph.labels import GENERATORS, RULES, Labels, Shuffle
from jaxprune.graph.layers import Layer
from jaxprune.graph.trace import (
    CONTRACTIONS,
    Body,
    Equation,
    Program,
    scan_counts,
)
from jaxprune.graph.unions import STAYS

# What an equation is given, or returns -> what it is given, or returns, instead.
Change = Callable[[list[Any]], list[Any]]
Kept = list[Bool[np.ndarray, " _"]]


@dataclass(frozen=True, eq=False)
class Narrowing:
    """Which indices of a program's values are removed.

    Attributes:
      labels: of the program.
      removed: True for the lowest label of each set that goes.
    """

    labels: Labels
    removed: Bool[np.ndarray, " _"]

    def __post_init__(self) -> None:
        assert not self.removed[STAYS]

    def kept(self, value: int) -> Kept:
        """For each axis of a value, True where an index is left."""
        return self.labels.kept(value, self.removed)

    def take(self, value: int, array: Any) -> Any:
        """The part that is left of a value's array in the whole network."""
        made_by = self.labels.program.made_by.get(value)
        if made_by and made_by.number in self.labels.shuffles:
            array = array.reshape(self.labels.shuffles[made_by.number].shape)
        return take(array, self.kept(value))

    @cached_property
    def stored(self) -> list[int]:
        """Values that cannot be computed of fewer parameters: they are kept."""
        made_by = self.labels.program.made_by
        return sorted(
            value
            for value in self.labels.stored
            if any(
                not all(k.all() for k in self.kept(given))
                for given in made_by[value].inputs
            )
        )


def take(array: Any, kept: Kept) -> Any:
    """The indices that are left of each axis."""
    for axis, keep in enumerate(kept):
        if not keep.all():
            index = np.flatnonzero(keep)
            if isinstance(array, np.ndarray):
                array = array.take(index, axis)
            elif len(index) and index[-1] - index[0] == len(index) - 1:
                array = lax.slice_in_dim(array, index[0], index[-1] + 1, axis=axis)
            else:
                array = jnp.take(array, index, axis=axis)
    return array


def run(
    program: Program,
    arrays: Mapping[str, Any],
    batch: Any,
    *,
    want: Sequence[int] | None = None,
    given: Mapping[int, Any] | None = None,
    before: Mapping[int, Change] | None = None,
    after: Mapping[int, Change] | None = None,
    narrowing: Narrowing | None = None,
    exact: bool = False,
    fast: bool = False,
) -> Any:
    """Values of a program; under jit, those alone are computed that they need.

    Args:
      program: the network, traced for a batch of this shape.
      arrays: its leaves by path; those that are left, where it is narrower.
      batch: its inputs, an array or a tree; None where no value needs them.
      want: the values to return, as a list; by default the network's results, in their
        tree.
      given: values that are known.
      before: by an equation's number, what becomes of its operands.
      after: by an equation's number, what becomes of its results.
      narrowing: removed indices of each value.
      exact: in float64, whatever the types are in the program; to be called where JAX
        has 64-bit types (`jax.enable_x64`).
      fast: with the convolutions of `jaxprune.conv`.
    """
    runner = Runner(program, before or {}, after or {}, narrowing, exact, fast=fast)
    wanted = program.results if want is None else want
    env = runner.start(arrays, batch, given or {})
    runner.equations(program.needed(wanted, given or {}), env)
    results = [env[value] for value in wanted]
    return jax.tree.unflatten(program.output, results) if want is None else results


@dataclass(frozen=True, eq=False)
class Runner:
    """Runs equations one by one, see `run`."""

    program: Program
    before: Mapping[int, Change]
    after: Mapping[int, Change]
    narrowing: Narrowing | None
    exact: bool
    fast: bool = field(default=False, kw_only=True)

    def start(
        self, arrays: Mapping[str, Any], batch: Any, given: Mapping[int, Any]
    ) -> dict[int, Any]:
        """The values that are known before anything is run."""
        env = {value: self.enter(array) for value, array in given.items()}
        for path, value in self.program.leaves.items():
            if path in arrays:
                env.setdefault(value, self.enter(arrays[path]))
        for value, array in zip(
            self.program.batch, jax.tree.leaves(batch), strict=False
        ):
            env.setdefault(value, self.enter(array))
        for value, array in self.program.constants.items():
            if self.narrowing is not None:
                array = self.narrowing.take(value, array)
            env.setdefault(value, self.enter(array))
        return env

    def enter(self, array: Any) -> Any:
        """An array as the run is given it."""
        if self.exact and jnp.issubdtype(jnp.result_type(array), jnp.inexact):
            return jnp.asarray(array, wide(jnp.result_type(array)))
        if isinstance(array, np.ndarray) and array.ndim:
            return jnp.asarray(array)
        return array

    def equations(self, equations: Sequence[Equation], env: dict[int, Any]) -> None:
        """Runs equations, and adds what they return to the values that are known."""
        for eqn in equations:
            if all(value in env for value in eqn.outputs):
                continue
            inputs = [env[value] for value in eqn.inputs]
            outputs = self.one(eqn, inputs, env)
            for value, output in zip(eqn.outputs, outputs, strict=True):
                env.setdefault(value, output)

    def one(self, eqn: Equation, inputs: list[Any], env: dict[int, Any]) -> list[Any]:
        """Outputs of an equation, with changes before and after it."""
        if eqn.number in self.before:
            inputs = self.before[eqn.number](inputs)
        # A network that is traced again remembers which algorithm it had chosen.
        with jax.named_scope(conv.SCOPE) if is_ours(eqn) else nullcontext():
            outputs = self.alone(eqn, inputs, env)
        if eqn.number in self.after:
            outputs = self.after[eqn.number](outputs)
        return outputs

    def alone(self, eqn: Equation, inputs: list[Any], env: dict[int, Any]) -> list[Any]:
        """Outputs of an equation alone."""
        if eqn.bodies and self.changes(eqn):
            if is_relu(self.program, eqn):  # with its derivative of 0 at 0
                return [jax.nn.relu(inputs[0])]
            return self.bodies(eqn, inputs, env)
        if self.exact:
            return self.exactly(eqn, inputs)
        if self.fast and eqn.name == "conv_general_dilated":
            left, right = inputs
            return [_fast_convolution(left, right, eqn.params)]
        if self.narrowing is None:
            return run_original(eqn, inputs)
        return self.narrower(eqn, inputs, eqn.params)

    def changes(self, eqn: Equation) -> bool:
        """Whether an equation's bodies run otherwise than they were written."""
        if self.exact or self.narrowing is not None:
            return True
        changed = {*self.before, *self.after}
        return any(
            inside.number in changed or self.changes(inside)
            for body in eqn.bodies
            for inside in body.equations
        )

    def exactly(self, eqn: Equation, inputs: list[Any]) -> list[Any]:
        """The equation in float64; what has no rule, in its own types."""
        if eqn.name not in RULES:
            types = [self.program.types[value] for value in eqn.inputs]
            own = [_cast(a, t.dtype) for a, t in zip(inputs, types, strict=True)]
            return [self.enter(a) for a in self.narrower(eqn, own, eqn.params)]
        if eqn.name == "reduce_precision":
            return inputs
        params = dict(eqn.params)
        for key in ("new_dtype", "dtype", "preferred_element_type"):
            if jnp.issubdtype(params.get(key) or jnp.int32, jnp.inexact):
                params[key] = wide(params[key])
        if "precision" in params:
            params["precision"] = _HIGHEST[eqn.name]
        return self.narrower(eqn, inputs, params)

    def narrower(
        self, eqn: Equation, inputs: list[Any], params: Mapping[str, Any]
    ) -> list[Any]:
        """The equation on what is left of its operands."""
        narrowing = self.narrowing
        if narrowing is None:
            return bind(eqn, inputs, params)
        if eqn.name in GENERATORS or eqn.name not in RULES:
            whole = bind(eqn, inputs, params)
            pairs = zip(eqn.outputs, whole, strict=True)
            return [narrowing.take(value, array) for value, array in pairs]
        kept = [narrowing.kept(value) for value in (*eqn.inputs, *eqn.outputs)]
        if eqn.number in narrowing.labels.shuffles:
            return [_shuffle(narrowing.labels.shuffles[eqn.number], inputs[0], kept[0])]
        if not self.exact and all(k.all() for axes in kept for k in axes):
            return run_original(eqn, inputs)
        if eqn.name in NARROWER:
            count = len(eqn.inputs)
            params = NARROWER[eqn.name](params, kept[:count], kept[count:])
        if eqn.name == "slice":
            return [_take_slice(inputs[0], kept[0], params)]
        if eqn.name == "sharding_constraint":
            return inputs
        if not self.exact and eqn.name in CONTRACTIONS:
            return [contract(eqn, inputs[0], inputs[1], params)]
        return bind(eqn, inputs, params)

    def bodies(
        self, eqn: Equation, inputs: list[Any], env: dict[int, Any]
    ) -> list[Any]:
        """A loop, a branch or a custom derivative, its equations run one by one."""

        def call(body: Body, arrays: Sequence[Any]) -> list[Any]:
            inside = {**env, **dict(zip(body.inputs, arrays, strict=True))}
            self.equations(body.equations, inside)
            return [inside[value] for value in body.outputs]

        params = eqn.params
        if eqn.name == "scan":
            (body,) = eqn.bodies
            constants, carried = scan_counts(params)
            fixed, rest = inputs[:constants], inputs[constants:]

            def step(carry: list[Any], rows: list[Any]) -> tuple[list[Any], list[Any]]:
                found = call(body, [*fixed, *carry, *rows])
                return found[:carried], found[carried:]

            carry, rows = lax.scan(
                step, rest[:carried], rest[carried:], params["length"],
                params["reverse"], params["unroll"],
            )  # fmt: skip
            return [*carry, *rows]
        if eqn.name == "while":
            first, second = params["cond_nconsts"], params["body_nconsts"]
            fixed, rest = inputs[: first + second], inputs[first + second :]
            test, body = eqn.bodies
            return lax.while_loop(
                lambda carry: call(test, [*fixed[:first], *carry])[0],
                lambda carry: call(body, [*fixed[first:], *carry]),
                rest,
            )
        if eqn.name == "cond":
            ways = [lambda *a, body=body: call(body, a) for body in eqn.bodies]
            return lax.switch(inputs[0], ways, *inputs[1:])
        return call(eqn.bodies[0], inputs)


@contextmanager
def in_float64() -> Iterator[None]:
    """JAX with 64-bit types, on the device that is exact: the CPU, where there is one.

    For runs with `exact`.
    """
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        device = jax.local_devices()[0]
    with jax.enable_x64(True), jax.default_device(device):
        yield


def wide(dtype: Any) -> Any:
    """The type that numbers of an inexact one are exact in."""
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    return np.dtype(np.complex128 if is_complex else np.float64)


def is_relu(program: Program, eqn: Equation) -> bool:
    """Whether an equation is max(x, 0), as it is or as `jax.nn.relu`."""
    sole = eqn.sole
    constants = [
        program.constants[value] for value in sole.inputs if value in program.constants
    ]
    return sole.name == "max" and any(not np.any(np.asarray(c)) for c in constants)


_HIGHEST = {
    "dot_general": (lax.Precision.HIGHEST,) * 2,
    "conv_general_dilated": (lax.Precision.HIGHEST,) * 2,
}


def _cast(array: Any, dtype: Any) -> Any:
    same = jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
    return array if same else jnp.asarray(array, dtype)


def run_original(eqn: Equation, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of an equation for operands of the traced shapes."""
    of_value = dict(zip(eqn.inputs, inputs, strict=True))
    original, params = eqn.original.primitive, eqn.original.params
    operands = [of_value[value] for value in eqn.original_inputs]
    with eqn.original.ctx.manager:
        found = original.bind(*operands, **original.get_bind_params(params))
    return list(found) if original.multiple_results else [found]


def bind(eqn: Equation, inputs: Sequence[Any], params: Mapping[str, Any]) -> list[Any]:
    """An equation on other operands, with other parameters."""
    with eqn.original.ctx.manager:
        found = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    return list(found) if eqn.primitive.multiple_results else [found]


def is_ours(eqn: Equation) -> bool:
    """Whether an equation is a convolution by `jaxprune.conv`."""
    return eqn.name == "conv_general_dilated" and conv.SCOPE in eqn.scope


def contract(eqn: Equation, left: Any, right: Any, params: Mapping[str, Any]) -> Any:
    """A contraction of other sizes, by the algorithm that the network's code chose.

    `jaxprune.conv` has several, and takes by size the one that is fastest.
    """
    if not is_ours(eqn):
        return bind(eqn, [left, right], params)[0]
    return _fast_convolution(left, right, params)


def _fast_convolution(left: Any, right: Any, params: Mapping[str, Any]) -> Array:
    options = {key: params[key] for key in _CONV_OPTIONS}
    strides, padding = params["window_strides"], params["padding"]
    operands = jnp.asarray(left), jnp.asarray(right)
    return conv.conv_general_dilated(*operands, strides, padding, **options)


def multiply(layer: Layer, rows: Array, features: Array) -> Array:
    """A layer's contraction of other features with their rows.

    Parts are small beside their sum: a matrix unit that rounds its factors would lose
    them, so that this is done at full precision.

    Args:
      layer: a layer with a kernel and no groups; a dense one without axes that both
        operands share.
      rows: [*taps, f, u], see `Layer.rows`.
      features: [..., f], see `Layer.features`.

    Returns:
      [..., u], see `Layer.outputs`.
    """
    if layer.kind == "dense":
        return jnp.matmul(features, rows, precision=lax.Precision.HIGHEST)
    axes, params = layer.axes, dict(layer.equation.params)
    params["precision"] = (lax.Precision.HIGHEST,) * 2
    order = (*axes.taps, *axes.kernel_features, *axes.kernel_channels)
    kernel = rows.transpose(np.argsort(order))
    operand = layer.from_features(features)
    return layer.outputs(contract(layer.equation, operand, kernel, params))


_CONV_OPTIONS = (
    "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
    "batch_group_count", "precision", "preferred_element_type",
)  # fmt: skip


def _take_slice(array: Any, kept: Kept, params: Mapping[str, Any]) -> Any:
    """A slice of what is left: those of its indices that are."""
    strides = params["strides"] or (1,) * len(kept)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for axis, (keep, (start, limit, step)) in enumerate(zip(kept, bounds, strict=True)):
        if keep.all():
            array = lax.slice_in_dim(array, start, limit, step, axis)
            continue
        inside = np.zeros(len(keep), bool)
        inside[start:limit:step] = True
        chosen: Kept = [np.ones(size, bool) for size in array.shape]
        chosen[axis] = inside[keep]
        array = take(array, chosen)
    return array


def _shuffle(shuffle: Shuffle, array: Any, kept: Kept) -> Any:
    """What is left of an axis, in the order that its channels are put in."""
    if shuffle.order is None:
        return array
    keep = kept[shuffle.axis]
    place = np.cumsum(keep) - 1
    order = shuffle.order[keep[shuffle.order]]
    return jnp.take(array, place[order], axis=shuffle.axis)


# Parameters of an equation, what is kept of its operands and results -> parameters.
Narrower = Callable[[Mapping[str, Any], list[Kept], list[Kept]], dict[str, Any]]


def _sizes(kept: Kept) -> tuple[int, ...]:
    return tuple(int(keep.sum()) for keep in kept)


def _broadcast(params: Mapping, given: list[Kept], made: list[Kept]) -> dict:
    return {**params, "shape": _sizes(made[0])}


def _reshape(params: Mapping, given: list[Kept], made: list[Kept]) -> dict:
    return {**params, "new_sizes": _sizes(made[0])}


def _split(params: Mapping, given: list[Kept], made: list[Kept]) -> dict:
    axis = params["axis"]
    return {**params, "sizes": tuple(int(kept[axis].sum()) for kept in made)}


def _pad(params: Mapping, given: list[Kept], made: list[Kept]) -> dict:
    config = []
    for keep, (low, high, inner) in zip(made[0], params["padding_config"], strict=True):
        if not keep.all():
            assert inner == 0, "a padded channel between two others"
            size = len(keep)
            low = int(keep[: max(low, 0)].sum()) if low > 0 else low
            high = int(keep[size - max(high, 0) :].sum()) if high > 0 else high
        config.append((low, high, inner))
    return {**params, "padding_config": tuple(config)}


def _conv(params: Mapping, given: list[Kept], made: list[Kept]) -> dict:
    numbers = params["dimension_numbers"]
    x, kernel = given[0][numbers.lhs_spec[1]], given[1][numbers.rhs_spec[1]]
    groups = int(x.sum()) // max(int(kernel.sum()), 1)
    return {**params, "feature_group_count": groups}


def _slice_sizes(params: Mapping, given: list[Kept], made: list[Kept]) -> dict:
    sizes = zip(given[0], params["slice_sizes"], strict=True)
    whole = (int(keep.sum()) if size == len(keep) else size for keep, size in sizes)
    return {**params, "slice_sizes": tuple(whole)}


NARROWER: dict[str, Narrower] = {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _conv,
    "dynamic_slice": _slice_sizes,
    "gather": _slice_sizes,
    "pad": _pad,
    "reshape": _reshape,
    "split": _split,
}
