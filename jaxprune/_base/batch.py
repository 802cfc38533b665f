"""Batches: an array, or a tree of arrays for networks of several inputs.

The first axis of every array is that of the images.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError

T = TypeVar("T")


def size_of(batch: Any) -> int:
    """How many images a batch has."""
    return int(np.shape(jax.tree.leaves(batch)[0])[0])


def path_name(path: Any) -> str:
    """The path of a leaf in a tree, "params/block_1/conv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def on_device(batch: Any) -> Any:
    """A batch's arrays as JAX has them."""
    return jax.tree.map(jnp.asarray, batch)


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
    """A batch in NumPy, if it is a tree of finite real numbers with enough images.

    Raises:
      InputError: it is not, or its arrays have not the same number of images on their
        first axes, at least `fewest`.
    """
    if not any(np.ndim(leaf) for leaf in jax.tree.leaves(batch)):
        batch = arguments.as_array(what, batch)  # rows of numbers, or none at all
    arrays = jax.tree.map(lambda leaf: arguments.check_finite(what, leaf), batch)
    leaves = jax.tree.leaves(arrays)
    counts = {array.shape[:1] for array in leaves}
    of_images = any(array.ndim > 1 for array in leaves)
    if not of_images or len(counts) > 1 or () in counts or size_of(arrays) < fewest:
        shapes = ", ".join(str(list(array.shape)) for array in leaves)
        raise InputError(
            f"{what} must be a batch of inputs [N, ...], N at least {fewest}, got "
            f"{shapes}"
        )
    return arrays


def ahead(items: Iterable[T], count: int = 1) -> Iterator[T]:
    """The items, each one after the `count` that follow it have been made."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.pop(0)
    yield from waiting
