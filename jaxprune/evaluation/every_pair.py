"""Outputs under many masks, of every (image, mask) pair, judged by a task.

A mask is True where a channel is kept. What the network's end reads besides the layer's
feature map is worked out once for each batch, see `jaxprune.evaluation.head`.

Axes: B images of a batch, P channels, K masks, M pairs.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from jaxprune._base.arguments import check_byte_order
from jaxprune._base.batch import pad_rows
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import (
    DATA,
    MASK,
    REPLICATED,
    SPREAD,
    Sharded,
    make_mesh,
    replicate,
    round_up,
)
from jaxprune.data.splits import Batch
from jaxprune.evaluation.masked_head import MaskedHead
from jaxprune.fills.fill import Fill
from jaxprune.fills.linear import Nested
from jaxprune.ranking.order import prefix_masks
from jaxprune.tasks.task import Task

# Elements of an array that one evaluation holds: enough to keep a matrix unit busy,
# and 16 MiB of float32 on a CPU.
_CPU_ELEMENTS = 2**22
_ACCELERATOR_ELEMENTS = 2**27

# Evaluations that a device may have before it while their results are not fetched.
_IN_FLIGHT = 4


@dataclass(frozen=True)
class Plan:
    """Which networks to evaluate: for each k, the first k channels of `order` pruned.

    Attributes:
      order: channels in the order of pruning.
      ks: ascending numbers of pruned channels.
      fill: the fill of pruned channels.
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
        """For each consumer, the regressions of all K; of the linear fill alone."""
        return self.fill.nested(self.order)


class Judged(NamedTuple):
    """A batch's outputs as a task judges them, and how many pairs were evaluated.

    Attributes:
      values: what the task keeps of each pair, [K, B, ...], see `Task.judge`.
      evaluated: number of pairs.
    """

    values: dict[str, np.ndarray]
    evaluated: int


def chunk_size(elements: int) -> int:
    """How many things of `elements` numbers each to evaluate at once."""
    on_cpu = jax.default_backend() == "cpu"
    return max(1, (_CPU_ELEMENTS if on_cpu else _ACCELERATOR_ELEMENTS) // elements)


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
    return run_masks(mask_program(one, mesh), weights, batch, masks, mesh, chunk)


def run_masks(
    program: Sharded,
    weights: Any,
    batch: Sequence[Any],
    masks: Bool[np.ndarray, "K P"],
    mesh: Mesh,
    mask_chunk: int,
) -> Any:
    """Outputs of a `mask_program` for each mask, `mask_chunk` masks at a time."""
    images = len(jax.tree.leaves(batch)[0])
    size = round_up(images, mesh.shape[DATA])
    batch = pad_rows(tuple(batch), size)
    chunk = round_up(mask_chunk, mesh.shape[MASK])
    every = collect(program(weights, batch, some) for some in chunks(masks, chunk))
    return jax.tree.map(lambda array: array[: len(masks), :images], every)


def chunks(
    rows: Shaped[np.ndarray, "N ..."], size: int
) -> Iterator[Shaped[np.ndarray, "size ..."]]:
    """`size` rows at a time, zeros after the last."""
    for start in range(0, len(rows), size):
        yield pad_rows(rows[start : start + size], size)


def collect(outputs: Iterable[Any]) -> Any:
    """Evaluations' trees of arrays, one behind the other on the first axis."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *fetch(outputs))


def fetch(outputs: Iterable[Any]) -> Iterator[Any]:
    """Device arrays as NumPy's, while the next few evaluations are under way."""
    waiting: list[Any] = []
    for output in outputs:
        waiting.append(output)
        if len(waiting) > _IN_FLIGHT:
            yield jax.device_get(waiting.pop(0))
    yield from map(jax.device_get, waiting)


class EveryPair:
    """Evaluates every (image, mask) pair; what does not depend on the mask, once.

    Attributes:
      weights: the head's, on every device: the network's arrays, and what becomes of
        the consumers' features.
      around: other values that the network's end reads, see `Head.around`.
      functions: compiled programs.
    """

    def __init__(
        self,
        head: MaskedHead,
        task: Task,
        weights: Any,
        mesh: Mesh,
        plan: Plan,
        mask_chunk: int,
    ):
        def one(weights: Any, targets: Any, *batch: Any) -> dict[str, Array]:
            return task.judge(head.outputs(weights, *batch), targets)

        self.weights = replicate(weights, mesh)
        self.around = Sharded(head.around, mesh, (REPLICATED, SPREAD), SPREAD)
        self._program = mask_program(one, mesh)
        self.functions = [self.around, self._program]
        self._mesh, self._masks, self._chunk = mesh, plan.masks, mask_chunk

    def reordered(self, plan: Plan) -> "EveryPair":
        """The same programs for another order of the same fill, of no more masks."""
        other = copy.copy(self)
        other._masks = plan.masks
        if plan.nested:
            other.weights = replicate((self.weights[0], plan.nested), self._mesh)
        return other

    def __call__(self, batch: Batch, feature_map: np.ndarray) -> Judged:
        """The outputs of a batch's real images."""
        around = self.around(self.weights, batch.images)
        given = (batch.targets, around, feature_map)
        values = run_masks(
            self._program, self.weights, given, self._masks, self._mesh, self._chunk
        )
        real = {name: array[:, : batch.size] for name, array in values.items()}
        return Judged(real, batch.size * len(self._masks))
