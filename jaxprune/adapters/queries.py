"""Queries: a network's layers, and its channels in groups."""

from typing import Any

from jaxprune.adapters.networks import takes_network
from jaxprune.graph.groups import Groups
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network


@takes_network
def list_layers(network: Network, x: Any = None) -> tuple[Layer, ...]:
    """Every call of a layer that multiplies by a kernel, in order of execution.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      x: a batch of inputs, or its shape; by default the network's example.

    Raises:
      InputError: the network does not run on `x` with these variables.
    """
    return tuple(
        layer for layer in _of(network, x).layers.values() if layer.leaf is not None
    )


@takes_network
def last_conv(network: Network, x: Any = None) -> str:
    """Name of the last convolution whose channels can leave with a constant fill.

    It is what a sweep prunes by default. What makes the output, and what is added to
    something else, as at the end of a residual block, is no such convolution.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      x: a batch of inputs, or its shape; by default the network's example.

    Raises:
      InputError: the network has none; with the reason for its last convolution.
    """
    return _of(network, x).graph().last_conv()


@takes_network
def find_groups(network: Network, x: Any = None) -> Groups:
    """Finds which channels of a network can be pruned, and which go together.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      x: a batch of inputs, or its shape; by default the network's example.

    Raises:
      InputError: the network does not run on `x` with these variables.
    """
    return _of(network, x).groups


def _of(network: Network, x: Any) -> Network:
    return network if x is None else network.with_example(x)
