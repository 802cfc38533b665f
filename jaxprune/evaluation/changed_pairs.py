"""Outputs of those (image, mask) pairs that can differ from the mask before.

Axes: B images of a batch, P channels, K masks, M pairs.
"""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from jaxprune._base.mesh import REPLICATED, SPREAD, Sharded, replicate, round_up
from jaxprune.data.splits import Batch
from jaxprune.evaluation.every_pair import (
    EveryPair,
    Judged,
    Plan,
    chunks,
    collect,
)
from jaxprune.evaluation.masked_head import MaskedHead
from jaxprune.fills.fill import ConstantFill
from jaxprune.tasks.task import Task

# With a larger share of pairs that change, gathering them costs more than it saves.
_MOST_CHANGED = 0.9


def changed_pairs(
    differs: Bool[np.ndarray, "B P"], ks: Sequence[int] | Int[np.ndarray, " K"]
) -> Bool[np.ndarray, "K B"]:
    """Where an image's output under a mask can differ from that of the mask before.

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
    changed: Bool[np.ndarray, "K B"], values: dict[str, np.ndarray]
) -> Judged:
    """All pairs from the changed ones, which are in order of mask and image."""
    evaluated = int(changed.sum())
    index = np.zeros(changed.shape, np.intp)
    index[changed] = np.arange(evaluated)
    # A later mask's pairs come later, so the last one evaluated is the largest.
    index = np.maximum.accumulate(index, axis=0)
    return Judged({name: array[index] for name, array in values.items()}, evaluated)


class ChangedPairs:
    """Evaluates the pairs whose output can differ from that of the mask before.

    For fills that are constants at the layer.

    Attributes:
      functions: compiled programs.
    """

    def __init__(
        self,
        head: MaskedHead,
        task: Task,
        mesh: Mesh,
        plan: Plan,
        every: EveryPair,
        pairs: int,
    ):
        assert isinstance(plan.fill, ConstantFill)
        values = plan.fill.values

        def differs(fm: Array) -> Array:
            middle = tuple(range(1, fm.ndim - 1))
            return jnp.any(fm != jnp.asarray(values, fm.dtype), axis=middle)

        def judge(
            weights: Any, targets: Any, around: Any, fm: Array, rank: Array,
            image: Array, k: Array,
        ) -> dict[str, Array]:  # fmt: skip
            keep = rank >= k[:, None]
            targets, around = jax.tree.map(lambda a: a[image], (targets, around))
            outputs = head.outputs(weights, around, fm[image], keep)
            return task.judge(outputs, targets)

        self._differs = Sharded(differs, mesh, (SPREAD,), SPREAD)
        whole = (REPLICATED,) * 5
        self._judge = Sharded(judge, mesh, (*whole, SPREAD, SPREAD), SPREAD)
        self._every = every
        self.functions = [self._differs, self._judge, *every.functions]
        self._mesh, self._plan = mesh, plan
        self._pairs = round_up(pairs, mesh.size)

    def reordered(self, plan: Plan) -> "ChangedPairs":
        """The same programs for another order of the same fill, of no more masks."""
        other = copy.copy(self)
        other._plan, other._every = plan, self._every.reordered(plan)
        return other

    def __call__(self, batch: Batch, feature_map: np.ndarray) -> Judged:
        """The outputs of a batch's real images."""
        differs = np.asarray(self._differs(feature_map))[: batch.size]
        changed = changed_pairs(differs[:, self._plan.order], self._plan.ks)
        if changed.mean() > _MOST_CHANGED:
            return self._every(batch, feature_map)
        mask, image = np.nonzero(changed)
        pairs = np.stack([image, np.asarray(self._plan.ks)[mask]], axis=1)
        weights = self._every.weights
        around = self._every.around(weights, batch.images)
        given = (batch.targets, around, feature_map, self._plan.rank)
        given = replicate(given, self._mesh)
        values = collect(
            self._judge(weights, *given, some[:, 0], some[:, 1])
            for some in chunks(pairs.astype(np.int32), self._pairs)
        )
        return carry_forward(changed, values)
