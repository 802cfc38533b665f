"""Logits of a network that ends with a softmax, as most of Keras's do.

Cross-entropies and divergences are taken of logits. Where a network returns
probabilities, their logarithms are logits: log p is log softmax of itself.

Axes: N images, C classes.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxprune._base.arguments import half_of_digits
from jaxprune.graph.network import Network


def are_probabilities(outputs: Float[Any, "N *axes C"]) -> Bool[Array, ""]:
    """Whether every row is a distribution: nothing negative, a sum of 1.

    Logits of a few images are none: all of their rows would have to be.
    """
    error = jnp.abs(outputs.sum(-1) - 1)
    return (outputs >= 0).all() & (error <= half_of_digits(outputs.dtype)).all()


def log_probabilities(outputs: Float[Any, "N *axes C"]) -> Float[Array, "N *axes C"]:
    """Logarithms, in float32 at least; that of 0 is -87.3, or float64's least."""
    wide = jnp.float64 if outputs.dtype == jnp.float64 else jnp.float32
    return jnp.log(jnp.maximum(outputs.astype(wide), jnp.finfo(wide).tiny))


def with_log_probabilities(network: Network) -> Network:
    """The network that returns the logarithms of what this one returns."""

    def function(params: Any, batch: Any) -> Array:
        return log_probabilities(network.function(params, batch))

    return network.with_function(function)
