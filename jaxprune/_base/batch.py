"""Batches: an array, or a tree of arrays for networks of several inputs.

The first axis of every array is that of the images.
"""

from typing import Any

import jax
import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError


def size_of(batch: Any) -> int:
    """How many images a batch has."""
    return int(np.shape(jax.tree.leaves(batch)[0])[0])


def take(batch: Any, index: Any) -> Any:
    """Some images of a batch, by their indices or a slice."""
    return jax.tree.map(lambda array: array[index], batch)


def pad_rows(batch: Any, size: int) -> Any:
    """A batch with zeros after the last image, up to `size` images."""

    def pad(rows: Any) -> Any:
        if len(rows) == size:
            return rows
        return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))

    return jax.tree.map(pad, batch)


def check_batch(what: str, batch: Any, fewest: int = 1) -> Any:
    """A batch in NumPy, if it is one of finite numbers with enough images.

    Raises:
      InputError: it is not; its shapes are named.
    """
    arrays = jax.tree.map(lambda array: arguments.as_array(what, array), batch)
    leaves = jax.tree.leaves(arrays)
    sizes = {array.shape[:1] for array in leaves}
    single = len(leaves) == 1 and leaves[0] is arrays
    several = len(sizes) != 1 or sizes == {()} or (single and leaves[0].ndim < 2)
    if several or size_of(arrays) < fewest:
        shapes = [list(array.shape) for array in leaves]
        raise InputError(
            f"{what} must be [N, ...], N at least {fewest}, got shape "
            f"{shapes[0] if single else shapes}"
        )
    for array in leaves:
        arguments.check_numbers(what, array, array.shape)
    return arrays
