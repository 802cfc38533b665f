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

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxprune.evaluation.changed_pairs import (
    carry_forward,
    changed_pairs,
    judge_pairs,
    nothing_judged,
)
from jaxprune.evaluation.consumer import Consumer
from jaxprune.evaluation.head import Head
from jaxprune.evaluation.program import Given, Plan, Pruned, Way
from jaxprune.fills.fill import ConstantFill, Fill, MeanFill
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
      fill: the fill of pruned channels.
      head: from what the consumer returns.
      task: that judges outputs.
    """

    network: Network
    layer: str
    consumer: Consumer
    fill: Fill
    head: Head
    task: Task

    def weights(self, arrays: Any, plan: Plan) -> dict[str, Any]:
        """The arrays, the consumer's rows by rank [S R, U], and the linear fill's."""
        kernel, order = self.consumer.kernel, plan.order
        weights: dict[str, Any] = {"arrays": arrays, "order": order}
        if plan.nested:
            nested = plan.nested[self.consumer.layer.name]
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
        fill = self.fill
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


@dataclass(frozen=True)
class RunningSum(Way):
    """Evaluates the pairs that change what the consumer returns.

    Attributes:
      network: the network.
      pairs: evaluated at once.
    """

    network: ReadNetwork
    pairs: int

    def weights(self, arrays: Any, plan: Plan) -> Any:
        """See `ReadNetwork.weights`."""
        return self.network.weights(arrays, plan)

    def __call__(
        self, weights: Any, given: Given, pruned: Pruned
    ) -> tuple[dict[str, Array], Array]:
        """See `Way`."""
        network, ks = self.network, pruned.ks
        around = network.head.around(weights["arrays"], given.images)
        last = ks[-1] // STEP
        read = network.read(
            weights, given.images, given.feature_map, pruned.rank, (last + 1) * STEP
        )
        differs = read.differs[:, : len(pruned.order)]
        changed = changed_pairs(differs, ks) & given.real
        masks, images = changed.shape
        # Rows for a whole step after the last mask.
        rows = jnp.pad(changed, ((0, STEP), (0, 0)))
        all_ks = jnp.pad(ks, (0, STEP))

        def judging(number: Any, first: Any, total: Array) -> Any:
            """Judges the pairs of masks that come `first`, and follow, in a step."""

            def judge(mask: Array, image: Array) -> dict[str, Array]:
                gone = jnp.where(number < 0, STEP, all_ks[first + mask] - number * STEP)
                start = jnp.maximum(number, 0) * STEP
                return network.judge(
                    weights, given.targets, around, total, read.part, start, image, gone
                )

            return judge

        def step(state: tuple[Array, Array, dict[str, Array]]) -> Any:
            number, total, values = state
            # The whole network's is no sum that something is added to: step -1.
            begin = jnp.where(number < 0, 0, jnp.maximum(number * STEP, 1))
            end = jnp.where(number < 0, 1, (number + 1) * STEP)
            first, after = (jnp.searchsorted(ks, k) for k in (begin, end))
            here = lax.dynamic_slice_in_dim(rows, first, STEP)
            here &= (first + np.arange(STEP) < after)[:, None]
            values = judge_pairs(
                judging(number, first, total), here, values, first, self.pairs
            )
            start = jnp.maximum(number, 0) * STEP
            larger = network.advance(weights, total, read.part, start)
            total = jnp.where(number > 0, larger, read.whole)
            return number - 1, total, values

        values = nothing_judged(judging(last, 0, read.whole), masks, images)
        state = lax.while_loop(
            lambda state: state[0] >= -1, step, (last, read.pruned, values)
        )
        return carry_forward(changed, state[2]), changed.sum(dtype=jnp.int32)
