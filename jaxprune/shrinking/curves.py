"""Loss curves: the cost of making one group narrower, by width, without labels.

The loss is how far the network's outputs are from those of the whole network (see
`jaxprune.imitation`), on calibration images, when that group alone is cut and the
linear fill stands for its pruned units, fitted on other images
(`jaxprune.shrinking.halves`). Here it is measured, width by width; how it is
estimated for all groups and widths at once is in `jaxprune.shrinking.estimates`.

Axes: N images, P units, L widths.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxprune._base import processes
from jaxprune._base.batch import pad_rows, size_of, take
from jaxprune._base.mesh import place, replicate, round_up
from jaxprune.costs.widths import Number
from jaxprune.fills.masked import Mask, run_masked
from jaxprune.graph.network import Network
from jaxprune.ranking.order import prefix_masks
from jaxprune.shrinking.halves import Half
from jaxprune.tasks.task import OfImages

# How loss curves are found; the first by default.
CURVES = ("estimated", "measured")
# Widths, as shares of a group's units, for which the loss is known.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08, 0.05, 0.03, 0.015)
# Images that go through the network at once, those of all widths together.
_AT_ONCE = 512


@dataclass(frozen=True)
class Curve:
    """A group's units and what its widths cost.

    Attributes:
      order: units, the first to be pruned first.
      widths: numbers of units that are kept, falling; the first is all of them.
      losses: of each; never falling.
    """

    order: tuple[int, ...]
    widths: tuple[int, ...]
    losses: tuple[float, ...]

    @classmethod
    def of(cls, order: Int[np.ndarray, " P"], losses: Iterable[float]) -> "Curve":
        """Of the losses at `narrower(P)`; a fall is taken for noise, and goes."""
        rising = np.maximum.accumulate([0.0, *losses])
        widths = (len(order), *narrower(len(order)))
        return cls(tuple(order.tolist()), widths, tuple(rising.tolist()))

    def keep(self, width: int) -> np.ndarray:
        """The mask [P] that keeps so many units."""
        return prefix_masks(np.array(self.order), [len(self.order) - width])[0]

    def times(self, weight: Number) -> "Curve":
        """The curve with its losses times a number."""
        return replace(self, losses=tuple(weight * loss for loss in self.losses))

    def loss(self, width: Number) -> float:
        """Between the widths that were measured, a straight line."""
        return float(np.interp(width, self.widths[::-1], self.losses[::-1]))


def narrower(units: int) -> list[int]:
    """Widths below all units for which the loss is known, falling."""
    shares = {max(1, round(units * share)) for share in SHARES}
    return sorted(shares - {units}, reverse=True)


def measured_curves(
    network: Network,
    halves: Sequence[Half],
    orders: Mapping[str, Int[np.ndarray, " P"]],
    loss: OfImages,
    mesh: Mesh,
) -> Iterator[tuple[str, Curve]]:
    """Measures the groups one after another; a program for each, masks as its data.

    Args:
      network: the network.
      halves: of the calibration images.
      orders: of the groups' units, by name.
      loss: of outputs, the whole network's being the targets.
      mesh: the devices. Several processes give the same, and run a share each.

    Yields:
      A group's name and its curve.
    """
    for group, order in orders.items():
        losses: list[float] = []
        if widths := narrower(len(order)):
            pruned = [len(order) - width for width in widths]
            losses = _mean_losses(network, halves, group, pruned, loss, mesh)
        yield group, Curve.of(order, losses)


def _mean_losses(
    network: Network,
    halves: Sequence[Half],
    group: str,
    pruned: Sequence[int],
    loss: OfImages,
    mesh: Mesh,
) -> list[float]:
    """The mean loss for each number of pruned units."""

    @jax.jit
    def losses(arrays: Any, x: Any, nested: Any, masks: Array) -> Array:
        whole = run_masked(network, arrays, x, [])

        def one(keep: Array) -> Array:
            mask = Mask("", keep, None, nested)
            return loss(run_masked(network, arrays, x, [mask]), whole)

        # What comes before the consumers is not mapped over: it is computed once.
        return jax.vmap(one)(masks)

    total = np.zeros(len(pruned))
    counts = [size_of(half.images) for half in halves]
    size = min(*counts, max(1, _AT_ONCE // len(pruned)))
    arrays = replicate(network.arrays, mesh)
    for half in halves:
        nested = half.nested(group)
        masks = prefix_masks(half.orders[group], pruned)
        for _, batch in own_batches(half.images, size):
            x = place(pad_rows(batch, round_up(size, mesh.size)), mesh)
            found = np.asarray(losses(arrays, x, nested, masks))
            total += found[:, : size_of(batch)].sum(1)
    return (processes.total(total) / sum(counts)).tolist()


def own_batches(images: Any, size: int) -> Iterator[tuple[int, Any]]:
    """This process's share of the batches: the first image's number, and the images.

    Whole batches are shared out, so that each is the same on any number of processes.
    """
    starts = range(0, size_of(images), size)[jax.process_index() :: jax.process_count()]
    for start in starts:
        yield start, take(images, np.arange(start, min(start + size, size_of(images))))
