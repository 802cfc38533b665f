"""Multiply-adds of contractions: every one that depends on the batch."""

import numpy as np

from jaxprune.graph.layers import Layer
from jaxprune.graph.network import IMAGES, Network


def multiply_adds(network: Network) -> int:
    """Multiply-adds of a network for one input like its example.

    All convolutions and dot products count, those of attention and of loops too.
    Products with the zeros of a padded border are counted, as is usual; those with
    zeros that a transposed convolution puts between its inputs are not.

    Raises:
      InputError: the network does not run on its example.
    """
    total = sum(of_layer(layer) for layer in network.layers.values())
    return round(total / IMAGES)


def of_layer(layer: Layer) -> float:
    """Of one call for the batch that its program was traced for."""
    elements = int(np.prod(layer.program.shape(layer.product)))
    return layer.repeats * elements * layer.products_per_output * real_share(layer)


def real_share(layer: Layer) -> float:
    """Share of a convolution's products that are not with zeros between its inputs."""
    params = layer.equation.params
    dilation = params.get("lhs_dilation") or ()
    if set(dilation) <= {1}:
        return 1.0
    numbers = params["dimension_numbers"]
    shape, kernel = (
        layer.program.shape(value) for value in (layer.product, layer.kernel_value)
    )
    share = 1.0
    for i, step in enumerate(dilation):
        outputs = np.arange(shape[numbers.out_spec[2 + i]])[:, None]
        taps = np.arange(kernel[numbers.rhs_spec[2 + i]])
        start = params["padding"][i][0]
        index = outputs * params["window_strides"][i] - start
        index = index + taps * params["rhs_dilation"][i]
        share *= float((index % step == 0).mean())
    return share
