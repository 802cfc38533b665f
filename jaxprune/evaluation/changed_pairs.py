"""Outputs of those (image, mask) pairs that can differ from that of the mask before.

Axes: B images of a batch, P channels, K masks, R some of them, M pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jaxprune.evaluation.every_pair import BehindLayer
from jaxprune.evaluation.program import Given, Pruned
from jaxprune.fills.fill import ConstantFill


def changed_pairs(
    differs: Bool[Array, "B P"], ks: Int[Array, " K"]
) -> Bool[Array, "K B"]:
    """Where an image's output under a mask can differ from that of the mask before.

    From ks[j-1] to ks[j] the channels of rank ks[j-1] .. ks[j]-1 become their fill;
    where each holds it already, at every position, nothing changes. The first mask's
    pairs count as changed.

    Args:
      differs: where an image's channel is not its fill everywhere, by rank.
      ks: ascending numbers of pruned channels.
    """
    counts = jnp.cumsum(differs, axis=1, dtype=jnp.int32)
    counts = jnp.pad(counts, ((0, 0), (1, 0)))[:, ks]
    return (jnp.diff(counts, axis=1, prepend=-1) != 0).T


def judge_pairs(
    judge: Callable[[Array, Array], dict[str, Array]],
    changed: Bool[Array, "R B"],
    values: dict[str, Array],
    first: Any,
    tile: int,
) -> dict[str, Array]:
    """Puts the pairs that changed into `values`, judged a tile at a time.

    Args:
      judge: mask [M], counted from the first of these, and image [M] -> what the task
        keeps of each pair.
      changed: of some masks, the pairs to judge.
      values: of all masks, [K, B, ...].
      first: the mask that `changed` begins with.
      tile: pairs that are judged at once, M.
    """
    masks, images = changed.shape
    size = -(-changed.size // tile) * tile
    (pairs,) = jnp.nonzero(changed.reshape(-1), size=size, fill_value=changed.size)

    def put(index: Array, values: dict[str, Array]) -> dict[str, Array]:
        mine = lax.dynamic_slice_in_dim(pairs, index * tile, tile)
        mask, image = mine // images, mine % images
        found = judge(jnp.minimum(mask, masks - 1), image)
        row = jnp.where(mask < masks, first + mask, -1)
        return {
            name: array.at[row, image].set(
                found[name], mode="drop", wrap_negative_indices=False
            )
            for name, array in values.items()
        }

    return lax.fori_loop(0, -(-changed.sum() // tile), put, values)


def nothing_judged(
    judge: Callable[[Array, Array], dict[str, Array]], masks: int, images: int
) -> dict[str, Array]:
    """Zeros [K, B, ...] of the types of what `judge` returns; see `judge_pairs`."""
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    return {
        name: jnp.zeros((masks, images, *value.shape[1:]), value.dtype)
        for name, value in jax.eval_shape(judge, one, one).items()
    }


def carry_forward(
    changed: Bool[Array, "K B"], values: dict[str, Array]
) -> dict[str, Array]:
    """The values of all pairs from those that changed: those of the mask before."""

    def carry(held: dict[str, Array], row: Any) -> tuple[Any, Any]:
        new, here = row
        held = {
            name: jnp.where(_like(new, value), value, held[name])
            for name, value in here.items()
        }
        return held, held

    first = {name: value[0] for name, value in values.items()}
    return lax.scan(carry, first, (changed, values))[1]


def _like(rows: Bool[Array, " B"], value: Array) -> Array:
    """With axes of length 1 for those that `value` has more."""
    return rows.reshape(-1, *(1,) * (value.ndim - 1))


@dataclass(frozen=True)
class ChangedPairs(BehindLayer):
    """Evaluates the pairs whose output can differ from that of the mask before.

    For fills that are constants at the layer.

    Attributes:
      pairs: evaluated at once.
    """

    pairs: int

    def __call__(
        self, weights: Any, given: Given, pruned: Pruned
    ) -> tuple[dict[str, Array], Array]:
        """See `Way`."""
        fill, maps = self.head.fill, given.feature_map
        assert isinstance(fill, ConstantFill)
        middle = tuple(range(1, maps.ndim - 1))
        differs = jnp.any(maps != jnp.asarray(fill.values, maps.dtype), axis=middle)
        changed = changed_pairs(differs[:, pruned.order], pruned.ks) & given.real
        shared = given.targets, self.head.around(weights, given.images), maps

        def judge(mask: Array, image: Array) -> dict[str, Array]:
            targets, around, maps = jax.tree.map(lambda a: a[image], shared)
            keep = pruned.rank >= pruned.ks[mask][:, None]
            outputs = self.head.outputs(weights, around, maps, keep)
            return self.task.judge(outputs, targets)

        values = nothing_judged(judge, *changed.shape)
        values = judge_pairs(judge, changed, values, 0, self.pairs)
        return carry_forward(changed, values), changed.sum(dtype=jnp.int32)
