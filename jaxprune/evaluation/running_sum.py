"""Every K of a layer that one other layer reads, without that consumer's cost.

What a dense layer or a convolution returns is a sum over the channels that it reads.
From one mask to the next only the pruned channel's part of it changes, so the sum is
updated instead of worked out again: it is carried from one run of STEP channels to the
next by one product, which keeps rounding from adding up, and each pair adds the parts
of the few channels that were pruned since. With the linear fill the parts are those of
residuals, each channel less what those pruned later predict for it, and of the rows
that these meet (`jaxprune.fills.linear`).

Axes: B images, P channels, S as many as fill whole steps, R features of the consumer
that hold one channel, F all its features, U what it returns, M pairs.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxprune._base.mesh import REPLICATED, SPREAD, Sharded, replicate, round_up
from jaxprune.data.splits import Batch
from jaxprune.evaluation.changed_pairs import carry_forward, changed_pairs
from jaxprune.evaluation.consumer import Consumer
from jaxprune.evaluation.every_pair import Judged, Plan, chunks, collect
from jaxprune.evaluation.head import Head
from jaxprune.fills.fill import ConstantFill, MeanFill
from jaxprune.graph.evaluate import run
from jaxprune.graph.network import Network
from jaxprune.tasks.task import Task

# Channels between two sums that all pairs of a batch share. More make the pairs' own
# sums dearer, fewer leave more evaluations that are not full.
STEP = 16


@dataclass(frozen=True)
class ReadNetwork:
    """The network up to a consumer and from there on, its channels by rank.

    Attributes:
      network: the network.
      layer: whose channels are pruned.
      consumer: of these channels.
      plan: channels to prune.
      head: from what the consumer returns.
      task: that judges outputs.
    """

    network: Network
    layer: str
    consumer: Consumer
    plan: Plan
    head: Head
    task: Task

    def weights(self, arrays: Any) -> dict[str, Any]:
        """The arrays, the consumer's rows by rank [S R, U], and the linear fill's."""
        kernel = self.consumer.kernel
        order = self.plan.order
        weights: dict[str, Any] = {"arrays": arrays, "order": order}
        if self.plan.nested:
            nested = self.plan.nested[self.consumer.layer.name]
            weights["nested"] = nested
            rows = nested.kernel(kernel)
            rows = rows.reshape(*kernel.shape[:-2], *self.consumer.features.shape, -1)
        else:
            rows = kernel[..., self.consumer.features, :]
        # [taps, R, P, U] -> [taps, S, R, U]
        rows = np.moveaxis(_by_rank(np.moveaxis(rows, -2, -1), order), -1, -3)
        rows = rows.astype(np.float32)
        weights["kernel"] = rows.reshape(*kernel.shape[:-2], -1, kernel.shape[-1])
        return weights

    def read(
        self, weights: Any, images: Array, feature_map: Array
    ) -> tuple[Array, Array, Array]:
        """The consumer's output [B ... U], and its input's changes by pruning.

        The changes are those of each channel by rank [B ... S, R], 0 after the last;
        then whether there are any [B, S].
        """
        graph, name = self.network.graph(images), self.consumer.layer.name
        layer, consumer = graph.layer(self.layer), graph.layer(name)

        def given(feature_map: Array) -> tuple[Array, Array]:
            known = {layer.output: layer.from_outputs(feature_map)}
            x, y = run(
                graph.program, weights["arrays"], images, given=known,
                want=[consumer.input, consumer.output],
            )  # fmt: skip
            return consumer.features(x), consumer.outputs(y)

        x, whole = given(feature_map)
        fill = self.plan.fill
        if "nested" in weights:
            residuals = weights["nested"].residuals(x)
            change = -residuals.reshape(*x.shape[:-1], *self.consumer.features.shape)
        elif isinstance(fill, ConstantFill):
            filled = jnp.asarray(fill.values, feature_map.dtype)
            filled, _ = given(jnp.broadcast_to(filled, feature_map.shape))
            change = (filled - x)[..., self.consumer.features]
        else:
            assert isinstance(fill, MeanFill)
            held = fill.means.get(name, np.float32(0))
            change = (held - x)[..., self.consumer.features]
        change = _by_rank(change, weights["order"]).swapaxes(-1, -2)
        middle = (*range(1, change.ndim - 2), change.ndim - 1)
        return whole, change, jnp.any(change != 0, axis=middle)

    def advance(self, weights: Any, total: Array, change: Array, first: Array) -> Array:
        """The consumer's sum with STEP more channels pruned, from `first` on."""
        parts, kernel = self._step(weights, change, first)
        return total + self.consumer.product(kernel, _flat(parts))

    def judge(
        self, weights: Any, targets: Any, around: Any, total: Array, change: Array,
        first: Array, image: Array, pruned: Array,
    ) -> dict[str, Array]:  # fmt: skip
        """Outputs [M] with `pruned` more channels pruned, from `first` on."""
        parts, kernel = self._step(weights, change, first)
        gone = np.arange(STEP) < pruned[:, None]
        gone = gone.reshape(len(image), *(1,) * (parts.ndim - 3), STEP, 1)
        parts = jnp.where(gone, parts[image], 0)
        total = total[image] + self.consumer.product(kernel, _flat(parts))
        targets, around = jax.tree.map(lambda a: a[image], (targets, around))
        outputs = self.outputs(weights["arrays"], around, total)
        return self.task.judge(outputs, targets)

    def outputs(self, arrays: Any, around: Any, total: Array) -> Any:
        """The network's, from what the consumer returns [M ... U]."""
        total = self.consumer.layer.from_outputs(total)
        return self.head.results(arrays, around, total)

    def _step(self, weights: Any, change: Array, first: Array) -> tuple[Array, Array]:
        """The changes of STEP channels, and the rows of the kernel that they meet."""
        held = change.shape[-1]
        kernel = lax.dynamic_slice_in_dim(
            weights["kernel"], first * held, STEP * held, -2
        )
        return lax.dynamic_slice_in_dim(change, first, STEP, -2), kernel


def _by_rank(channels: Any, order: Any) -> Any:
    """[..., P] -> [..., S]: in the order of pruning, zeros after the last."""
    padding = [(0, 0)] * (channels.ndim - 1)
    pad = np.pad if isinstance(channels, np.ndarray) else jnp.pad
    return pad(channels[..., order], [*padding, (0, -len(order) % STEP)])


def _flat(parts: Float[Array, "*B S R"]) -> Float[Array, "*B SR"]:
    return parts.reshape(*parts.shape[:-2], -1)


class RunningSum:
    """Evaluates the pairs that change what the consumer returns.

    Attributes:
      functions: compiled programs.
    """

    def __init__(
        self,
        network: Network,
        arrays: Any,
        layer: str,
        consumer: Consumer,
        head: Head,
        task: Task,
        mesh: Mesh,
        plan: Plan,
        pairs: int,
    ):
        self._network = read = ReadNetwork(network, layer, consumer, plan, head, task)
        whole, spread = (REPLICATED,), (SPREAD, SPREAD)
        self._read = Sharded(read.read, mesh, (*whole, *spread), SPREAD)
        self._around = Sharded(head.around, mesh, (*whole, SPREAD), SPREAD)
        self._advance = Sharded(read.advance, mesh, whole * 4, REPLICATED)
        self._judge = Sharded(read.judge, mesh, (*whole * 6, *spread), SPREAD)
        self.functions = [self._read, self._around, self._advance, self._judge]
        self._weights = replicate(read.weights(arrays), mesh)
        self._mesh, self._plan = mesh, plan
        self._pairs = round_up(pairs, mesh.size)

    def reordered(self, plan: Plan) -> "RunningSum":
        """The same programs for another order of the same fill."""
        other = copy.copy(self)
        other._plan, read = plan, replace(self._network, plan=plan)
        weights = read.weights(self._weights["arrays"])
        other._weights = replicate(weights, self._mesh)
        return other

    def __call__(self, batch: Batch, feature_map: np.ndarray) -> Judged:
        """The outputs of a batch's real images."""
        weights, ks = self._weights, np.asarray(self._plan.ks)
        total, change, differs = self._read(weights, batch.images, feature_map)
        differs = np.asarray(differs)[: batch.size, : len(self._plan.order)]
        changed = changed_pairs(differs, self._plan.ks)
        mask, image = np.nonzero(changed)
        pairs = np.stack([image, ks[mask]], axis=1).astype(np.int32)
        firsts = np.arange(0, ks[-1] + 1, STEP, dtype=np.int32)
        steps = np.split(pairs, np.searchsorted(pairs[:, 1], firsts[1:]))
        around = self._around(weights["arrays"], batch.images)
        targets, around, total, change = replicate(
            (batch.targets, around, total, change), self._mesh
        )
        parts: list[dict[str, np.ndarray]] = []
        for first, here in zip(firsts, steps, strict=True):
            if len(here):
                found = collect(
                    self._judge(
                        weights, targets, around, total, change, first, some[:, 0],
                        some[:, 1] - first,
                    )
                    for some in chunks(here, self._pairs)
                )  # fmt: skip
                parts.append({name: a[: len(here)] for name, a in found.items()})
            total = self._advance(weights, total, change, first)
        return carry_forward(changed, collect(parts))
