"""Checks of what a caller gives, or a file holds: one for each kind of array."""

import numbers
from collections.abc import Collection, Iterable, Mapping
from operator import index
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.errors import InputError, first_line


def check_kind(what: str, value: Any, kind: Any, expected: str) -> None:
    """Raises InputError if `value` is no `kind`; `expected` says that in words."""
    if not isinstance(value, kind):
        raise InputError(f"{what} must be {expected}, got {type(value).__name__}")


# What a network is in by its class, and how it is given.
_FORMS = {
    "flax.linen.module.Module": (
        "a Flax linen module", "jaxprune.from_linen(model, variables)"
    ),
    "flax.nnx.module.Module": ("a flax.nnx Module", "jaxprune.from_nnx(model)"),
    "flax.nnx.statelib.State": (
        "an nnx.State", "jaxprune.from_nnx(nnx.merge(graphdef, state))"
    ),
    "flax.nnx.graphlib.GraphDef": (
        "an nnx.GraphDef", "jaxprune.from_nnx(nnx.merge(graphdef, state))"
    ),
    "flax.training.train_state.TrainState": (
        "a TrainState",
        "give its model, and {'params': state.params, ...} for the variables",
    ),
    "equinox._module._module.Module": (
        "an Equinox module", "jaxprune.from_equinox(model)"
    ),
    "keras.src.models.model.Model": ("a Keras model", "jaxprune.from_keras(model)"),
    "keras.src.layers.layer.Layer": (
        "a Keras layer", "jaxprune.from_keras(keras.Sequential([...]))"
    ),
    "haiku._src.transform.Transformed": (
        "a Haiku transform",
        "jaxprune.Network(hk.without_apply_rng(transformed).apply, params)",
    ),
    "haiku._src.transform.TransformedWithState": (
        "a Haiku transform with state",
        "jaxprune.Network(f, {'params': params, 'state': state}), f calling its apply",
    ),
    "torch.nn.modules.module.Module": (
        "a PyTorch module", "torchax.extract_jax(model) makes a function of it"
    ),
    "builtins.str": ("text", "a file is read by jaxprune.from_keras or load_compact"),
    "pathlib.PurePath": ("a path", "it is read by jaxprune.from_keras or load_compact"),
}  # fmt: skip


def known_form(value: Any) -> str | None:
    """What a value is that was given as a network, and how that is given.

    None where it is nothing that is known. No framework is imported for that.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}: give a model of it"
    for base in type(value).__mro__:
        if found := _FORMS.get(f"{base.__module__}.{base.__qualname__}"):
            return ": ".join(found)
    return None


def form_of(value: Any) -> str:
    """The same, or the name of its type."""
    return known_form(value) or type(value).__name__


def check_model(value: Any, kind: Any, expected: str) -> None:
    """Raises InputError if a model is no `kind`, and says which function takes it."""
    if not isinstance(value, kind):
        raise InputError(f"model must be {expected}, got {form_of(value)}")


def check_function(value: Any) -> None:
    """Raises InputError if `value` is no function, or an object that is more."""
    if known_form(value) or not callable(value):
        raise InputError(
            f"a network is a function of parameters and a batch, got {form_of(value)}"
        )


def check_number(what: str, value: Any, lowest: float, highest: float) -> None:
    """Raises InputError if `value` is no real number from `lowest` to `highest`."""
    whole = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not whole or not lowest <= value <= highest:
        limits = f"{lowest:g} .. {highest:g}"
        raise InputError(f"{what} must be a number in {limits}, got {value!r:.60}")


def as_array(what: str, value: Any) -> np.ndarray:
    """`value` as an array, its bytes in this machine's order.

    Raises:
      InputError: it is none, as rows of two lengths.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be an array: {first_line(error)}") from None
    # JAX takes them for numbers of the other order, in a function that is compiled.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder())


def check_byte_order(what: str, value: Any) -> None:
    """Raises InputError if an array's bytes are not in this machine's order."""
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        raise InputError(
            f"{what} is {value.dtype}, which JAX does not take: give "
            f"array.astype('{value.dtype.str[1:]}')"
        )


def check_numbers(
    what: str, value: Any, shape: tuple[int, ...], *, lowest: float | None = None
) -> np.ndarray:
    """`value` as an array, if it holds finite real numbers of this shape.

    Raises:
      InputError: it does not, or holds one below `lowest`; the first place that is not
        finite is named.
    """
    array = as_array(what, value)
    if not _is_real(array) or array.dtype == bool:
        raise InputError(f"{what} must be real numbers, got {array.dtype}")
    if array.shape != shape:
        raise InputError(f"{what} must be of shape {shape}, got {array.shape}")
    _check_finite(what, array)
    if lowest is not None and (array < lowest).any():
        raise InputError(f"{what} must be at least {lowest:g}, got {array.min():g}")
    return array


def check_finite(what: str, value: Any) -> np.ndarray:
    """`value` as an array, if it holds finite real numbers or booleans.

    Raises:
      InputError: it does not.
    """
    array = check_real(what, value)
    _check_finite(what, array)
    return array


def check_labels(what: str, value: Any, classes: int) -> np.ndarray:
    """`value` as an array, if it holds class indices, integers in 0 .. classes - 1.

    Raises:
      InputError: it does not.
    """
    array = as_array(what, value)
    if array.dtype.kind not in "iu":
        raise InputError(
            f"{what} must be integers, the index of a class each; got {array.dtype}"
        )
    if array.size and not 0 <= array.min() <= array.max() < classes:
        raise InputError(
            f"{what} must lie in 0 .. {classes - 1}, as there are {classes} classes; "
            f"got {array.min()} .. {array.max()}"
        )
    return array


def check_names(what: str, value: Any) -> tuple[str, ...]:
    """`value` as a tuple, if it is a sequence of different names; else InputError."""
    names = tuple(value) if isinstance(value, Iterable) else ()
    if isinstance(value, str) or not all(isinstance(name, str) for name in names):
        names = ()
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"{what} must be a sequence of different names, got {value!r:.60}"
        )
    return names


def check_variables(variables: Any) -> None:
    """Checks a linen network's variables.

    Raises:
      InputError: they are no dictionary with a collection "params", or hold something
        else than finite real numbers; the array is named.
    """
    check_collections(variables)
    check_parameters(variables)


def check_parameters(params: Any) -> None:
    """Checks a network's parameters, a tree of arrays.

    Raises:
      InputError: there is no floating-point array among them, or they hold something
        else than arrays of finite real numbers; the array is named.
    """
    found = False
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            continue  # keys of random numbers
        if not isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if isinstance(leaf, int | float) and _in_lists(path):
                raise InputError(
                    f"variables must hold arrays; {name} is a number in lists of "
                    "lists: give np.array(...) of these"
                )
            check_byte_order(f"the variable {name}", leaf)
            array = np.asarray(leaf)
            if not _is_real(array):
                raise InputError(
                    f"variables must hold real numbers; {name} is {array.dtype}"
                )
            _check_finite(f"the variable {name}", array)
            dtype = array.dtype
        found = found or bool(jnp.issubdtype(dtype or np.bool_, jnp.floating))
    if not found:
        raise InputError("the network's parameters hold no floating-point array")


def check_real(what: str, value: Any) -> np.ndarray:
    """`value` as an array, if it holds real numbers; else InputError."""
    array = as_array(what, value)
    if not _is_real(array):
        raise InputError(f"{what} must be real numbers, got {array.dtype}")
    return array


def check_counts(what: str, values: Any) -> set[int]:
    """`values` as a set, if they are integers of at least 1; else InputError."""
    check_kind(what, values, Collection, "a list of numbers")
    return {check_count(what, value) for value in values}


def check_pairs(what: str, value: Any, expected: str) -> None:
    """Raises InputError unless `value` has a pair for each of its names."""
    expected = f"a dictionary of ({expected}) by name"
    check_kind(what, value, Mapping, expected)
    for pair in value.values():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"{what} must be {expected}, got {type(pair).__name__}")


def check_collections(variables: Any) -> None:
    """Raises InputError if a network's variables hold no collection "params"."""
    if isinstance(variables, Mapping) and "params" in variables:
        return
    found = form_of(variables)
    if isinstance(variables, Mapping) and not known_form(variables):
        names = ", ".join(map(str, variables)) or "nothing"
        found = f"one of {names:.60}; parameters alone are {{'params': parameters}}"
    raise InputError(
        "variables must be a dictionary with a collection 'params', as model.init "
        f"returns it; got {found}"
    )


def _in_lists(path: Any) -> bool:
    """Whether a leaf is in a list that is in another, as rows of a matrix are."""
    return [type(key) for key in path[-2:]] == [jax.tree_util.SequenceKey] * 2


def _is_real(array: np.ndarray) -> bool:
    """Whether it holds real numbers, JAX's own types (bfloat16, float8) included."""
    return array.dtype.kind in "fiub" or jnp.issubdtype(array.dtype, np.floating)


def _check_finite(what: str, array: np.ndarray) -> None:
    if array.dtype.kind in "iub":  # without an array of as many answers
        return
    if not (finite := np.isfinite(array)).all():
        place = np.argwhere(~finite)[0].tolist()
        where = f" at {place}" if place else ""
        raise InputError(f"{what} must be finite, got {array[tuple(place)]}{where}")


def check_count(what: str, value: Any) -> int:
    """`value`, if it is an integer of at least 1; else InputError."""
    try:
        if isinstance(value, bool) or index(value) < 1:
            raise TypeError
    except TypeError:
        raise InputError(
            f"{what} must be an integer of at least 1, got {value!r:.60}"
        ) from None
    return index(value)


def is_close(a: Any, b: Any, dtype: Any = None) -> bool:
    """Whether arrays are equal but for rounding, half of a type's digits.

    Args:
      a: an array.
      b: another.
      dtype: the type; by default that of `a`.
    """
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.abs(one).max(initial=0)
    distance = np.abs(one - other).max(initial=0)
    return bool(distance <= half_of_digits(dtype or a.dtype) * scale)


def half_of_digits(dtype: Any) -> float:
    """Half of a type's digits."""
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return float(jnp.finfo(dtype).eps) ** 0.5 if inexact else 0.0
