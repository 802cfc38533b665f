"""Predictions under many masks: of every (image, mask) pair, or of those that change.

A mask is True where a channel is kept. What the network's end reads besides the layer's
feature map is worked out once for each batch, see `jaxprune.around`.

Axes: B images of a batch, P channels, K masks, M pairs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxprune import mesh as meshes
from jaxprune.channels.head import Head
from jaxprune.mesh import DATA, MASK, REPLICATED, SPREAD, Sharded

# Elements of an array that one evaluation holds: enough to keep a matrix unit busy,
# and 16 MiB of float32 on a CPU.
_CPU_ELEMENTS = 2**22
_ACCELERATOR_ELEMENTS = 2**27

# Evaluations that a device may have before it while their results are not fetched.
_IN_FLIGHT = 4

# With a larger share of pairs that change, gathering them costs more than it saves.
_MOST_CHANGED = 0.9


def chunk_size(elements: int) -> int:
    """How many things of so many elements to evaluate at once."""
    on_cpu = jax.default_backend() == "cpu"
    return max(1, (_CPU_ELEMENTS if on_cpu else _ACCELERATOR_ELEMENTS) // elements)


def fill_channels(
    feature_map: Float[Array, "B *axes P"],
    kept: Bool[Array, "*B P"],
    fill: Float[Array, " P"],
) -> Float[Array, "B *axes P"]:
    """The feature map with every channel that is not kept holding its fill."""
    kept = along_channels(kept, feature_map.ndim)
    return jnp.where(kept, feature_map, fill.astype(feature_map.dtype))


def along_channels(kept: Shaped[Array, "*B P"], ndim: int) -> Array:
    """[P] or [B, P] as [..., P] with `ndim` axes, to meet a feature map."""
    ones = (1,) * (ndim - kept.ndim)
    return kept.reshape(*kept.shape[:-1], *ones, kept.shape[-1])


def _predict_masks(logits: Callable[..., Array], masks: Array) -> Array:
    """Predicted classes [K, B] under each mask."""
    return jax.vmap(lambda mask: jnp.argmax(logits(mask), axis=-1))(masks)


@jax.jit
def _predict_filled(
    head: Callable[[Array], Array], feature_map: Array, masks: Array, fill: Array
) -> Array:
    return _predict_masks(
        lambda mask: head(fill_channels(feature_map, mask, fill)), masks
    )


def evaluate_masks(
    head: Callable[..., Array],
    feature_map: Float[Array, "B *axes P"] | Float[np.ndarray, "B *axes P"],
    masks: Bool[np.ndarray, "K P"],
    *,
    fill: Float[np.ndarray, " P"] | float = 0.0,
    mask_chunk: int | None = None,
) -> Int[np.ndarray, "K B"]:
    """Predicted class of every image under every mask.

    A channel that a mask leaves out holds its fill at every position:
    `where(mask, feature_map, fill)`.

    Args:
      head: feature map [B, ..., P] -> logits [B, classes]. A `jax.tree_util.Partial`
        that binds the variables keeps them out of the compiled code.
      feature_map: the layer's output for a batch of images.
      masks: True where a channel is kept.
      fill: what a pruned channel becomes.
      mask_chunk: masks evaluated at once; by default chosen from the batch.
    """
    head = head if isinstance(head, Partial) else Partial(head)
    fills = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), masks.shape[1:])
    chunk = mask_chunk or chunk_size(int(np.prod(feature_map.shape)))
    outputs = (
        _predict_filled(head, feature_map, some, fills) for some in chunks(masks, chunk)
    )
    return np.concatenate(list(fetch(outputs)))[: len(masks)]


def chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`size` rows at a time, zeros after the last."""
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield np.pad(some, [(0, size - len(some))] + [(0, 0)] * (rows.ndim - 1))


def fetch(outputs: Iterable[Array]) -> Iterator[np.ndarray]:
    """Device arrays as NumPy's, a few evaluations behind those that are started."""
    waiting: list[Array] = []
    for output in outputs:
        waiting.append(output)
        if len(waiting) > _IN_FLIGHT:
            yield np.asarray(waiting.pop(0))
    yield from map(np.asarray, waiting)


class EveryPair:
    """Evaluates every (image, mask) pair; what does not depend on the mask, once.

    Attributes:
      around: what the network's end reads besides the feature map, see `Head.around`.
      functions: what was compiled.
      evaluated: (image, mask) pairs evaluated so far.
    """

    def __init__(
        self,
        head: Head,
        mesh: Mesh,
        masks: Bool[np.ndarray, "K P"],
        mask_chunk: int,
    ):
        def predict(variables: Any, around: Any, fm: Array, masks: Array) -> Array:
            return _predict_masks(
                lambda mask: head.logits(variables, around, fm, mask), masks
            )

        data, mask = PartitionSpec(DATA), PartitionSpec(MASK)
        self.around = Sharded(head.around, mesh, (REPLICATED, SPREAD), SPREAD)
        self._predict = Sharded(
            predict, mesh, (REPLICATED, data, data, mask), PartitionSpec(MASK, DATA)
        )
        self.functions = [self.around, self._predict]
        self.evaluated = 0
        self._masks = masks
        self._chunk = meshes.round_up(min(mask_chunk, len(masks)), mesh.shape[MASK])

    def __call__(
        self, variables: Any, images: np.ndarray, feature_map: np.ndarray, size: int
    ) -> Int[np.ndarray, "K B"]:
        """Predictions of a batch whose first `size` images are real."""
        self.evaluated += size * len(self._masks)
        around = self.around(variables, images)
        outputs = (
            self._predict(variables, around, feature_map, masks)
            for masks in chunks(self._masks, self._chunk)
        )
        return np.concatenate(list(fetch(outputs)))[: len(self._masks)]


def changed_pairs(
    differs: Bool[np.ndarray, "B P"], ks: Int[np.ndarray, " K"]
) -> Bool[np.ndarray, "K B"]:
    """Where an image's prediction under a mask can differ from that of the mask before.

    From ks[j-1] to ks[j] the channels of rank ks[j-1] .. ks[j]-1 become their fill;
    where each holds it already, at every position, nothing changes. The first mask's
    pairs count as changed.

    Args:
      differs: where an image's channel is not its fill everywhere, by rank.
      ks: ascending numbers of pruned channels.
    """
    counts = np.zeros((len(differs), differs.shape[1] + 1), np.int32)
    np.cumsum(differs, axis=1, out=counts[:, 1:])
    return (np.diff(counts[:, ks], axis=1, prepend=-1) != 0).T


def carry_forward(
    changed: Bool[np.ndarray, "K B"], classes: Int[np.ndarray, " M"]
) -> Int[np.ndarray, "K B"]:
    """Predictions from those of the changed pairs, in order of mask and image."""
    index = np.zeros(changed.shape, np.intp)
    index[changed] = np.arange(len(classes))
    # A later mask's pairs come later, so the last one evaluated is the largest.
    return classes[np.maximum.accumulate(index, axis=0)]


class ChangedPairs:
    """Evaluates the pairs whose prediction can differ from that of the mask before.

    Attributes:
      functions: what was compiled.
      evaluated: (image, mask) pairs evaluated so far.
    """

    def __init__(
        self,
        head: Head,
        mesh: Mesh,
        order: Int[np.ndarray, " P"],
        ks: Sequence[int],
        fill: Float[np.ndarray, " P"],
        every: EveryPair,
        pairs: int,
    ):
        rank = np.argsort(order)

        def differs(fm: Array) -> Array:
            middle = tuple(range(1, fm.ndim - 1))
            return jnp.any(fm != jnp.asarray(fill, fm.dtype), axis=middle)

        def predict(
            variables: Any, around: Any, fm: Array, image: Array, k: Array
        ) -> Array:
            kept = jnp.asarray(rank) >= k[:, None]
            around = [array[image] for array in around]
            logits = head.logits(variables, around, fm[image], kept)
            return jnp.argmax(logits, axis=-1)

        self._differs = Sharded(differs, mesh, (SPREAD,), SPREAD)
        whole = (REPLICATED,) * 3
        self._predict = Sharded(predict, mesh, (*whole, SPREAD, SPREAD), SPREAD)
        self._every = every
        self.functions = [
            self._differs,
            self._predict,
            *every.functions,
        ]
        self._evaluated = 0
        self._mesh, self._order, self._ks = mesh, order, np.asarray(ks, np.int32)
        self._pairs = meshes.round_up(pairs, mesh.size)

    @property
    def evaluated(self) -> int:
        """Pairs evaluated so far."""
        return self._evaluated + self._every.evaluated

    def __call__(
        self, variables: Any, images: np.ndarray, feature_map: np.ndarray, size: int
    ) -> Int[np.ndarray, "K B"]:
        """Predictions of a batch whose first `size` images are real."""
        differs = np.asarray(self._differs(feature_map))[:size]
        changed = changed_pairs(differs[:, self._order], self._ks)
        if changed.mean() > _MOST_CHANGED:
            return self._every(variables, images, feature_map, size)[:, :size]
        self._evaluated += int(changed.sum())
        mask, image = np.nonzero(changed)
        pairs = np.stack([image.astype(np.int32), self._ks[mask]], axis=1)
        batch = (self._every.around(variables, images), feature_map)
        batch = meshes.replicate(batch, self._mesh)
        outputs = (
            self._predict(variables, *batch, chunk[:, 0], chunk[:, 1])
            for chunk in chunks(pairs, self._pairs)
        )
        classes = np.concatenate(list(fetch(outputs)))[: len(pairs)]
        return carry_forward(changed, classes)
