"""Reading a layer's feature map, and running a network from one.

Axes: N images, P channels.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Num

from jaxprune.adapters.networks import takes_network
from jaxprune.graph.evaluate import is_relu, run
from jaxprune.graph.network import Network

Activation = Callable[[Array], Array]


def _identity(x: Array) -> Array:
    return x


# Where a feature map is taken: at the convolution's own output, or after the ReLU
# that follows it. relu(relu(x)) = relu(x), so a map taken after the ReLU can be put
# back at the convolution's output, and no model needs a module for its ReLU. Where
# BatchNorm lies between them, the layer is made to end there: `Network.with_relu`.
TAPS: dict[str, Activation] = {"conv": _identity, "relu": jax.nn.relu}


def default_tap(network: Network, layer: str) -> str:
    """The tap that shows what a layer sends on: "relu" where a ReLU alone reads it."""
    graph = network.graph()
    program, output = graph.program, graph.with_map(layer).output
    consumers = program.read_by[output]
    alone = program.used_by(output) == len(consumers) > 0
    rectified = alone and all(is_relu(program, eqn) for eqn in consumers)
    return "relu" if rectified else "conv"


def capture_map(
    network: Network, arrays: Mapping[str, Any], images: Any, layer: str
) -> Num[Array, "N *axes P"]:
    """The output of a layer for some images, its channels on the last axis."""
    graph = network.graph(images)
    found = graph.layer(layer)
    (value,) = run(graph.program, arrays, images, want=[found.output])
    return found.outputs(value)


def run_from_map(
    network: Network, arrays: Mapping[str, Any], images: Any, layer: str, output: Any
) -> Any:
    """The network's output when a layer returns `output` [N, *axes, P].

    Under jit, all that only leads to the layer is not computed.
    """
    graph = network.graph(images)
    found = graph.layer(layer)
    given = {found.output: found.from_outputs(output)}
    return run(graph.program, arrays, images, given=given)


@takes_network
def run_from(network: Network, x: Any, layer: str, output: Any) -> Any:
    """The network's output when a layer returns something else.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      x: its inputs.
      layer: name of a layer that is not inside a loop.
      output: output of the layer, [N, *axes, P].

    Raises:
      InputError: there is no such layer.
    """
    return run_from_map(network, network.arrays, x, layer, output)
