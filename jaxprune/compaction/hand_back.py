"""The smaller network in the framework that the whole one is of, if it is the same."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import is_close
from jaxprune._base.errors import InputError, first_line
from jaxprune.adapters.offsets import Offset
from jaxprune.compaction.artefact import plain
from jaxprune.compaction.cut import KERNELS, STORED, offset_paths
from jaxprune.graph.evaluate import in_float64, run
from jaxprune.graph.network import Network
from jaxprune.graph.trace import coarsest


def hand_back(small: Any, whole: Network, what: str) -> Any:
    """The smaller module or model.

    Args:
      small: the compact network.
      whole: the network that it is left of.
      what: what the whole one must be, as `framework` of its origin has it.

    Raises:
      InputError: it is another framework's; or its code computes something else with
        fewer channels, on the example or on drawn inputs.
    """
    origin = whole.origin
    if getattr(origin, "framework", None) != what:
        raise InputError(f"the network was no {what}")
    for path in small.arrays:
        collection, _, name = path.partition("/")
        if collection in (KERNELS, STORED):
            read = f"'{name}' reads" if collection == KERNELS else "it reads"
            raise InputError(
                f"the {what} cannot be handed back: {read} a kernel that is computed "
                "of several arrays, or read twice, and no longer follows from them"
            )
    offsets = _offsets(small.network, small.arrays)
    model = origin.smaller(whole, small.network, offsets)
    again = origin.network(model)
    for batch in (small.example, _drawn_like(small.example)):
        why = differs(again.function, again.params, small, whole, batch)
        if not why and whole.graph(batch).program.coarsest.itemsize < 4:
            why = _differs_in_float64(again, small, batch)
        if why:
            raise InputError(
                f"the {what} cannot be handed back: its own code computes something "
                f"else with fewer channels ({why}); call the network itself"
            )
    return model


def _offsets(network: Network, arrays: Mapping[str, Any]) -> dict[str, Offset]:
    """Maps that are added to what layers return, by the path of their kernel.

    Raises:
      InputError: a layer is called more than once, with another map each time.
    """
    found: dict[str, list[Offset | None]] = {}
    for layer in network.layers.values():
        paths = offset_paths(layer)
        parts = [arrays[path] for path in paths if path in arrays]
        offset = Offset(*parts) if parts else None
        found.setdefault(layer.leaf or layer.name, []).append(offset)
    for leaf, (first, *rest) in found.items():
        if not all(_same(first, other) for other in rest):
            raise InputError(
                f"{leaf} is read {1 + len(rest)} times, and each time another map is "
                "added: no layer can do that; call the network itself"
            )
    return {leaf: each[0] for leaf, each in found.items() if each[0] is not None}


def _same(one: Offset | None, other: Offset | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one.rows[one.index], other.rows[other.index])


def _drawn_like(example: Any) -> Any:
    """Inputs as large as the example's, drawn: those may be zero, or all the same."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda array: _drawn(rng, array), example)


def _drawn(rng: np.random.Generator, example: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(example.dtype, jnp.floating):
        highest = int(example.max(initial=0)) + 1
        return rng.integers(0, highest, example.shape).astype(example.dtype)
    wide = example.astype(np.float64)
    drawn = rng.normal(wide.mean(), wide.std() or 1.0, example.shape)
    return drawn.astype(example.dtype)


def differs(
    function: Callable[..., Any],
    variables: Any,
    small: Any,
    whole: Network,
    batch: Any = None,
) -> str:
    """The difference of a function from a compact network, if any.

    Args:
      function: (variables, batch) -> a tree of arrays.
      variables: what it is given.
      small: the compact network.
      whole: the network that it is left of.
      batch: inputs; by default the network's example.
    """
    batch = small.example if batch is None else batch
    try:
        found = jax.jit(lambda v, x: function(v, x))(variables, batch)
    except Exception as error:  # whatever the model's own code raises
        return first_line(error)
    return _difference(found, small(batch), whole.graph(batch).program.coarsest)


def _differs_in_float64(network: Network, small: Any, batch: Any) -> str:
    """The same for networks that round to 16 bits: what is beneath their rounding."""

    def exactly(network: Network) -> Any:
        program = network.graph(batch).program
        with in_float64():
            given = jax.tree.map(np.asarray, (network.arrays, batch))
            return jax.jit(lambda a, x: run(program, a, x, exact=True))(*given)

    stored = coarsest(jnp.result_type(array) for array in small.arrays.values())
    return _difference(exactly(network), exactly(small.network), stored)


def _difference(found: Any, expected: Any, dtype: Any) -> str:
    """The difference of two outputs beyond half of a type's digits, if any."""
    ones, others = jax.tree.leaves(plain(found)), jax.tree.leaves(plain(expected))
    if len(ones) != len(others):
        return "it returns something else"
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape:
            return f"it returns {one.shape} for {other.shape}"
        if one.dtype != other.dtype:
            return f"it returns {one.dtype} for {other.dtype}"
        if not is_close(one, other, dtype):
            distance = float(np.abs(np.asarray(one) - np.asarray(other)).max())
            return f"it differs by {distance:.3g}"
    return ""
