"""The end of a network from a layer's feature map on, under a mask.

Axes: B images, P channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from jaxprune.evaluation.head import Head, make_head
from jaxprune.fills.fill import ConstantFill, Fill
from jaxprune.fills.masked import Mask, fill_channels, mask_changes
from jaxprune.graph.evaluate import Change
from jaxprune.graph.network import Graph, Network


@dataclass(frozen=True)
class MaskedHead:
    """Outputs from a layer's feature map, some of whose channels are pruned.

    Weights are (the network's arrays by path, what becomes of consumers' features).

    Attributes:
      head: from the layer's output on.
      layer: its name.
      fill: the fill of pruned channels.
    """

    head: Head
    layer: str
    fill: Fill

    def around(self, weights: Any, images: Any) -> tuple[Array, ...]:
        """Other values that the network's end reads: arrays [B, ...]."""
        return self.head.around(weights[0], images)

    def outputs(
        self,
        weights: Any,
        around: Sequence[Array],
        feature_map: Float[Array, "B *axes P"],
        keep: Any,
    ) -> Any:
        """The network's under a mask [P] or, with a constant fill, [B, P]."""
        arrays, at_consumers = weights
        if isinstance(self.fill, ConstantFill):
            feature_map = fill_channels(feature_map, keep, self.fill.values)
        layer = self.head.network.layers[self.layer]

        def before(graph: Graph) -> Mapping[int, Change]:
            return mask_changes(graph, [Mask(self.layer, keep, None, at_consumers)])[0]

        given = layer.from_outputs(feature_map)
        return self.head.results(arrays, around, given, before)


def make_masked_head(
    network: Network, images: Any, layer: str, fill: Fill
) -> MaskedHead:
    """The end of a network from a layer on; see `make_head`."""
    head = make_head(network, images, lambda graph: graph.layer(layer).output)
    return MaskedHead(head, layer, fill)
