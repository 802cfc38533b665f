"""Outputs under many masks of every (image, mask) pair, some masks at a time.

A mask is True where a channel is kept.

Axes: B images of a batch, P channels, K masks.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from jaxprune._base.arguments import check_byte_order
from jaxprune._base.batch import ahead, pad_rows
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import (
    DATA,
    MASK,
    REPLICATED,
    Sharded,
    make_mesh,
    round_up,
)
from jaxprune.graph.sizes import chunk_size

# Evaluations that a device may have before it while their results are not fetched.
_IN_FLIGHT = 4


def mask_program(one: Callable[..., Any], mesh: Mesh) -> Sharded:
    """Compiles, at its first call, (weights, batch, masks) -> a tree of arrays [K, B].

    Args:
      one: (weights, *batch, mask) -> a tree of arrays [B].
      mesh: batches are divided over its axis `data`, masks over `mask`.
    """

    def every(weights: Any, batch: Any, masks: Array) -> Any:
        return jax.vmap(lambda mask: one(weights, *batch, mask))(masks)

    data, mask = PartitionSpec(DATA), PartitionSpec(MASK)
    return Sharded(every, mesh, (REPLICATED, data, mask), PartitionSpec(MASK, DATA))


def evaluate_masks(
    logits: Callable[..., Array],
    weights: Any,
    batch: Sequence[Any],
    masks: Bool[np.ndarray, "K P"],
    *,
    mesh: Mesh | None = None,
    mask_chunk: int | None = None,
) -> Int[np.ndarray, "K B"]:
    """Predicted class of every image under every mask, as one batched computation.

    Args:
      logits: (weights, *batch, mask) -> logits [B, classes], with one mask [P], True
        where a channel is kept.
      weights: a tree of arrays, kept out of the compiled code.
      batch: trees of arrays with the images on their first axis, such as a feature map.
      masks: True where a channel is kept.
      mesh: the devices; by default all of this process.
      mask_chunk: masks evaluated at once; by default chosen from the batch.

    Raises:
      InputError: the masks are no masks, or arrays have another machine's byte order.
    """
    masks = np.asarray(masks)
    if masks.dtype != bool or masks.ndim != 2 or not len(masks):
        raise InputError(
            f"masks must be booleans [K, P], got {masks.dtype} {list(masks.shape)}"
        )
    for name, tree in (("weights", weights), ("the batch", batch)):
        for leaf in jax.tree.leaves(tree):
            check_byte_order(name, leaf)
    mesh = mesh or make_mesh()

    def one(*arguments: Any) -> Array:
        return jnp.argmax(logits(*arguments), axis=-1)

    sizes = (math.prod(np.shape(array)) for array in jax.tree.leaves(batch))
    chunk = min(mask_chunk or chunk_size(sum(sizes)), len(masks))
    chunk = round_up(chunk, mesh.shape[MASK])
    images = len(jax.tree.leaves(batch)[0])
    padded = pad_rows(tuple(batch), round_up(images, mesh.shape[DATA]))
    program = mask_program(one, mesh)
    outputs = (program(weights, padded, some) for some in chunks(masks, chunk))
    return np.concatenate([*fetch(outputs)])[: len(masks), :images]


def chunks(
    rows: Shaped[np.ndarray, "N ..."], size: int
) -> Iterator[Shaped[np.ndarray, "size ..."]]:
    """`size` rows at a time, zeros after the last."""
    for start in range(0, len(rows), size):
        yield pad_rows(rows[start : start + size], size)


def fetch(outputs: Iterable[Any]) -> Iterator[Any]:
    """Device arrays as NumPy's, while the next few evaluations are under way."""
    return map(jax.device_get, ahead(outputs, _IN_FLIGHT))
