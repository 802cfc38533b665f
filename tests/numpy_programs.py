"""A traced program run in NumPy, operation by operation: nothing is compiled.

    run(jax.make_jaxpr(function)(*arguments), *arguments)

XLA takes most of a second for each new shape of a small network. Operations that are
not in the table here are left to JAX.
"""

from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal
from numpy.lib.stride_tricks import sliding_window_view


def run(closed: Any, *arguments: Any) -> list[np.ndarray]:
    """The program's results, as a flat list."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(arguments)]
    # Some BLAS raise flags for what they leave unused; who compares refuses a NaN.
    with np.errstate(all="ignore"):
        return _run(closed.jaxpr, [np.asarray(c) for c in closed.consts], leaves)


def _run(jaxpr: Any, consts: Any, arguments: Any) -> list[np.ndarray]:
    env = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= zip(jaxpr.invars, arguments, strict=True)

    def read(var: Any) -> np.ndarray:
        return np.asarray(var.val) if isinstance(var, Literal) else env[var]

    for eqn in jaxpr.eqns:
        results = _apply(eqn, [read(var) for var in eqn.invars])
        for var, result in zip(eqn.outvars, results, strict=True):
            env[var] = np.asarray(result, var.aval.dtype)
    return [read(var) for var in jaxpr.outvars]


def _apply(eqn: Any, inputs: list[np.ndarray]) -> Any:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _scan(params, inputs)
    if name == "while":
        return _while(params, inputs)
    if name in TABLE:
        found = TABLE[name](*inputs, **params)
        if found is not None:
            return found if eqn.primitive.multiple_results else [found]
    elif (inner := inner_jaxpr(eqn)) is not None:
        assert len(inner.invars) == len(inputs) and not inner.constvars, name
        return _run(inner, [], inputs)
    found = eqn.primitive.bind(*map(jax.numpy.asarray, inputs), **params)
    return found if eqn.primitive.multiple_results else [found]


def _scan(params: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    if "ft_in" in params:  # since JAX 0.11
        constants, carried = (len(part.vals) for part in params["ft_in"].unpack()[:2])
    else:
        constants, carried = params["num_consts"], params["num_carry"]
    fixed, state = inputs[:constants], inputs[constants : constants + carried]
    columns = inputs[constants + carried :]
    closed, rows = params["jaxpr"], []
    assert not params["reverse"]
    for i in range(params["length"]):
        own = [column[i] for column in columns]
        found = _run(closed.jaxpr, closed.consts, [*fixed, *state, *own])
        state = found[:carried]
        rows.append(found[carried:])
    return [*state, *(np.stack(parts) for parts in zip(*rows, strict=True))]


def _while(params: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    first, second = params["cond_nconsts"], params["body_nconsts"]
    asked, made = inputs[:first], inputs[first : first + second]
    state = inputs[first + second :]
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    while _run(test.jaxpr, test.consts, [*asked, *state])[0]:
        state = _run(body.jaxpr, body.consts, [*made, *state])
    return [*state]


def _conv(x, w, *, window_strides, padding, lhs_dilation, rhs_dilation,
          dimension_numbers, feature_group_count, batch_group_count, **_):  # fmt: skip
    if batch_group_count != 1 or x.ndim != 4:
        return None
    groups = feature_group_count
    x = _pad(x.transpose(dimension_numbers.lhs_spec), 0.0, [
        (0, 0, 0), (0, 0, 0),
        *((*p, d - 1) for p, d in zip(padding, lhs_dilation, strict=True)),
    ])  # fmt: skip
    w = w.transpose(dimension_numbers.rhs_spec)
    sizes = [d * (k - 1) + 1 for d, k in zip(rhs_dilation, w.shape[2:], strict=True)]
    (a, b), (c, d) = window_strides, rhs_dilation
    views = sliding_window_view(x, sizes, (2, 3))[:, :, ::a, ::b, ::c, ::d]
    n, features, rows, columns, *_ = views.shape
    views = views.reshape(n, groups, features // groups, *views.shape[2:])
    left = views.transpose(1, 0, 3, 4, 2, 5, 6).reshape(groups, n * rows * columns, -1)
    right = w.reshape(groups, len(w) // groups, -1).swapaxes(1, 2)
    y = (left @ right).reshape(groups, n, rows, columns, -1).transpose(1, 0, 4, 2, 3)
    y = y.reshape(n, len(w), rows, columns)
    return y.transpose(np.argsort(dimension_numbers.out_spec))


def _dot(x, y, *, dimension_numbers, **_):
    (across, down), (batch, other) = dimension_numbers
    x_free = [a for a in range(x.ndim) if a not in (*across, *batch)]
    y_free = [a for a in range(y.ndim) if a not in (*down, *other)]
    size = int(np.prod([x.shape[a] for a in across]))
    shape = [x.shape[a] for a in (*batch, *x_free)] + [y.shape[a] for a in y_free]
    lead = [x.shape[a] for a in batch]
    x = x.transpose(*batch, *x_free, *across).reshape(*lead, -1, size)
    y = y.transpose(*other, *down, *y_free).reshape(*lead, size, -1)
    return (x @ y).reshape(shape)


def _pad(x, value, padding_config):
    """With `inner` values between neighbours; negative padding takes away."""
    for axis, (low, high, inner) in enumerate(padding_config):
        if (low, high, inner) == (0, 0, 0):
            continue
        x = np.moveaxis(x, axis, 0)
        length = max(0, len(x) + inner * (len(x) - 1))
        size = length + max(low, 0) + max(high, 0)
        wide = np.full((size, *x.shape[1:]), value, x.dtype)
        wide[max(low, 0) : max(low, 0) + length : inner + 1] = x
        x = np.moveaxis(wide[max(-low, 0) : len(wide) - max(-high, 0)], 0, axis)
    return x


def _window(reduce, neutral):
    def windows(x, *, window_dimensions, window_strides, padding, base_dilation,
                window_dilation):  # fmt: skip
        if {*base_dilation, *window_dilation} != {1}:
            return None
        x = _pad(x, neutral, [(*p, 0) for p in padding])
        views = sliding_window_view(x, window_dimensions)
        views = views[tuple(slice(None, None, s) for s in window_strides)]
        return reduce(views, tuple(range(x.ndim, 2 * x.ndim)))

    return windows


def _broadcast(x, *, shape, broadcast_dimensions, **_):
    axes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        axes[axis] = size
    return np.broadcast_to(x.reshape(axes), shape)


def _gather(x, indices, *, dimension_numbers, slice_sizes, **_):
    d = dimension_numbers
    axis = _only_axis(d, d.collapsed_slice_dims, d.start_index_map)
    others = np.delete(x.shape, axis or 0), np.delete(slice_sizes, axis or 0)
    if axis is None or (others[0] != others[1]).any():
        return None
    taken = np.moveaxis(x, axis, 0)[indices[..., 0]]
    places = [a for a in range(taken.ndim) if a not in d.offset_dims]
    return np.moveaxis(taken, range(taken.ndim), [*places, *d.offset_dims])


def _scatter(put):
    def scatter(x, indices, updates, *, dimension_numbers, mode, **_):
        d = dimension_numbers
        axis = _only_axis(d, d.inserted_window_dims, d.scatter_dims_to_operand_dims)
        others = [updates.shape[a] for a in d.update_window_dims]
        if axis is None or (others != np.delete(x.shape, axis)).any():
            return None
        places = [a for a in range(updates.ndim) if a not in d.update_window_dims]
        result = np.moveaxis(x, axis, 0).copy()
        moved = updates.transpose(*places, *d.update_window_dims)
        index = indices[..., 0]
        if mode == lax.GatherScatterMode.CLIP:
            index = index.clip(0, len(result) - 1)
        inside = (index >= 0) & (index < len(result))
        put(result, index[inside], moved[inside])
        return np.moveaxis(result, 0, axis)

    return scatter


def _only_axis(numbers, missing, mapped):
    """The axis along which whole slices are indexed, as in x[..., indices]; or None."""
    batched = [getattr(numbers, n) for n in numbers._fields if "batching" in n]
    return (
        missing[0]
        if len(missing) == 1 and missing == mapped and not any(batched)
        else None
    )


def _choose(source, operand, *, window_dimensions, window_strides, padding, **_):
    """Adds each of `source` where its window has the largest of `operand`."""
    wide = _pad(operand, -np.inf, [(*p, 0) for p in padding])
    views = sliding_window_view(wide, window_dimensions)
    views = views[tuple(slice(None, None, s) for s in window_strides)]
    first = views.reshape(*source.shape, -1).argmax(-1)
    inside = np.unravel_index(first, window_dimensions)
    starts = np.indices(source.shape)
    result = np.zeros_like(wide)
    where = tuple(
        s * i + o for s, i, o in zip(window_strides, starts, inside, strict=True)
    )
    np.add.at(result, where, source)
    return _pad(result, 0.0, [(-low, -high, 0) for low, high in padding])


def _elementwise(function):
    return lambda *inputs, **_: function(*inputs)


_CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "remat2", "closed_call")


def inner_jaxpr(eqn):
    """The function that a call runs, or None."""
    if eqn.primitive.name not in _CALLS:
        return None
    found = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return getattr(found, "jaxpr", found)


TABLE = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "pad": lambda x, value, *, padding_config: _pad(x, value, padding_config),
    "reduce_window_max": _window(np.max, -np.inf),
    "reduce_window_sum": _window(np.sum, 0.0),
    "broadcast_in_dim": _broadcast,
    "gather": _gather,
    "scatter": _scatter(np.ndarray.__setitem__),
    "scatter-add": _scatter(np.add.at),
    "select_and_scatter_add": _choose,
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "stack": lambda *xs, axis: np.stack(xs, axis),
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "squeeze": lambda x, *, dimensions: x.squeeze(tuple(dimensions)),
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "slice": lambda x, *, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))
    ],
    "split": lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "reduce_sum": lambda x, *, axes, **_: x.sum(tuple(axes)),
    "reduce_max": lambda x, *, axes, **_: x.max(tuple(axes)) if x.size else None,
    "select_n": lambda which, a, b: np.where(which, b, a),
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "integer_pow": lambda x, *, y: x**y,
    "logistic": _elementwise(lambda x: 1 / (1 + np.exp(-x))),
    "rsqrt": _elementwise(lambda x: 1 / np.sqrt(x)),
    "is_finite": _elementwise(np.isfinite),
    "copy": _elementwise(np.copy),
    "copy_p": _elementwise(np.copy),
    **{
        name: _elementwise(function)
        for name, function in {
            "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply,
            "div": np.divide, "max": np.maximum, "min": np.minimum,
            "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log,
            "tanh": np.tanh, "sqrt": np.sqrt, "square": np.square, "eq": np.equal,
            "ne": np.not_equal, "gt": np.greater, "ge": np.greater_equal,
            "lt": np.less, "le": np.less_equal, "and": np.logical_and,
            "or": np.logical_or, "not": np.logical_not, "sign": np.sign,
        }.items()
    },
}  # fmt: skip
