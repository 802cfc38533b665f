"""The network with channels masked: what a compact network must be equal to.

Axes: P channels of a layer, F input features of a later layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from jaxprune.channels import taps
from jaxprune.channels.flow import ChannelFlow
from jaxprune.errors import InputError, check_choice

# Names of what a pruned channel becomes that follow from the weights alone.
NAMED = ("zero", "bias", "drop")
Fill = str | Float[np.ndarray, " P"]


@dataclass(frozen=True)
class Pruning:
    """What is pruned of one layer.

    Attributes:
      flow: where its channels go.
      keep: True where a channel is kept.
      values: what a pruned channel's output becomes, at every position; None drops it:
        whatever reads it reads 0 instead.
      name: the fill's name.
    """

    flow: ChannelFlow
    keep: Bool[np.ndarray, " P"]
    values: Float[np.ndarray, " P"] | None
    name: str

    def kept_features(self, source: np.ndarray) -> np.ndarray:
        """True where an input feature [F] of a later layer remains."""
        return kept_features(self.keep, source)


def kept_features(keep: Any, source: np.ndarray) -> Any:
    """Channels' mask [..., P] -> mask [..., F] of features that hold `source`."""
    return (source < 0) | keep[..., np.maximum(source, 0)]


def make_pruning(variables: Any, flow: ChannelFlow, keep: Any, fill: Fill) -> Pruning:
    """Checks a mask and a fill.

    Args:
      variables: the network's variables.
      flow: where the layer's channels go.
      keep: mask over its channels.
      fill: "zero", "bias", "drop", or the value of every channel, such as its mean.

    Raises:
      InputError: a mask or values of another length, no channel kept, unknown fill.
    """
    keep = np.asarray(keep)
    if keep.dtype != bool or keep.shape != (flow.channels,):
        raise InputError(
            f"keep must be a mask of {flow.channels} booleans, one for each channel of "
            f"'{flow.layer}'; got {keep.dtype} {keep.shape}"
        )
    if not keep.any():
        raise InputError(f"keep leaves no channel of '{flow.layer}': keep at least one")
    if isinstance(fill, str):
        if fill == "mean":
            raise InputError(
                "fill 'mean' depends on images: give the channels' means, an array of "
                f"{flow.channels} numbers"
            )
        check_choice("fill", fill, NAMED)
        zeros = np.zeros(flow.channels, np.float32)
        bias = taps.at_path(variables["params"], flow.layer).get("bias", zeros)
        choices = {"zero": zeros, "bias": np.asarray(bias, np.float32), "drop": None}
        return Pruning(flow, keep, choices[fill], fill)
    values = np.asarray(fill, np.float32)
    if values.shape != keep.shape or not np.isfinite(values).all():
        raise InputError(
            f"fill must be {flow.channels} finite numbers, got shape {values.shape}"
        )
    return Pruning(flow, keep, values, "values")


def mask_channels(apply: taps.Apply, prunings: Sequence[Pruning]) -> taps.Apply:
    """The network with the prunings' channels masked and nothing removed."""
    filled = {p.flow.layer: p for p in prunings if p.values is not None}
    for pruning in prunings:
        if pruning.values is None:
            apply = drop_channels(apply, pruning.flow, pruning.keep)

    def mask(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and name in filled:
            output = _where(filled[name].keep, output, filled[name].values)
        return output

    return _intercepted(apply, mask)


def drop_channels(
    apply: taps.Apply,
    flow: ChannelFlow,
    keep: Bool[np.ndarray, " P"] | Bool[Array, " P"],
) -> taps.Apply:
    """The network in which what reads a channel that is not kept reads 0 instead."""

    def mask(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and name in flow.consumers:
            features = kept_features(keep, flow.consumers[name])
            given = args[0] if args else kwargs["inputs"]
            return next_fun(_where(features, given, 0.0))
        return next_fun(*args, **kwargs)

    return _intercepted(apply, mask)


def _intercepted(apply: taps.Apply, interceptor: Callable) -> taps.Apply:
    def intercepted(variables: Any, x: Array, **kwargs: Any) -> Any:
        with nn.intercept_methods(interceptor):
            return apply(variables, x, **kwargs)

    return intercepted


def _where(keep: Any, x: Array, value: Any) -> Array:
    return jnp.where(jnp.asarray(keep), x, jnp.asarray(value, x.dtype))
