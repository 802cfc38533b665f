"""A network without the pruned channels, equal to the masked network.

    small = compact(model, variables, "conv2d_12", keep, fill="zero", example=x)
    logits = small(x)

See `jaxprune.compaction.cut` for what is cut and what is folded in.

Axes: N images, P channels of a layer.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import unfreeze
from jaxtyping import Array

from jaxprune import arguments
from jaxprune.channels import masking, taps
from jaxprune.channels.coupling import GROUP_NORMS
from jaxprune.channels.fills import Fill
from jaxprune.channels.flow import ChannelFlow, channel_flow, operations
from jaxprune.channels.groups import find_groups
from jaxprune.channels.masking import Pruning
from jaxprune.channels.tags import MOVING
from jaxprune.compaction.cut import cut_variables, given_behind_values
from jaxprune.compaction.network import Compact, PrunedLayer, by_widths
from jaxprune.compaction.proof import Proof, compare, rounding_bound
from jaxprune.errors import InputError, first_line

AnyFill = str | np.ndarray | Fill


class OtherWayError(InputError):
    """With these widths the model's code calls other layers than it did."""


def compact(
    model: nn.Module | Compact,
    variables: Any,
    layer: str,
    keep: Any,
    *,
    fill: AnyFill = "zero",
    example: Any,
    call: Mapping[str, Any] | None = None,
) -> Compact:
    """Removes channels of one layer; see `compact_layers`, which this is for one.

    Args:
      model: any linen model, or a network that has been compacted before.
      variables: its variables.
      layer: name of a convolution.
      keep: mask [P], True where a channel is kept.
      fill: what a pruned channel is in the masked network: "zero", "bias" (kernel
        zeroed, bias kept), its value in an array [P], "drop" (whatever reads it reads
        0), which is plain slicing, or what `linear_fill` returns.
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      call: keyword arguments of the model's call.
    """
    return compact_layers(
        model, variables, {layer: (keep, fill)}, example=example, call=call
    )


def compact_layers(
    model: nn.Module | Compact,
    variables: Any,
    layers: Mapping[str, tuple[Any, AnyFill]],
    *,
    example: Any,
    call: Mapping[str, Any] | None = None,
) -> Compact:
    """Removes channels of several layers at once.

    Args:
      model: any linen model, or a network that has been compacted before.
      variables: its variables.
      layers: name of a convolution -> (mask of its channels, fill).
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      call: keyword arguments of the model's call.

    Returns:
      The smaller network, compared with the masked one on the example.

    Raises:
      InputError: bad masks or fills, variables or an example that do not fit, channels
        that cannot be removed (the operation and the layer are named), or a difference
        that rounding does not explain.
    """

    def flows(apply: taps.Apply, variables: Any, x: Array) -> dict[str, ChannelFlow]:
        return {name: channel_flow(apply, variables, x, name) for name in layers}

    return _compact(model, variables, layers, flows, example, call)


def compact_groups(
    model: nn.Module | Compact,
    variables: Any,
    groups: Mapping[str, tuple[Any, str | Fill]],
    *,
    example: Any,
    call: Mapping[str, Any] | None = None,
) -> Compact:
    """Removes units of several groups of coupled channels at once.

    Args:
      model: any linen model, or a network that has been compacted before.
      variables: its variables.
      groups: name of a group, see `find_groups` -> (mask of its units, fill). The fill
        takes effect at what the readers are given: "drop", or of `linear_fills` or
        `mean_fills`.
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      call: keyword arguments of the model's call.

    Returns:
      The smaller network, compared with the masked one on the example. Its `layers`
      say for each group which units are kept.

    Raises:
      InputError: as `compact_layers`; a group that there is not, or another fill.
    """
    arguments.check_pairs("groups", groups, "mask, fill")
    for name, (_, fill) in groups.items():
        fitted = isinstance(fill, Fill) and fill.values is None
        if not fitted and not (isinstance(fill, str) and fill == "drop"):
            raise InputError(
                f"group '{name}' takes the fill 'drop', or one of "
                "jaxprune.linear_fills or jaxprune.mean_fills"
            )

    def flows(apply: taps.Apply, variables: Any, x: Array) -> dict[str, ChannelFlow]:
        found = find_groups(apply, variables, x)
        return {name: found.find(name) for name in groups}

    return _compact(model, variables, groups, flows, example, call)


def _compact(
    model: nn.Module | Compact,
    variables: Any,
    layers: Mapping[str, tuple[Any, AnyFill]],
    flows: Callable[[taps.Apply, Any, Array], Mapping[str, ChannelFlow]],
    example: Any,
    call: Mapping[str, Any] | None,
) -> Compact:
    arguments.check_pairs("layers", layers, "mask, fill")
    example = jnp.asarray(arguments.check_finite("example", example))
    if example.ndim < 2 or not len(example):
        raise InputError(
            "example must be a batch of inputs [N, ...], one or more, got "
            f"{example.shape}"
        )
    arguments.check_variables(variables)
    variables = jax.tree.map(np.asarray, unfreeze(variables))
    if not layers:
        raise InputError("say which layers are pruned: there is none")
    whole = as_compact(model, variables, example, call)
    try:
        return _remove(whole, layers, flows(whole.apply, variables, example), example)
    except jax.errors.UnexpectedTracerError as error:
        raise InputError(
            "a layer is called inside a transformation (nn.scan, nn.remat, nn.jit), "
            "where what it is given cannot be seen: build the model without"
        ) from error


def _remove(
    whole: Compact,
    layers: Mapping[str, tuple[Any, AnyFill]],
    flows: Mapping[str, ChannelFlow],
    example: Array,
) -> Compact:
    apply, variables = whole.apply, whole.variables
    prunings = [
        masking.make_pruning(variables, flows[name], *how)
        for name, how in layers.items()
    ]
    called = taps.list_layers(apply, variables, example[:1])
    given = given_behind_values(apply, variables, prunings, example[:1])
    smaller = cut_variables(called, variables, prunings, given)
    small = replace(
        whole,
        model=_narrow(whole, smaller, called),
        variables=smaller,
        layers={**whole.layers, **{p.flow.layer: _pruned(whole, p) for p in prunings}},
    )
    _check_runs(small, example, whole, called)
    return replace(small, proof=prove(whole, prunings, small, example))


def prove(
    whole: Compact, prunings: Sequence[Pruning], small: Compact, x: Array
) -> Proof:
    """Compares the compact network with the masked one; see `compaction.proof`."""
    masks = [pruning.mask for pruning in prunings]
    # A matrix unit that rounds its factors would need a wider bound.
    with jax.default_matmul_precision("highest"):
        before, bound = rounding_bound(whole.apply, whole.variables, x, masks)
        after = jax.jit(lambda v, x: small.apply(v, x))(small.variables, x)
    return compare(before, np.asarray(after, np.float32), bound)


def as_compact(
    model: nn.Module | Compact, variables: Any, example: Array, call: Any
) -> Compact:
    """A network of which nothing has been removed yet, or not by this call."""
    if isinstance(model, Compact):
        if call is not None:
            raise InputError("a compact network keeps its call's arguments: no `call`")
        return replace(model, variables=variables)
    arguments.check_kind("call", call or {}, Mapping, "a dictionary")
    whole = Compact(model, variables, dict(call or {}), {}, example.shape[1:], None)
    sizes = {
        layer.name: layer.output.shape[-1] // layer.module.num_groups
        for layer in taps.list_layers(whole.apply, variables, example[:1])
        if type(layer.module) in GROUP_NORMS and layer.module.num_groups
    }
    return replace(whole, group_sizes=sizes)


def _pruned(whole: Compact, pruning: Pruning) -> PrunedLayer:
    """The record of a pruning, also where the layer has been pruned before."""
    before = whole.layers.get(pruning.flow.layer)
    channels = pruning.flow.channels
    first = before.kept if before else range(channels)
    return PrunedLayer(
        channels=before.channels if before else channels,
        kept=tuple(c for c, keep in zip(first, pruning.keep, strict=True) if keep),
        fill=pruning.fill.name,
        fill_facts=pruning.fill.facts,
    )


def _narrow(whole: Compact, variables: Any, layers: Sequence[taps.Layer]) -> nn.Module:
    """The model with the widths of its variables, where it is built from widths."""
    model = whole.model
    if not by_widths(model):
        return model

    def features(kind: type[nn.Module]) -> tuple[int, ...]:
        names = [layer.name for layer in layers if isinstance(layer.module, kind)]
        return tuple(variables["params"][n]["kernel"].shape[-1] for n in names)

    return model.clone(widths=features(nn.Conv), dense=features(nn.Dense))


def _check_runs(
    small: Compact, example: Array, whole: Compact, called: Sequence[taps.Layer]
) -> None:
    """Raises if the model's code cannot run with fewer channels."""
    try:
        output = jax.eval_shape(
            lambda v, x: small.apply(v, x), small.variables, example
        )
    except Exception as error:  # whatever the model's own code raises
        raise InputError(
            f"the model's code does not run with fewer channels, as one that writes "
            f"their number into a reshape or a parameter: {first_line(error)}"
        ) from error
    if other := other_way(whole, called, small, example[:1]):
        raise OtherWayError(
            f"with these widths the model's code takes another way: {other} in one "
            "network alone, as where it compares shapes at a residual sum; keep one "
            "channel more or less"
        )
    expected = jax.eval_shape(lambda v, x: whole.apply(v, x), whole.variables, example)
    if getattr(output, "ndim", 0) != 2 or output.shape != expected.shape:
        shapes = jax.tree.map(jnp.shape, output)
        raise InputError(f"the network must return logits [N, C], got {shapes}")


def other_way(
    whole: Compact, called: Sequence[taps.Layer], small: Compact, x: Array
) -> str | None:
    """What one of two networks alone calls or computes between its layers, if any.

    Args:
      whole: the network.
      called: its layers.
      small: the same with fewer channels.
      x: one input.
    """
    left = taps.list_layers(small.apply, small.variables, x)
    names = [[layer.name for layer in layers] for layers in (called, left)]
    if names[0] != names[1]:
        return f"'{min({*names[0]} ^ {*names[1]}, default='')}' is called"
    ways = [
        [name for name in operations(n.apply, n.variables, x, layers)
         if name not in MOVING]
        for n, layers in ((whole, called), (small, left))
    ]  # fmt: skip
    if ways[0] == ways[1]:
        return None
    more, less = (Counter(way) for way in sorted(ways, key=len, reverse=True))
    return f"the operation '{min(more - less, default='')}' is found"
