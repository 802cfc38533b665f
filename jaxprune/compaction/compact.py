"""A network without the pruned channels, equal to the masked network.

    small = compact(model, variables, "conv2d_12", keep, fill="zero", example=x)
    logits = small(x)

See `jaxprune.compaction.cut` for what is cut and what is folded in.

Axes: N images, P channels of a layer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base import arguments
from jaxprune._base.batch import check_batch
from jaxprune._base.errors import InputError, check_choice
from jaxprune.adapters.networks import takes_network
from jaxprune.compaction.cut import Smaller, cut
from jaxprune.compaction.network import Compact, as_compact, removed
from jaxprune.compaction.proof import prove
from jaxprune.fills.fill import ConstantFill, Fill
from jaxprune.fills.masked import kept_of, make_pruning
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.network import Network

AnyFill = str | np.ndarray | Fill


@takes_network
def compact(
    network: Network,
    layer: str,
    keep: Any,
    *,
    fill: AnyFill = "zero",
    tap: str = "conv",
    example: Any = None,
    unproved: bool = False,
) -> Compact:
    """Removes channels of one layer; see `compact_layers`, which this is for one.

    Args:
      network: the network; or in its place a linen model, or a network that has been
        compacted before, and its variables, with the keyword `call` the arguments of
        the model's call.
      layer: name of a convolution.
      keep: mask [P], True where a channel is kept.
      fill: the fill of pruned channels in the masked network: "zero", "bias" (kernel
        zeroed, bias kept), its value in an array [P], "drop" (whatever reads it reads
        0), which is plain slicing, or what `linear_fill` returns.
      tap: where that takes effect, "conv" at the convolution's output, or "relu" behind
        its ReLU. It matters where BatchNorm lies between them and the fill is neither
        "drop" nor linear.
      example: inputs [N, ...], or a tree of them, for tracing and for the comparison; a
        few images. By default the network's own.
      unproved: see `compact_layers`.
    """
    check_choice("tap", tap, ("conv", "relu"))
    if tap == "relu":
        network = _with_example(network, {layer: (keep, fill)}, "layers", example)
        network = network.with_relu(layer)
    return compact_layers(
        network, {layer: (keep, fill)}, example=example, unproved=unproved
    )


@takes_network
def compact_layers(
    network: Network,
    layers: Mapping[str, tuple[Any, AnyFill]],
    *,
    example: Any = None,
    unproved: bool = False,
) -> Compact:
    """Removes channels of several layers at once.

    Args:
      network: see `compact`.
      layers: name of a convolution -> (mask of its channels, fill).
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      unproved: returns the network, too, where numbers overflow, so that the comparison
        proves nothing; its `proof.not_proved` says where.

    Returns:
      The smaller network, compared with the masked one on the example.

    Raises:
      InputError: bad masks or fills, variables or an example that do not fit, channels
        that cannot be removed (the operation and the layer are named), a difference
        that rounding does not explain, or no proof.
    """
    network = _with_example(network, layers, "layers", example)
    graph = network.graph()
    groups = {}
    for name in layers:
        graph.with_map(name)
        groups[name] = graph.channels_of(name)
    return _compact(network, layers, groups, unproved)


@takes_network
def compact_groups(
    network: Network,
    groups: Mapping[str, tuple[Any, str | Fill]],
    *,
    example: Any = None,
    unproved: bool = False,
) -> Compact:
    """Removes units of several groups of coupled channels at once.

    Args:
      network: see `compact`.
      groups: name of a group, see `find_groups` -> (mask of its units, fill). The fill
        takes effect at what the consumers are given: "drop", or of `linear_fills` or
        `mean_fills`.
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      unproved: see `compact_layers`.

    Returns:
      The smaller network, compared with the masked one on the example. Its `layers`
      say for each group which units are kept.

    Raises:
      InputError: as `compact_layers`; a group that there is not, or another fill.
    """
    network = _with_example(network, groups, "groups", example)
    for name, (_, fill) in groups.items():
        at_consumers = isinstance(fill, Fill) and not isinstance(fill, ConstantFill)
        if not at_consumers and not (isinstance(fill, str) and fill == "drop"):
            raise InputError(
                f"group '{name}' takes the fill 'drop', or one of "
                "jaxprune.linear_fills or jaxprune.mean_fills"
            )
    found = {name: network.groups.find(name) for name in groups}
    return _compact(network, groups, found, unproved)


def _with_example(network: Network, given: Any, what: str, example: Any) -> Network:
    """The network with an example, if all that is given is in order."""
    arguments.check_pairs(what, given, "mask, fill")
    if not given:
        raise InputError("say which layers are pruned: there is none")
    if example is None:
        example = network.example
    if example is None:
        raise InputError("give example=, a batch of inputs [N, ...], a few images")
    batch = check_batch("example", example)
    return network.with_example(
        jax.tree.map(lambda array: np.asarray(jnp.asarray(array)), batch)
    )


def _compact(
    network: Network,
    how: Mapping[str, tuple[Any, AnyFill]],
    groups: Mapping[str, PruningGroup],
    unproved: bool,
) -> Compact:
    """The network without what is pruned, proved."""
    whole = as_compact(network)
    prunings = [make_pruning(network, groups[name], *how[name]) for name in how]
    arrays, exact = cut(network, prunings)
    small = removed(whole, prunings, arrays)
    smaller = Smaller(dict(small.arrays), exact)
    example = network.example
    narrowing = network.graph(example).narrowing(kept_of(prunings))
    masks = [pruning.mask for pruning in prunings]
    # A matrix unit that rounds its factors would compute something else.
    with jax.default_matmul_precision("highest"):
        proof = prove(
            network, masks, narrowing, smaller, example, small, unproved=unproved
        )
    return replace(small, proof=proof)
