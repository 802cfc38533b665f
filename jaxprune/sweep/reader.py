"""The layer that alone reads a layer's channels, where there is one.

Axes: B images, P channels, R features of the reader that hold one channel.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int

from jaxprune.channels import taps
from jaxprune.channels.flow import ChannelFlow
from jaxprune.channels.head import is_close
from jaxprune.channels.linear import group_features


@dataclass(frozen=True)
class Reader:
    """The dense layer or convolution that alone reads a layer's channels.

    Attributes:
      layer: of which each of its calls is one: path, module, shape of the output.
      features: which of its input features hold each channel.
      params: its kernel and, where it has one, its bias.
    """

    layer: taps.Layer
    features: Int[np.ndarray, "R P"]
    params: dict[str, Any]

    def product(self, kernel: Array, x: Array) -> Array:
        """What it returns without its bias, for other features and their kernel."""
        # Parts are small beside their sum: a matrix unit that rounds its factors would
        # lose them.
        bare: Any = self.layer.module.clone(
            parent=None, name=None, features=kernel.shape[-1], use_bias=False,
            dtype=jnp.float32, precision="highest",
        )  # fmt: skip
        return bare.apply({"params": {"kernel": kernel}}, x)


def find_reader(
    apply: taps.Apply, variables: Any, images: Array, flow: ChannelFlow
) -> Reader | None:
    """The layer that alone reads the channels, if there is one.

    None also where a running sum would not be the layer's own sum to rounding: in
    bfloat16, or with parameters or a product of its own that is not linear.
    """
    if len(flow.readers) != 1:
        return None
    ((name, owner),) = flow.readers.items()
    layers = taps.list_layers(apply, variables, images[:1])
    (layer,) = (layer for layer in layers if layer.name == name)
    params = taps.at_path(variables["params"], name)
    features = group_features(owner, flow.channels)
    plain = (
        features is not None
        and layer.module.precision is None
        and layer.output.dtype == params["kernel"].dtype == jnp.float32
        and set(params) <= {"kernel", "bias"}
        and not any(
            taps.at_path(tree, name) for c, tree in variables.items() if c != "params"
        )
        and getattr(layer.module, "mask", None) is None
        and layer.output.ndim == params["kernel"].ndim
    )
    if not plain:
        return None
    assert features is not None
    reader = Reader(layer, features, params)
    if _is_standard(layer.module) or _is_linear(reader, apply, variables, images):
        return reader
    return None


def _is_standard(module: nn.Module) -> bool:
    """Whether the layer's product is JAX's own."""
    names = ("dot_general", "dot_general_cls", "conv_general_dilated",
             "conv_general_dilated_cls")  # fmt: skip
    return all(getattr(module, name, None) is None for name in names)


def _is_linear(
    reader: Reader, apply: taps.Apply, variables: Any, images: Array
) -> bool:
    """Whether a product of the layer's own is linear to rounding: tried on images."""
    kernel = jnp.asarray(reader.params["kernel"])

    def both(variables: Any, images: Array) -> tuple[Array, Array]:
        name = reader.layer.name
        x = taps.capture_inputs(apply, variables, images, [name])[name]
        half = jnp.where(np.arange(x.shape[-1]) % 2, x, 0)
        parts = reader.product(kernel, half), reader.product(kernel, x - half)
        return reader.product(kernel, x), parts[0] + parts[1]

    return is_close(*jax.jit(both)(variables, images))
