"""Every (image, mask) pair: the plainest way.

Axes: B images of a batch, P channels, K masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxprune.evaluation.masked_head import MaskedHead
from jaxprune.evaluation.program import Given, Plan, Pruned, Way
from jaxprune.fills.fill import AtConsumer
from jaxprune.tasks.task import Task


@dataclass(frozen=True)
class BehindLayer(Way):
    """A way that runs all of the network behind the layer for each pair.

    Attributes:
      head: the network behind the layer.
      constants: the consumers' changes, where no mask changes these.
      task: that judges outputs.
    """

    head: MaskedHead
    constants: Mapping[str, AtConsumer]
    task: Task

    def weights(self, arrays: Any, plan: Plan) -> Any:
        """The head's."""
        return arrays, plan.nested or self.constants


@dataclass(frozen=True)
class EveryPair(BehindLayer):
    """Evaluates every pair; what does not depend on the mask, once.

    Attributes:
      mask_chunk: masks at once.
    """

    mask_chunk: int

    def __call__(
        self, weights: Any, given: Given, pruned: Pruned
    ) -> tuple[dict[str, Array], Array]:
        """See `Way`."""
        around = self.head.around(weights, given.images)

        def judged(k: Array) -> dict[str, Array]:
            keep = pruned.rank >= k
            outputs = self.head.outputs(weights, around, given.feature_map, keep)
            return self.task.judge(outputs, given.targets)

        chunk, masks = self.mask_chunk, len(pruned.ks)
        # What is repeated at the end is evaluated once.
        distinct = 1 + (jnp.diff(pruned.ks) > 0).sum(dtype=jnp.int32)
        ks = jnp.pad(pruned.ks, (0, -masks % chunk), mode="edge").reshape(-1, chunk)

        def put(index: Array, values: dict[str, Array]) -> dict[str, Array]:
            found = jax.vmap(judged)(ks[index])
            return {name: v.at[index].set(found[name]) for name, v in values.items()}

        nothing = {
            name: jnp.zeros((*ks.shape, *value.shape), value.dtype)
            for name, value in jax.eval_shape(judged, ks[0, 0]).items()
        }
        values = lax.fori_loop(0, -(-distinct // chunk), put, nothing)
        values = {n: v.reshape(-1, *v.shape[2:])[:masks] for n, v in values.items()}
        return values, distinct * given.real.sum(dtype=jnp.int32)
