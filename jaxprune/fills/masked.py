"""The network with channels masked: what a compact network must be equal to.

Axes: B images, P channels of a layer or units of a group.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from jaxprune._base.errors import InputError
from jaxprune.fills.fill import (
    AtConsumer,
    Constant,
    ConstantFill,
    Fill,
    MeanFill,
    resolve_fill,
)
from jaxprune.graph.evaluate import Change, run
from jaxprune.graph.groups import LeafAxis, PruningGroup
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Graph, Network


# What is inside a compiled program has no type to check: JAX puts placeholders there.
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """A pruning as arrays: one compiled program serves all of the same shapes.

    Attributes:
      layer: whose channels are masked.
      keep: True where a channel is kept, [P].
      values: value of a pruned channel at the layer's output, [P]; None where consumers
        are masked.
      at_consumers: change of the consumers' features then.
    """

    layer: str = field(metadata={"static": True})
    keep: Any
    values: Any
    at_consumers: Any


@dataclass(frozen=True)
class Pruning:
    """A mask and a fill of one layer or group.

    Attributes:
      group: group of its channels.
      keep: True where a channel is kept.
      fill: the fill of pruned channels.
    """

    group: PruningGroup
    keep: Bool[np.ndarray, " P"]
    fill: Fill

    @cached_property
    def mask(self) -> Mask:
        """The same as arrays."""
        at_consumers = self.fill.at_consumers(self.group, self.keep)
        values = self.fill.values if isinstance(self.fill, ConstantFill) else None
        return Mask(self.group.name, self.keep, values, at_consumers)


def kept_of(prunings: Sequence[Pruning]) -> dict[LeafAxis, np.ndarray]:
    """Of the axes of all leaves, the indices that every pruning leaves."""
    found: dict[LeafAxis, np.ndarray] = {}
    for pruning in prunings:
        for axis, kept in pruning.group.kept(pruning.keep).items():
            found[axis] = found[axis] & kept if axis in found else kept
    return found


def make_pruning(
    network: Network,
    group: PruningGroup,
    keep: Any,
    fill: str | np.ndarray | Fill,
) -> Pruning:
    """Checks a mask and resolves a fill.

    Args:
      network: the network.
      group: of its channels.
      keep: mask over the group's units.
      fill: see `resolve_fill`.

    Raises:
      InputError: a mask or values of another length, no channel kept, unknown fill,
        or one that cannot be put in place of these channels.
    """
    keep = np.asarray(keep)
    if keep.dtype != bool or keep.shape != (group.units,):
        raise InputError(
            f"keep must be a mask of {group.units} booleans, one for each channel of "
            f"'{group.name}'; got {keep.dtype} {keep.shape}"
        )
    if not keep.any():
        raise InputError(f"keep leaves no channel of '{group.name}': keep at least one")
    bias = np.zeros(group.units, np.float32)
    if group.name in network.layers:
        bias = layer_bias(network, network.layers[group.name])
    if len(bias) != group.units:  # units of several channels: no fill is there
        bias = np.zeros(group.units, np.float32)
    resolved = resolve_fill(fill, layer=group.name, bias=bias)
    resolved.check(group)
    if not (isinstance(resolved, MeanFill) and not resolved.means):
        for consumer in group.consumers:
            if how := network.layers[consumer].takes_drop_alone:
                raise InputError(
                    f"'{consumer}' reads '{group.name}' {how}: it takes the fill "
                    "'drop' alone"
                )
    return Pruning(group, keep, resolved)


def layer_bias(network: Network, layer: Layer) -> Float[np.ndarray, " U"]:
    """What a layer returns where its kernel is 0: its bias; zeros where it has none.

    Behind BatchNorm and ReLU, see `Network.with_relu`, what they make of that.

    Raises:
      InputError: there, it is another number at another position.
    """
    if layer.name in network.up_to_relu:
        product = layer.program.types[layer.product]
        given = {layer.product: jnp.zeros(product.shape, product.dtype)}
        (found,) = run(
            layer.program, network.arrays, None, given=given, want=[layer.output]
        )
        rows = np.asarray(layer.outputs(found), np.float32).reshape(-1, layer.channels)
        if (rows != rows[0]).any():
            raise InputError(
                f"'{layer.name}' returns no constant where its kernel is 0: give "
                "the values of pruned channels as an array"
            )
        return rows[0]
    if layer.bias is None:
        return np.zeros(layer.channels, np.float32)
    return np.asarray(network.arrays[layer.bias], np.float32).reshape(-1)


Changes = dict[int, Change]


def mask_changes(graph: Graph, masks: Sequence[Mask]) -> tuple[Changes, Changes]:
    """The changes that masks make: of equations' operands and results."""
    at_consumers: dict[str, list[tuple[AtConsumer, Any]]] = defaultdict(list)
    after: Changes = {}
    for mask in masks:
        for consumer, how in mask.at_consumers.items():
            at_consumers[consumer].append((how, mask.keep))
        if mask.values is not None:
            layer = graph.layer(mask.layer)
            eqn = graph.program.made_by[layer.output]
            after[eqn.number] = _filled(layer, mask.keep, mask.values)
    for hows in at_consumers.values():  # what is predicted is so from what is left
        hows.sort(key=lambda how: not isinstance(how[0], Constant))
    before = {
        graph.reader(consumer).equation.number: _masked(graph.reader(consumer), hows)
        for consumer, hows in at_consumers.items()
    }
    return before, after


def _masked(layer: Layer, hows: Sequence[tuple[AtConsumer, Any]]) -> Change:
    """The consumer's operand with each of its channels masked."""

    def change(operands: list[Any]) -> list[Any]:
        features = layer.features(operands[layer.x])
        for how, keep in hows:
            features = how(features, keep)
        operands = list(operands)
        operands[layer.x] = layer.from_features(features)
        return operands

    return change


def _filled(layer: Layer, keep: Any, values: Any) -> Change:
    def change(results: list[Any]) -> list[Any]:
        filled = fill_channels(layer.outputs(results[0]), keep, values)
        return [layer.from_outputs(filled)]

    return change


def run_masked(
    network: Network,
    arrays: Mapping[str, Any],
    batch: Any,
    masks: Sequence[Mask],
    *,
    given: Mapping[int, Any] | None = None,
    want: Sequence[int] | None = None,
    exact: bool = False,
) -> Any:
    """The network with channels masked and nothing removed; masks may be traced.

    Args:
      network: the network.
      arrays: its parameters by path.
      batch: its inputs.
      masks: of its channels.
      given: values that are known, by number; they are masked, too.
      want, exact: see `jaxprune.graph.evaluate.run`.
    """
    graph = network.graph(batch)
    before, after = mask_changes(graph, masks)
    given = dict(given or {})
    for value in given:
        number = graph.program.made_by[value].number
        if number in after:
            (given[value],) = after[number]([given[value]])
    return run(
        graph.program, arrays, batch, given=given, want=want, before=before,
        after=after, exact=exact,
    )  # fmt: skip


def fill_channels(
    feature_map: Float[Array, "B *axes P"],
    keep: Any,
    values: Any,
) -> Float[Array, "B *axes P"]:
    """The feature map with every channel that is not kept holding its value.

    Args:
      feature_map: of a batch of images.
      keep: mask [P], or [B, P] with a row for each image.
      values: value of a pruned channel, [P] or one number.
    """
    keep = along_channels(jnp.asarray(keep), feature_map.ndim)
    return jnp.where(keep, feature_map, jnp.asarray(values, feature_map.dtype))


def along_channels(keep: Shaped[Array, "*B P"], ndim: int) -> Array:
    """[P] or [B, P] as [..., P] with `ndim` axes, to meet a feature map."""
    ones = (1,) * (ndim - keep.ndim)
    return keep.reshape(*keep.shape[:-1], *ones, keep.shape[-1])
