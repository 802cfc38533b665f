"""Predictions under many masks: of every (image, mask) pair, or of those that change.

A mask is True where a channel is kept. What the network's end reads besides the layer's
feature map is worked out once for each batch, see `jaxprune.channels.head`.

Axes: B images of a batch, P channels, K masks, M pairs.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from jaxprune.channels.fills import Fill
from jaxprune.channels.head import Head
from jaxprune.channels.linear import Nested
from jaxprune.mesh import (
    DATA,
    MASK,
    REPLICATED,
    SPREAD,
    Sharded,
    make_mesh,
    replicate,
    round_up,
)
from jaxprune.ranking.order import prefix_masks

# Elements of an array that one evaluation holds: enough to keep a matrix unit busy,
# and 16 MiB of float32 on a CPU.
_CPU_ELEMENTS = 2**22
_ACCELERATOR_ELEMENTS = 2**27

# Evaluations that a device may have before it while their results are not fetched.
_IN_FLIGHT = 4

# With a larger share of pairs that change, gathering them costs more than it saves.
_MOST_CHANGED = 0.9


@dataclass(frozen=True)
class Plan:
    """Which networks to evaluate: for each k, the first k channels of `order` pruned.

    Attributes:
      order: channels in the order of pruning.
      ks: ascending numbers of pruned channels.
      fill: what a pruned channel becomes.
    """

    order: Int[np.ndarray, " P"]
    ks: tuple[int, ...]
    fill: Fill

    @cached_property
    def rank(self) -> Int[np.ndarray, " P"]:
        """Each channel's place in the order."""
        return np.argsort(self.order)

    @cached_property
    def masks(self) -> Bool[np.ndarray, "K P"]:
        """One for each k."""
        return prefix_masks(self.order, self.ks)

    @cached_property
    def nested(self) -> dict[str, Nested]:
        """For each reader, the regressions of all K; of the linear fill alone."""
        return {name: m.nest(self.order) for name, m in self.fill.moments.items()}


class Predicted(NamedTuple):
    """Predictions of a batch of images, and how many pairs had to be evaluated."""

    classes: Int[np.ndarray, "K B"]
    evaluated: int


def chunk_size(elements: int) -> int:
    """How many things of `elements` numbers each to evaluate at once."""
    on_cpu = jax.default_backend() == "cpu"
    return max(1, (_CPU_ELEMENTS if on_cpu else _ACCELERATOR_ELEMENTS) // elements)


def mask_program(logits: Callable[..., Array], mesh: Mesh) -> Sharded:
    """Compiles, at its first call, (weights, batch, masks) -> predicted classes [K, B].

    Args:
      logits: (weights, *batch, mask) -> logits [B, classes].
      mesh: batches are divided over its axis `data`, masks over `mask`.
    """

    def predict(weights: Any, batch: Any, masks: Array) -> Array:
        def one(mask: Array) -> Array:
            return jnp.argmax(logits(weights, *batch, mask), axis=-1)

        return jax.vmap(one)(masks)

    data, mask = PartitionSpec(DATA), PartitionSpec(MASK)
    return Sharded(predict, mesh, (REPLICATED, data, mask), PartitionSpec(MASK, DATA))


def evaluate_masks(
    logits: Callable[..., Array],
    weights: Any,
    batch: Sequence[Any],
    masks: Bool[np.ndarray, "K P"],
    *,
    mesh: Mesh | None = None,
    mask_chunk: int | None = None,
    program: Sharded | None = None,
) -> Int[np.ndarray, "K B"]:
    """Predicted class of every image under every mask, as one batched computation.

    Args:
      logits: (weights, *batch, mask) -> logits [B, classes], with one mask [P], True
        where a channel is kept: `jaxprune.channels.masking.masked_network`, say.
      weights: a tree of arrays, kept out of the compiled code.
      batch: trees of arrays with the images on their first axis, such as a feature map.
      masks: True where a channel is kept.
      mesh: the devices; by default all of this process.
      mask_chunk: masks evaluated at once; by default chosen from the batch.
      program: what `mask_program` compiled of `logits` on this mesh before.
    """
    mesh = mesh or make_mesh()
    compiled = program
    program = program or mask_program(logits, mesh)
    leaves = jax.tree.leaves(batch)
    images = len(leaves[0])
    size = round_up(images, mesh.shape[DATA])
    batch = jax.tree.map(lambda a: _pad_rows(a, size), tuple(batch))
    chunk = mask_chunk or chunk_size(sum(int(np.prod(a.shape)) for a in leaves))
    if compiled is None:  # else the masks that it takes are given
        chunk = min(chunk, len(masks))
    chunk = round_up(chunk, mesh.shape[MASK])
    outputs = (program(weights, batch, some) for some in chunks(masks, chunk))
    return np.concatenate(list(fetch(outputs)))[: len(masks), :images]


def _pad_rows(rows: Any, size: int) -> Any:
    """Rows of zeros up to `size`."""
    if len(rows) == size:
        return rows
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def chunks(
    rows: Shaped[np.ndarray, "N ..."], size: int
) -> Iterator[Shaped[np.ndarray, "size ..."]]:
    """`size` rows at a time, zeros after the last."""
    for start in range(0, len(rows), size):
        yield _pad_rows(rows[start : start + size], size)


def fetch(outputs: Iterable[Array]) -> Iterator[np.ndarray]:
    """Device arrays as NumPy's, while the next few evaluations are under way."""
    waiting: list[Array] = []
    for output in outputs:
        waiting.append(output)
        if len(waiting) > _IN_FLIGHT:
            yield np.asarray(waiting.pop(0))
    yield from map(np.asarray, waiting)


class EveryPair:
    """Evaluates every (image, mask) pair; what does not depend on the mask, once.

    Attributes:
      weights: the head's, on every device: the network's variables, and what becomes
        of the readers' inputs.
      around: what the network's end reads besides the feature map, see `Head.around`.
      functions: what was compiled.
    """

    def __init__(
        self, head: Head, weights: Any, mesh: Mesh, plan: Plan, mask_chunk: int
    ):
        self.weights = replicate(weights, mesh)
        self.around = Sharded(head.around, mesh, (REPLICATED, SPREAD), SPREAD)
        self._logits = head.logits
        self._program = mask_program(head.logits, mesh)
        self.functions = [self.around, self._program]
        self._mesh, self._masks, self._chunk = mesh, plan.masks, mask_chunk

    def reordered(self, plan: Plan) -> "EveryPair":
        """The same programs for another order of the same fill, of no more masks."""
        other = copy.copy(self)
        other._masks = plan.masks
        if plan.nested:
            other.weights = replicate((self.weights[0], plan.nested), self._mesh)
        return other

    def __call__(
        self, images: np.ndarray, feature_map: np.ndarray, size: int
    ) -> Predicted:
        """Predictions of a batch whose first `size` images are real."""
        classes = evaluate_masks(
            self._logits,
            self.weights,
            (self.around(self.weights, images), feature_map),
            self._masks,
            mesh=self._mesh,
            mask_chunk=self._chunk,
            program=self._program,
        )
        return Predicted(classes[:, :size], size * len(self._masks))


def changed_pairs(
    differs: Bool[np.ndarray, "B P"], ks: Sequence[int] | Int[np.ndarray, " K"]
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
    return (np.diff(counts[:, list(ks)], axis=1, prepend=-1) != 0).T


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

    For fills that are constants at the layer.

    Attributes:
      functions: what was compiled.
    """

    def __init__(
        self, head: Head, mesh: Mesh, plan: Plan, every: EveryPair, pairs: int
    ):
        def differs(fm: Array) -> Array:
            middle = tuple(range(1, fm.ndim - 1))
            return jnp.any(fm != jnp.asarray(plan.fill.values, fm.dtype), axis=middle)

        def predict(
            weights: Any, around: Any, fm: Array, rank: Array, image: Array, k: Array
        ) -> Array:
            keep = rank >= k[:, None]
            around = [array[image] for array in around]
            return jnp.argmax(head.logits(weights, around, fm[image], keep), axis=-1)

        self._differs = Sharded(differs, mesh, (SPREAD,), SPREAD)
        whole = (REPLICATED,) * 4
        self._predict = Sharded(predict, mesh, (*whole, SPREAD, SPREAD), SPREAD)
        self._every = every
        self.functions = [self._differs, self._predict, *every.functions]
        self._mesh, self._plan = mesh, plan
        self._pairs = round_up(pairs, mesh.size)

    def reordered(self, plan: Plan) -> "ChangedPairs":
        """The same programs for another order of the same fill, of no more masks."""
        other = copy.copy(self)
        other._plan, other._every = plan, self._every.reordered(plan)
        return other

    def __call__(
        self, images: np.ndarray, feature_map: np.ndarray, size: int
    ) -> Predicted:
        """Predictions of a batch whose first `size` images are real."""
        differs = np.asarray(self._differs(feature_map))[:size]
        changed = changed_pairs(differs[:, self._plan.order], self._plan.ks)
        if changed.mean() > _MOST_CHANGED:
            return self._every(images, feature_map, size)
        mask, image = np.nonzero(changed)
        pairs = np.stack([image, np.asarray(self._plan.ks)[mask]], axis=1)
        weights = self._every.weights
        batch = (self._every.around(weights, images), feature_map, self._plan.rank)
        batch = replicate(batch, self._mesh)
        outputs = (
            self._predict(weights, *batch, some[:, 0], some[:, 1])
            for some in chunks(pairs.astype(np.int32), self._pairs)
        )
        classes = np.concatenate(list(fetch(outputs)))[: len(pairs)]
        return Predicted(carry_forward(changed, classes), int(changed.sum()))
