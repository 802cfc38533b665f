"""Checks of a network whose layer is tapped, on a few images.

Axes: N images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxprune._base.arguments import is_close
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import REPLICATED, Sharded, make_mesh
from jaxprune.evaluation.head import shuffled_with_repeats
from jaxprune.graph.evaluate import run
from jaxprune.graph.logits import (
    are_probabilities,
    log_probabilities,
    with_log_probabilities,
)
from jaxprune.graph.network import Network
from jaxprune.sweep.taps import TAPS, capture_map, run_from_map


def map_of_one(network: Network, images: Array, name: str) -> jax.ShapeDtypeStruct:
    """Shape and type of one image's feature map at a convolution.

    Raises:
      InputError: no such convolution, or it does not return one map for each image.
    """
    graph = network.graph(images)
    layer = graph.conv(name)
    output = jax.eval_shape(layer.outputs, graph.program.types[layer.output])
    maps, *shape = output.shape
    if maps != len(images):
        raise InputError(
            f"layer '{name}' returns {maps} feature maps for {len(images)} images, not "
            "one for each"
        )
    return jax.ShapeDtypeStruct(tuple(shape), output.dtype)


def check_tap(
    network: Network, images: Array, name: str, tap: str, classes: int
) -> tuple[Network, float]:
    """Raises unless the unmasked feature map, put back, gives the network's logits.

    Also where an image's logits depend on the images beside it.

    Returns:
      The network as it is evaluated, which returns logits: of one that returns
      probabilities, their logarithms. Seconds that compilation took.
    """

    def both_ways(arrays: Any, images: Array) -> tuple[Any, Any]:
        feature_map = TAPS[tap](capture_map(network, arrays, images, name))
        put_back = run_from_map(network, arrays, images, name, feature_map)
        return run(network.graph(images).program, arrays, images), put_back

    one = make_mesh(jax.local_devices()[:1])
    both = Sharded(both_ways, one, (REPLICATED, REPLICATED), REPLICATED)
    whole, put_back = both(network.arrays, images)
    index = shuffled_with_repeats(len(images))
    shuffled, _ = both(network.arrays, images[index])
    if getattr(whole, "shape", None) != (len(images), classes):
        raise InputError(
            f"the network must return logits [N, {classes}], one for each class name, "
            f"got {jax.tree.map(jnp.shape, whole)} for {len(images)} images"
        )
    if not np.isfinite(whole).all():
        raise InputError("the network's logits are not finite: check its weights")
    if are_probabilities(whole):
        network = with_log_probabilities(network)
        whole, put_back, shuffled = map(log_probabilities, (whole, put_back, shuffled))
    if not is_close(whole[index], shuffled):
        raise InputError(
            "the network's logits of an image depend on the other images of its batch, "
            "or on chance: give an apply for evaluation, as with train=False"
        )
    if not is_close(whole, put_back):
        raise InputError(
            f"tap '{tap}' is not what follows layer '{name}': the network changes when "
            f"its feature map is put back: give tap 'conv'"
        )
    return network, both.compile_seconds
