"""A batch's outputs under all masks of a plan, as one program.

Axes: B images of a batch, P channels, K masks.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int

from jaxprune._base.mesh import DATA, MASK, REPLICATED, SPREAD, Sharded, replicate
from jaxprune.data.splits import Batch
from jaxprune.fills.fill import Fill
from jaxprune.fills.linear import Nested
from jaxprune.ranking.order import prefix_masks


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


class Pruned(NamedTuple):
    """A plan's numbers, as a program is given them.

    Attributes:
      order: channels in the order of pruning, [P].
      rank: each channel's place in it, [P].
      ks: ascending numbers of pruned channels, [K]; the last one may be repeated.
    """

    order: Any
    rank: Any
    ks: Any


class Given(NamedTuple):
    """A batch, as a program is given it: trees of arrays [B, ...].

    Attributes:
      images: as the network takes them.
      targets: as the task takes them.
      feature_map: the layer's.
      real: False for the zeros after the last image.
    """

    images: Any
    targets: Any
    feature_map: Any
    real: Any


class Judged(NamedTuple):
    """A batch's outputs as a task judges them, and how many pairs were evaluated.

    Attributes:
      values: what the task keeps of each pair, [K, B, ...], see `Task.judge`.
      evaluated: number of pairs.
    """

    values: dict[str, np.ndarray]
    evaluated: int


class Way(ABC):
    """A way of evaluating all masks for a batch; they differ in speed alone."""

    @abstractmethod
    def weights(self, arrays: Any, plan: Plan) -> Any:
        """The network's arrays, and what else stays the same for all batches."""

    @abstractmethod
    def __call__(
        self, weights: Any, given: Given, pruned: Pruned
    ) -> tuple[dict[str, Array], Array]:
        """What the task keeps of each pair, [K, B, ...], and how many were evaluated.

        Of images that are not real anything, and they do not count.
        """


class Evaluation:
    """All masks of a plan for one batch after another, by one way.

    Each device has its own images and hears nothing of the others.

    Attributes:
      way: the way.
      program: compiled at the first batch.
    """

    def __init__(self, way: Way, arrays: Any, mesh: Mesh, plan: Plan):
        """Places what all batches share; `arrays` are the network's, by path."""
        self.way, self._mesh = way, mesh
        self._width = len(plan.ks)

        def evaluate(weights: Any, given: Given, pruned: Pruned) -> Any:
            values, evaluated = way(weights, given, pruned)
            return values, evaluated[None]

        self.program = Sharded(
            evaluate, mesh, (REPLICATED, SPREAD, REPLICATED),
            (PartitionSpec(None, (DATA, MASK)), SPREAD),
        )  # fmt: skip
        self._place(arrays, plan)

    def reordered(self, plan: Plan) -> "Evaluation":
        """The same program for another order of the same fill, of no more masks."""
        other = copy.copy(self)
        other._place(self._arrays, plan)
        return other

    def _place(self, arrays: Any, plan: Plan) -> None:
        self._arrays, self._masks = arrays, len(plan.ks)
        ks = np.full(self._width, plan.ks[-1], np.int32)
        ks[: self._masks] = plan.ks
        order, rank = (array.astype(np.int32) for array in (plan.order, plan.rank))
        pruned = Pruned(order, rank, ks)
        shared = self.way.weights(arrays, plan), pruned
        self._weights, self._pruned = replicate(shared, self._mesh)

    def start(self, batch: Batch, feature_map: Any) -> Any:
        """Gives the devices a batch; `finish` waits for what it returns."""
        real = np.arange(len(feature_map)) < batch.size
        given = Given(batch.images, batch.targets, feature_map, real)
        found = self.program(self._weights, given, self._pruned)
        for array in jax.tree.leaves(found):
            array.copy_to_host_async()
        return found

    def finish(self, batch: Batch, found: Any) -> Judged:
        """The outputs of a batch's real images."""
        values, evaluated = jax.device_get(found)
        real = {n: array[: self._masks, : batch.size] for n, array in values.items()}
        return Judged(real, int(evaluated.sum()))
