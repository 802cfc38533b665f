"""The analysis of a network before it is cut, and the cut to a budget.

A budget takes a greedy descent and a pass of least squares; nothing is trained, and no
label is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxprune._base import processes
from jaxprune._base.batch import pad_rows, size_of, take
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import place, replicate, round_up
from jaxprune.compaction.compact import compact_groups
from jaxprune.compaction.network import Compact
from jaxprune.costs.latency import LatencyTable, measure_latency, measure_multiple
from jaxprune.costs.widths import Costs, Number, Widths
from jaxprune.fills.masked import Mask, make_pruning, run_masked
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.graph.groups import Groups
from jaxprune.graph.network import Network
from jaxprune.shrinking.allocation import allocate
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.curves import Curve, own_batches
from jaxprune.shrinking.refit import ROWS, may_be_fitted, refit
from jaxprune.tasks.task import OfImages

# Of the narrower networks that are timed beside the whole one.
_SPEEDUPS = (2, 4)
# Of the losses of groups with several producers, when widths are found.
_WEIGHTS = (1, 2, 4)
# Equal parts of the calibration images that candidates are tried on, see `best`.
_PARTS = 4
# Images that networks' predictions are compared on, at once.
_AT_ONCE = 64
# Images that the compact network is compared with the masked one on, at once.
_EXAMPLES = 4


class Cut(NamedTuple):
    """A smaller network, and the masked one that it is proved equal to.

    Attributes:
      small: the smaller network.
      network: the whole network with the smaller one's layers, in its own shapes.
      masks: of its groups; under them it is the masked network.
    """

    small: Compact
    network: Network
    masks: Sequence[Mask]

    @property
    def arrays(self) -> Mapping[str, Any]:
        """The whole network's arrays by path, for what is left of its channels."""
        return self.network.arrays

    def masked(self, network: Network | None = None) -> Callable[[Any, Any], Any]:
        """The masked network: (arrays by path, batch) -> outputs.

        Args:
          network: in place of its own, one that computes the same.
        """
        unmasked = self.network if network is None else network
        return lambda arrays, x: run_masked(unmasked, arrays, x, self.masks)


@dataclass(frozen=True)
class Analysis:
    """The analysis of a network before it is cut.

    Attributes:
      whole: the network, of which nothing has been removed; see `as_compact`.
      images: calibration images.
      groups: of its channels.
      curves: of each group that may be cut.
      costs: by widths.
      loss: of outputs, the whole network's being the targets.
      mesh: the devices.
      latency: table of measured times, for budgets of latency.
    """

    whole: Network
    images: Any
    groups: Groups
    curves: Mapping[str, Curve]
    costs: Costs
    loss: OfImages
    mesh: Mesh
    latency: LatencyTable | None = None

    def __repr__(self) -> str:
        return f"Analysis({len(self.curves)} groups, {size_of(self.images)} images)"

    def candidates(
        self, budget: Budget, *, multiple_of: int = 1
    ) -> list[dict[str, int]]:
        """Units that each group keeps: one way to meet a budget, or a few.

        They differ in the weight that is given to the losses of groups with several
        producers. What meets in a sum is cut in many places, and how these errors add
        up is not in the curve of a single group: `best` measures it.

        Args:
          budget: the budget to meet.
          multiple_of: widths are multiples of this, or the group's own.

        Raises:
          InputError: a budget that cannot be reached; the least possible is named.
        """
        cost, share = cost_of(self.costs, self.latency, budget)

        def of_network(widths: Widths) -> Number:
            return cost({**self.costs.whole, **widths})

        limit = share * of_network({})
        several = {
            name for name in self.curves if len(self.groups.groups[name].producers) > 1
        }
        found: list[dict[str, int]] = []
        for weight in _WEIGHTS if several else (1,):
            curves = {
                name: curve.times(weight) if name in several else curve
                for name, curve in self.curves.items()
            }
            widths = allocate(curves, of_network, limit, multiple_of=multiple_of)
            if widths not in found:
                found.append(widths)
        return found

    def timed(
        self,
        batch: int,
        *,
        cache: Path | None = None,
        on_layer: Callable[[str], Any] = lambda name: None,
    ) -> "Analysis":
        """With a table of times that are measured here, see `measure_latency`.

        Args:
          batch: images in a call.
          cache: folder in which times are kept, by device and version.
          on_layer: called with each layer's name once it is timed.
        """
        table = measure_latency(
            self.whole, self.costs, self._batch(batch),
            narrower=list(self._narrower()), cache=cache, on_layer=on_layer,
        )  # fmt: skip
        return replace(self, latency=table)

    def fastest_multiple(self, batch: int, *, cache: Path | None = None) -> int:
        """What widths should be multiples of here, see `measure_multiple`.

        Args:
          batch: images in a call.
          cache: folder in which times are kept, by device and version.
        """
        return measure_multiple(self.whole, self.costs, self._batch(batch), cache=cache)

    def _batch(self, size: int) -> Any:
        """So many images, from the first again where there are not as many."""
        return take(self.images, np.arange(size) % size_of(self.images))

    def _narrower(self) -> Iterator[tuple[Network, Widths]]:
        """Networks as budgets make them, but for the fit, where they can be cut so."""
        for speedup in _SPEEDUPS:
            with suppress(InputError):
                widths = self.candidates(Budget(speedup=speedup))[0]
                drops = {
                    name: (self.curves[name].keep(width), "drop")
                    for name, width in widths.items()
                }
                small = compact_groups(self.whole, drops, example=self._example)
                yield small.network, {**self.costs.whole, **widths}

    @property
    def _example(self) -> Any:
        return take(self.images, slice(_EXAMPLES))

    def shrink(self, budget: Budget, *, multiple_of: int = 1) -> Compact:
        """The network cut to a budget, its layers fitted to the whole network's."""
        return self.best(self.candidates(budget, multiple_of=multiple_of))[1].small

    @property
    def fitted_layers(self) -> int:
        """How many layers a fit calls `on_layer` for."""
        return sum(map(may_be_fitted, self.whole.layers.values()))

    def best(
        self,
        candidates: Sequence[dict[str, int]],
        *,
        on_layer: Callable[[str], Any] = lambda name: None,
    ) -> tuple[dict[str, int], "Cut"]:
        """The best of several widths, and their network.

        Which ones are best is found on parts of the calibration images: layers are
        fitted on the first one, on as much less as it is smaller, and the networks'
        divergence is measured on the second.

        Args:
          candidates: units that each group keeps.
          on_layer: called with each layer's name once it is fitted, or left as it is.
        """
        widths = candidates[0]
        if len(candidates) > 1:
            n = size_of(self.images)
            count = max(n // _PARTS, 1)
            first, second = (
                take(self.images, np.arange(start, start + count) % n)
                for start in (0, count)
            )
            part = replace(self, images=first)
            rows = ROWS // _PARTS
            tried = [part._masked(each, rows, on_layer) for each in candidates]
            widths = candidates[int(np.argmin(self._divergence(tried, second)))]
        return widths, self.cut(widths, on_layer=on_layer)

    def _divergence(
        self, tried: Sequence[tuple[Network, Sequence[Mask]]], images: Any
    ) -> np.ndarray:
        """The loss of masked networks' outputs, the targets being the whole one's."""
        networks = [(self.whole, ()), *tried]
        arrays = [replicate(dict(net.arrays), self.mesh) for net, _ in networks]
        fast = [(with_fast_convolutions(net), masks) for net, masks in networks]

        @jax.jit
        def losses(arrays: Any, x: Any) -> list[Array]:
            target, *found = (
                run_masked(net, own, x, masks)
                for (net, masks), own in zip(fast, arrays, strict=True)
            )
            return [self.loss(outputs, target) for outputs in found]

        lost = np.zeros(len(tried))
        size = round_up(min(_AT_ONCE, size_of(images)), self.mesh.size)
        for _, batch in own_batches(images, size):
            x = place(pad_rows(batch, size), self.mesh)
            each = np.asarray(losses(arrays, x))
            lost += each[:, : size_of(batch)].sum(1)
        return processes.total(lost)

    def cut(
        self, widths: Widths, *, on_layer: Callable[[str], Any] = lambda name: None
    ) -> "Cut":
        """The network with these widths, its layers fitted to the whole network's.

        Args:
          widths: units that each group keeps.
          on_layer: called with each layer's name once it is fitted, or left as it is.
        """
        network, masks = self._masked(widths, ROWS, on_layer)
        if not masks:
            return Cut(self.whole.origin, self.whole, ())
        drops = {mask.layer: (mask.keep, "drop") for mask in masks}
        small = compact_groups(network, drops, example=self._example)
        return Cut(small, network, masks)

    def _masked(
        self, widths: Widths, rows: int, on_layer: Callable[[str], Any]
    ) -> tuple[Network, Sequence[Mask]]:
        """The network with fitted layers, in its own shapes, and the groups' masks.

        Args:
          widths: see `cut`.
          rows: of a layer's regression, at most.
          on_layer: see `cut`.
        """
        keeps = {
            name: self.curves[name].keep(width)
            for name, width in widths.items()
            if width < self.costs.whole[name]
        }
        if not keeps:
            return self.whole, ()
        fitted = refit(
            self.whole, self.images, self.groups, keeps, rows=rows, mesh=self.mesh,
            on_layer=on_layer,
        )  # fmt: skip
        network = self.whole.with_params(fitted)
        masks = [
            make_pruning(network, self.groups.groups[name], keep, "drop").mask
            for name, keep in keeps.items()
        ]
        return network, masks


def cost_of(
    costs: Costs, latency: LatencyTable | None, budget: Budget
) -> tuple[Callable[[Widths], Number], Number]:
    """The cost that a budget limits, by widths, and its share of the whole's."""
    if budget.size is not None:
        return costs.parameters, budget.size
    if budget.speedup is not None:
        return costs.multiply_adds, 1 / budget.speedup
    if latency is None:
        raise InputError("a budget of latency needs a table: measure_latency")
    return latency.seconds, 1 / budget.value
