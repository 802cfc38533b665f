"""What every element of an array depends on, through one operation of a traced program.

An element's tag is the channel it depends on, LIVE or CONSTANT; see
`jaxprune.channels.flow`. Only operations listed here are understood.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

# A channel's tag is its index. CONSTANT is neutral in every combination.
LIVE = -1
CONSTANT = -2


class Joined(ValueError):
    """An operation joins channels with other values, or may do so."""


class Tags(NamedTuple):
    """Tags of an array's elements, and the layers that they come from."""

    tags: np.ndarray
    sources: frozenset[str]


def constant(shape: Sequence[int]) -> Tags:
    """Tags of an array that depends on nothing."""
    return Tags(np.full(shape, CONSTANT), frozenset())


def step(eqn: Any, inputs: Sequence[Tags]) -> list[Tags]:
    """Tags of an equation's results.

    Raises:
      Joined: it joins a channel with anything but constants, or is not understood.
    """
    sources = frozenset().union(*(i.sources for i in inputs))
    arrays = [i.tags for i in inputs]
    if not any((tags >= 0).any() for tags in arrays):
        live = any((tags == LIVE).any() for tags in arrays)
        tag = LIVE if live else CONSTANT
        return [Tags(np.full(v.aval.shape, tag), sources) for v in eqn.outvars]
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        shape = eqn.outvars[0].aval.shape
        low, high = combine([np.broadcast_to(tags, shape) for tags in arrays])
    elif name in MOVING:
        moved = eqn.primitive.bind(
            *(np.asarray(tags, np.int32) for tags in arrays), **eqn.params
        )
        results = moved if eqn.primitive.multiple_results else [moved]
        return [Tags(np.asarray(tags), sources) for tags in results]
    elif name in REDUCTIONS:
        parts = np.moveaxis(
            arrays[0], eqn.params["axes"], range(len(eqn.params["axes"]))
        )
        low, high = combine(parts.reshape(-1, *eqn.outvars[0].aval.shape))
    elif name in WINDOWS:
        low, high = combine_windows(arrays[0], eqn.params)
    else:
        raise Joined(f"the operation '{name}' {_after(sources)} is not understood")
    if (low != high).any():
        raise Joined(
            f"the operation '{name}' {_after(sources)} joins them with other "
            f"values{_HINTS.get(name, '')}"
        )
    return [Tags(high, sources)]


def combine(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest tag that is not CONSTANT; they differ where values join."""
    parts = np.stack(parts)
    high = parts.max(0)
    # Constants count as the highest, so they never lower the minimum.
    low = np.where(parts == CONSTANT, high, parts).min(0)
    return low, high


def combine_windows(tags: np.ndarray, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """`combine` over the windows of a pool; padding is CONSTANT."""

    def highest(values: np.ndarray) -> np.ndarray:
        bind = jax.lax.reduce_window_max_p.bind
        names = ("window_dimensions", "window_strides", "padding", "base_dilation",
                 "window_dilation")  # fmt: skip
        windows = {name: params[name] for name in names}
        return np.asarray(bind(np.asarray(values, np.int32), **windows))

    high = np.maximum(highest(tags), CONSTANT)
    ceiling = tags.max() + 1
    lowest = ceiling - highest(np.where(tags == CONSTANT, 0, ceiling - tags))
    return np.where(high == CONSTANT, high, lowest), high


def by_position(eqn: Any, inputs: list[np.ndarray]) -> bool:
    """Whether an operation that moves elements singles out channels by position.

    With fewer channels, the same code would take others.
    """
    name, params, tags = eqn.primitive.name, eqn.params, inputs[0]
    if name in ("slice", "split", "pad", "reshape"):
        varying = [
            a for a in range(tags.ndim) if (tags != tags.take([0], a)).any()
        ]  # fmt: skip
    if name == "slice":
        strides = params["strides"] or (1,) * tags.ndim
        whole = zip(
            params["start_indices"], params["limit_indices"], strides, strict=True
        )
        cut = [w != (0, n, 1) for w, n in zip(whole, tags.shape, strict=True)]
        return any(cut[a] for a in varying)
    if name == "split":
        return params["axis"] in varying
    if name == "pad":
        return any(any(params["padding_config"][a]) for a in varying)
    if name == "reshape":
        return any(not _stays_whole(a, tags.shape, eqn) for a in varying)
    return False


def _stays_whole(axis: int, shape: tuple[int, ...], eqn: Any) -> bool:
    """Whether a reshape leaves an axis as it is, or puts others in front of it."""
    behind = int(np.prod(shape[axis + 1 :]))
    new = eqn.outvars[0].aval.shape
    return any(
        int(np.prod(new[b + 1 :])) == behind and new[b] % shape[axis] == 0
        for b in range(len(new))
    )


def inner_jaxpr(eqn: Any) -> Any:
    """The function that a call (jit, custom_jvp, remat, ...) runs once, or None."""
    if eqn.primitive.name not in _CALLS:
        return None
    found = [eqn.params[k] for k in ("jaxpr", "call_jaxpr") if k in eqn.params]
    inner = found[0]
    return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def propagate(
    jaxpr: Any,
    env: dict[Any, Any],
    read: Callable[[Any], Any],
    step: Callable[[Any, list[Any]], list[Any]],
    constant: Callable[[tuple[int, ...]], Any],
) -> None:
    """Sends tags through a traced program, and through the functions it calls.

    Args:
      jaxpr: the program.
      env: variable -> tags; what the program works out is added.
      read: tags of a variable or literal that an equation is given.
      step: (equation, tags given) -> tags of its results.
      constant: shape -> tags of an array that depends on nothing.
    """
    for eqn in jaxpr.eqns:
        inputs = [read(var) for var in eqn.invars]
        inner = inner_jaxpr(eqn)
        if inner is None or len(inner.invars) != len(inputs):
            outputs = step(eqn, inputs)
        else:
            inside = dict(zip(inner.invars, inputs, strict=True))
            inside |= {var: constant(var.aval.shape) for var in inner.constvars}

            def read_inside(var: Any, inside: dict[Any, Any] = inside) -> Any:
                if isinstance(var, Literal):
                    return constant(np.shape(var.val))
                return inside[var]

            propagate(inner, inside, read_inside, step, constant)
            outputs = [read_inside(var) for var in inner.outvars]
        env.update(zip(eqn.outvars, outputs, strict=True))


def _after(sources: frozenset[str]) -> str:
    return "after " + " and ".join(f"'{name}'" for name in sorted(sources))


_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "remat", "remat2", "checkpoint",
}  # fmt: skip
MOVING = {
    "reshape", "transpose", "slice", "squeeze", "broadcast_in_dim", "rev",
    "concatenate", "pad", "expand_dims", "copy", "copy_p", "split",
}  # fmt: skip
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}
WINDOWS = {"reduce_window_max", "reduce_window_min", "reduce_window_sum"}
ELEMENTWISE = {
    "abs", "add", "add_any", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2",
    "atanh", "cbrt", "ceil", "clamp", "convert_element_type", "cos", "cosh", "div",
    "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt",
    "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "xor",
}  # fmt: skip
_HINTS = {
    "add": " (a residual sum keeps both of its sides)",
    "reduce_sum": " (a sum across channels, as in a norm or softmax)",
    "reduce_max": " (a maximum across channels, as in softmax or maxout)",
}
