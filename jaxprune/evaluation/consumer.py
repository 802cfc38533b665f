"""The layer that alone reads a layer's channels, where there is one.

Axes: P channels, R features of the consumer that hold one channel.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune.fills.linear import group_features
from jaxprune.graph.evaluate import multiply
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network


@dataclass(frozen=True)
class Consumer:
    """The dense layer or convolution that alone reads a layer's channels.

    Attributes:
      layer: the layer, of the network for a few images.
      features: its input features that hold each channel.
      kernel: its kernel, see `Layer.rows`.
    """

    layer: Layer
    features: Int[np.ndarray, "R P"]
    kernel: Float[np.ndarray, "*taps F U"]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of what the layer returns for one image, channels last."""
        program = self.layer.program
        shape = program.shape(self.layer.output)
        rest = [n for a, n in enumerate(shape) if a not in self.layer.axes.channels]
        return (*rest[1:], self.layer.channels)

    def product(self, kernel: Array, x: Array) -> Array:
        """Its output without its bias, for other features and their kernel."""
        return multiply(self.layer, kernel, x)


def find_consumer(network: Network, group: PruningGroup) -> Consumer | None:
    """The layer that alone reads the channels, if there is one.

    None also where a running sum would not be the layer's own sum to rounding, as in
    bfloat16, or where it cannot be read.
    """
    if len(group.consumers) != 1:
        return None
    ((name, owner),) = group.consumers.items()
    layer = network.layers[name]
    program = layer.program
    features = group_features(owner, group.units)
    plain = (
        features is not None
        and layer.kernel is not None
        and not layer.in_a_loop
        and _of_platform(layer.equation.params["precision"])
        and {program.types[v].dtype for v in (layer.product, *layer.equation.inputs)}
        == {jnp.dtype(jnp.float32)}
        and (layer.kind == "conv" or not layer.axes.taps)
    )
    if not plain:
        return None
    assert features is not None
    return Consumer(layer, features, network.kernel(name))


def _of_platform(precision: Any) -> bool:
    """Whether a product's precision is the platform's, no algorithm by its name."""
    if isinstance(precision, tuple):
        return all(map(_of_platform, precision))
    return precision is None or isinstance(precision, lax.Precision)
