"""Every K of a layer that one other layer reads, without that consumer's cost.

What a dense layer or a convolution returns is a sum over the channels that it reads.
From one mask to the next only one channel's part of it changes, so the sum is updated
instead of worked out again: it is carried from one run of STEP channels to the one
before by one product, which keeps rounding from adding up, and each pair adds the parts
of the few channels that it still keeps. The largest K comes first, so that parts are
only ever added: where a pruned channel is far larger than those that are left, taking
it off would leave its rounding. With the linear fill the parts are those of residuals,
each channel less what those pruned later predict for it, and of the rows that these
meet (`jaxprune.fills.linear`).

Axes: B images, P channels, S as many as fill whole steps, R features of the consumer
that hold one channel, F all its features, U what it returns, M pairs.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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


class Read(NamedTuple):
    """What a consumer returns for a batch, and what it is given.

    Attributes:
      whole: what it returns, [B ... U].
      pruned: the same with the first channels of the order pruned.
      part: what each channel adds to its fill, by rank [B ... S, R], 0 after the last.
      differs: whether that is anything, [B, S].
    """

    whole: Array
    pruned: Array
    part: Array
    differs: Array


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
        self, weights: Any, images: Any, feature_map: Array, rank: Any, end: Any
    ) -> "Read":
        """What the consumer returns and is given; see `Read`.

        Args:
          weights: see `weights`.
          images: a batch.
          feature_map: the layer's.
          rank: each channel's place in the order.
          end: channels that are pruned in the sum that the steps begin with.
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

        def returned(features: Array) -> Array:
            known = {consumer.input: consumer.from_features(features)}
            want = [consumer.output]
            (y,) = run(graph.program, weights["arrays"], images, given=known, want=want)
            return consumer.outputs(y)

        x, whole = given(feature_map)
        features, keep = self.consumer.features, rank >= end
        fill = self.plan.fill
        if "nested" in weights:
            nested = weights["nested"]
            part = nested.residuals(x).reshape(*x.shape[:-1], *features.shape)
            pruned = returned(nested(x, keep))
        elif isinstance(fill, ConstantFill):
            values = jnp.asarray(fill.values, feature_map.dtype)
            filled, _ = given(jnp.broadcast_to(values, feature_map.shape))
            part = (x - filled)[..., features]
            _, pruned = given(jnp.where(keep, feature_map, values))
        else:
            assert isinstance(fill, MeanFill)
            held = jnp.broadcast_to(fill.means.get(name, np.float32(0)), x.shape[-1:])
            part = (x - held)[..., features]
            mixed = jnp.where(keep, x[..., features], held[features])
            pruned = returned(x.at[..., features].set(mixed.astype(x.dtype)))
        part = _by_rank(part, weights["order"]).swapaxes(-1, -2)
        middle = (*range(1, part.ndim - 2), part.ndim - 1)
        return Read(whole, pruned, part, jnp.any(part != 0, axis=middle))

    def advance(self, weights: Any, total: Array, part: Array, first: Array) -> Array:
        """The consumer's sum with STEP more channels kept, from `first` on."""
        parts, kernel = self._step(weights, part, first)
        return total + self.consumer.product(kernel, _flat(parts))

    def judge(
        self, weights: Any, targets: Any, around: Any, total: Array, part: Array,
        first: Array, image: Array, pruned: Array,
    ) -> dict[str, Array]:  # fmt: skip
        """Outputs [M] with all but `pruned` of STEP channels kept, from `first` on."""
        parts, kernel = self._step(weights, part, first)
        kept = np.arange(STEP) >= pruned[:, None]
        kept = kept.reshape(len(image), *(1,) * (parts.ndim - 3), STEP, 1)
        parts = jnp.where(kept, parts[image], 0)
        total = total[image] + self.consumer.product(kernel, _flat(parts))
        targets, around = jax.tree.map(lambda a: a[image], (targets, around))
        outputs = self.outputs(weights["arrays"], around, total)
        return self.task.judge(outputs, targets)

    def outputs(self, arrays: Any, around: Any, total: Array) -> Any:
        """The network's, from what the consumer returns [M ... U]."""
        total = self.consumer.layer.from_outputs(total)
        return self.head.results(arrays, around, total)

    def _step(self, weights: Any, part: Array, first: Array) -> tuple[Array, Array]:
        """The parts of STEP channels, and the rows of the kernel that they meet."""
        held = part.shape[-1]
        kernel = lax.dynamic_slice_in_dim(
            weights["kernel"], first * held, STEP * held, -2
        )
        return lax.dynamic_slice_in_dim(part, first, STEP, -2), kernel


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
        self._read = Sharded(read.read, mesh, (*whole, *spread, *whole * 2), SPREAD)
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
        firsts = np.arange(0, ks[-1] + 1, STEP, dtype=np.int32)
        read = self._read(
            weights, batch.images, feature_map, self._plan.rank, firsts[-1] + STEP
        )
        differs = np.asarray(read.differs)[: batch.size, : len(self._plan.order)]
        changed = changed_pairs(differs, self._plan.ks)
        mask, image = np.nonzero(changed)
        pairs = np.stack([image, ks[mask]], axis=1).astype(np.int32)
        around = self._around(weights["arrays"], batch.images)
        targets, around, whole, total, part = replicate(
            (batch.targets, around, read.whole, read.pruned, read.part), self._mesh
        )

        def judge(total: Any, first: Any, here: np.ndarray) -> dict[str, np.ndarray]:
            found = collect(
                self._judge(
                    weights, targets, around, total, part, first, some[:, 0],
                    some[:, 1] - first,
                )
                for some in chunks(here, self._pairs)
            )  # fmt: skip
            return {name: array[: len(here)] for name, array in found.items()}

        # Of the whole network the sum is its own: nothing is added to it.
        baseline = pairs[pairs[:, 1] == 0] + np.array([0, STEP], np.int32)
        pairs = pairs[pairs[:, 1] > 0]
        steps = np.split(pairs, np.searchsorted(pairs[:, 1], firsts[1:]))
        values = []
        for first, here in zip(firsts[::-1], steps[::-1], strict=True):
            if len(here):
                values.append(judge(total, first, here))
            if first:
                total = self._advance(weights, total, part, first)
        if len(baseline):
            values.append(judge(whole, firsts[0], baseline))
        return carry_forward(changed, collect(values[::-1]))
