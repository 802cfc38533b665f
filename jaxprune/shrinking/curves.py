"""Loss curves: the cost of making one group narrower, by width, without labels.

The loss is the Kullback-Leibler divergence of the network's predictions from those of
the whole network, on calibration images, when that group alone is cut and the linear
fill stands for its pruned units.

Axes: N images, C classes, P units, L widths.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from jaxprune.costs.widths import Number
from jaxprune.fills.fill import LinearFill
from jaxprune.fills.linear import Nested
from jaxprune.fills.masked import Mask, run_masked
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.graph.network import Network
from jaxprune.ranking.order import prefix_masks
from jaxprune.shrinking.selection import selection_order

# Widths, as shares of a group's units, for which the loss is measured.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08, 0.05, 0.03, 0.015)
# Images that go through the network at once, those of all widths together.
_AT_ONCE = 512


@dataclass(frozen=True)
class Curve:
    """A group's units and what its widths cost.

    Attributes:
      order: units, the first to be pruned first.
      widths: numbers of units that are kept, falling; the first is all of them.
      losses: divergence in nats for each; never falling.
    """

    order: tuple[int, ...]
    widths: tuple[int, ...]
    losses: tuple[float, ...]

    def keep(self, width: int) -> np.ndarray:
        """The mask [P] that keeps so many units."""
        return prefix_masks(np.array(self.order), [len(self.order) - width])[0]

    def times(self, weight: Number) -> "Curve":
        """The curve with its losses times a number."""
        return replace(self, losses=tuple(weight * loss for loss in self.losses))

    def loss(self, width: Number) -> float:
        """Between the widths that were measured, a straight line."""
        return float(np.interp(width, self.widths[::-1], self.losses[::-1]))


def loss_curves(
    network: Network,
    images: Num[Array, "N ..."] | Num[np.ndarray, "N ..."],
    groups: Iterable[PruningGroup],
    fills: Mapping[str, LinearFill],
) -> Iterator[tuple[str, Curve]]:
    """Measures the groups one after another; a program for each, masks as its data.

    Args:
      network: the network.
      images: calibration images.
      groups: of its channels.
      fills: the linear fill of each, by its name.

    Yields:
      A group's name and its curve.
    """
    for group in groups:
        fill = fills[group.name]
        order = selection_order(fill)
        shares = {max(1, round(group.units * share)) for share in SHARES}
        widths = sorted(shares - {group.units}, reverse=True)
        losses = [0.0]
        if widths:
            masks = prefix_masks(order, [group.units - width for width in widths])
            losses += _divergences(network, images, fill.nested(order), masks)
        yield (
            group.name,
            Curve(
                order=tuple(order.tolist()),
                widths=(group.units, *widths),
                losses=tuple(np.maximum.accumulate(losses).tolist()),
            ),
        )


def divergence(outputs: Float[Array, "N C"], whole: Float[Array, "N C"]) -> Array:
    """Kullback-Leibler divergence from the whole network's predictions, in nats [N].

    Both networks return logits or, where the whole one's outputs say so, probabilities.
    """
    probabilities = are_probabilities(whole)

    def log_softmax(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return jax.nn.log_softmax(jnp.where(probabilities, log_probabilities(x), x))

    target, found = log_softmax(whole), log_softmax(outputs)
    return (jnp.exp(target) * (target - found)).sum(-1)


def _divergences(
    network: Network,
    images: Any,
    nested: Mapping[str, Nested],
    masks: Bool[np.ndarray, "L P"],
) -> list[float]:
    """The mean loss under each mask."""

    @jax.jit
    def losses(arrays: Any, x: Array, nested: Any, masks: Array) -> Array:
        whole = run_masked(network, arrays, x, [])

        def one(keep: Array) -> Array:
            mask = Mask("", keep, None, nested)
            return divergence(run_masked(network, arrays, x, [mask]), whole)

        # What comes before the consumers is not mapped over: it is computed once.
        return jax.vmap(one)(masks)

    total = np.zeros(len(masks))
    size = min(len(images), max(1, _AT_ONCE // len(masks)))
    for start in range(0, len(images), size):
        batch = np.asarray(images[start : start + size])
        padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        found = np.asarray(
            losses(network.arrays, np.pad(batch, padding), nested, masks)
        )
        total += found[:, : len(batch)].sum(1)
    return (total / len(images)).tolist()
