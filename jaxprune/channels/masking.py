"""The network with channels masked: what a compact network must be equal to.

Axes: B images, P channels of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from jaxprune.channels import taps
from jaxprune.channels.fills import AtReader, Fill, kept_features, resolve_fill
from jaxprune.channels.flow import ChannelFlow
from jaxprune.errors import InputError


# What is inside a compiled program has no type to check: JAX puts placeholders there.
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """A pruning as arrays: one compiled program serves all of the same shapes.

    Attributes:
      layer: whose channels are masked.
      keep: True where a channel is kept, [P].
      values: what a pruned channel is at the layer's output, [P]; None where readers
        are masked.
      at_readers: what becomes of the readers' inputs then.
    """

    layer: str = field(metadata={"static": True})
    keep: Any
    values: Any
    at_readers: Any


@dataclass(frozen=True)
class Pruning:
    """What is pruned of one layer.

    Attributes:
      flow: where its channels go.
      keep: True where a channel is kept.
      fill: what a pruned channel becomes.
    """

    flow: ChannelFlow
    keep: Bool[np.ndarray, " P"]
    fill: Fill

    @cached_property
    def mask(self) -> Mask:
        """The same as arrays."""
        at_readers = self.fill.at_readers(self.flow, self.keep)
        return Mask(self.flow.layer, self.keep, self.fill.values, at_readers)

    def kept_features(self, owner: np.ndarray) -> np.ndarray:
        """True where an input feature [F] of a later layer remains."""
        return kept_features(self.keep, owner)


def make_pruning(
    variables: Any,
    flow: ChannelFlow,
    keep: Any,
    fill: str | np.ndarray | Fill,
) -> Pruning:
    """Checks a mask and resolves a fill.

    Args:
      variables: the network's variables.
      flow: where the layer's channels go.
      keep: mask over its channels.
      fill: see `resolve_fill`.

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
    params = taps.at_path(variables["params"], flow.layer)
    bias = np.asarray(params.get("bias", np.zeros(flow.channels)), np.float32)
    if len(bias) != flow.channels:  # units of several channels: no fill is there
        bias = np.zeros(flow.channels, np.float32)
    resolved = resolve_fill(fill, layer=flow.layer, bias=bias)
    fitted = {**resolved.moments, **resolved.means}
    if unknown := set(fitted) - set(flow.readers):
        raise InputError(
            f"fill '{resolved.name}' was fitted on what '{min(unknown)}' reads, which "
            f"does not read '{flow.layer}'"
        )
    for name, means in resolved.means.items():
        if np.shape(means) != flow.readers[name].shape:
            raise InputError(
                f"fill '{resolved.name}' was fitted on {len(means)} input features of "
                f"'{name}', which has {len(flow.readers[name])}"
            )
    return Pruning(flow, keep, resolved)


def mask_channels(apply: taps.Apply, masks: Sequence[Mask]) -> taps.Apply:
    """The network with channels masked and nothing removed; masks may be traced."""
    filled = {m.layer: m for m in masks if m.values is not None}
    for m in masks:
        apply = mask_readers(apply, m.at_readers, m.keep)

    def mask(call: taps.Call) -> Any:
        output = call.run()
        if call.name not in filled:
            return output
        m = filled[call.name]
        return fill_channels(output, m.keep, m.values)

    return taps.intercept(apply, mask)


def mask_readers(
    apply: taps.Apply,
    at_readers: Mapping[str, AtReader],
    keep: Bool[np.ndarray, " P"] | Bool[Array, " P"],
) -> taps.Apply:
    """The network in which readers are given something else for pruned channels."""

    def mask(call: taps.Call) -> Any:
        if call.name not in at_readers:
            return call.run()
        return call.run_on(at_readers[call.name](call.input, keep))

    return taps.intercept(apply, mask)


def fill_channels(
    feature_map: Float[Array, "B *axes P"],
    keep: Any,
    values: Any,
) -> Float[Array, "B *axes P"]:
    """The feature map with every channel that is not kept holding its value.

    Args:
      feature_map: of a batch of images.
      keep: mask [P], or [B, P] with a row for each image.
      values: what a pruned channel becomes, [P] or one number.
    """
    keep = along_channels(jnp.asarray(keep), feature_map.ndim)
    return jnp.where(keep, feature_map, jnp.asarray(values, feature_map.dtype))


def along_channels(keep: Shaped[Array, "*B P"], ndim: int) -> Array:
    """[P] or [B, P] as [..., P] with `ndim` axes, to meet a feature map."""
    ones = (1,) * (ndim - keep.ndim)
    return keep.reshape(*keep.shape[:-1], *ones, keep.shape[-1])


def masked_network(
    apply: taps.Apply,
    layer: str,
    values: Any,
    at_readers: Mapping[str, AtReader],
    variables: Any,
    x: Array,
    feature_map: Float[Array, "B *axes P"],
    keep: Any,
) -> Any:
    """The network's output from a layer's feature map, under a mask.

    All but the first two arguments may be traced, so that one program serves every
    mask of a layer.

    Args:
      apply: the network.
      layer: where the feature map is put back.
      values: what a pruned channel becomes there; None where readers are masked.
      at_readers: what becomes of the readers' inputs then, see `Fill.at_readers`.
      variables: the network's variables.
      x: its inputs.
      feature_map: the layer's output for them, activation included or not.
      keep: [P] or, with values, [B, P].
    """
    if values is not None:
        feature_map = fill_channels(feature_map, keep, values)
    else:
        apply = mask_readers(apply, at_readers, keep)
    return taps.run_from(apply, variables, x, layer, feature_map)
