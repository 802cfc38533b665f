"""Fitting the fills `linear` and `mean` on unlabelled images.

Axes: N images, P channels, G groups of Q features of a reader as in
`jaxprune.channels.linear`, n rows, which are images and positions.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Int, Num

from jaxprune import arguments, processes
from jaxprune.channels import taps
from jaxprune.channels.fills import Fill
from jaxprune.channels.flow import ChannelFlow, channel_flow
from jaxprune.channels.linear import (
    group_features,
    regressed_together,
)
from jaxprune.channels.moments import Sums
from jaxprune.channels.readings import Pair, check_images, given_rows
from jaxprune.errors import InputError

# Ridges to choose from, in units of the mean variance. Where channels predict one
# another poorly, larger ones have less squared error, and yet cost accuracy.
RIDGES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

# Rows of a reader's input that the ridge is chosen on: neighbouring positions say
# nearly the same.
_PRESS_ROWS = 2**14


def linear_fill(
    apply: taps.Apply,
    variables: Any,
    images: Num[np.ndarray, "N ..."] | Num[Array, "N ..."],
    *,
    layer: str | None = None,
    ridge: float | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> Fill:
    """Fits what the kept channels say for a pruned one; see `jaxprune.channels.linear`.

    One pass over a few hundred images, without labels. Where several processes run
    together, each gives the same images and works on its share of them.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      images: what `apply` takes; not those that the network is evaluated on.
      layer: name of the convolution; by default the last one.
      ridge: in units of the mean variance, positive; by default the one of RIDGES with
        the smallest leave-one-out error (`press`).
      batch_size: images in a batch.
      mesh: the devices; by default all of this process.

    Returns:
      The fill, for `sweep_layer` and `compact`.

    Raises:
      InputError: no images, a ridge that is not positive, activations that are not
        finite, or channels that cannot be followed to the layers that read them.
    """
    check_images(images)
    name = layer
    if name is None:
        name = taps.last_conv(apply, variables, images[:1])
    flow = channel_flow(apply, variables, jnp.asarray(images[:1]), name)
    fills = linear_fills(
        apply, variables, images, [flow],
        ridge=ridge, batch_size=batch_size, mesh=mesh,
    )  # fmt: skip
    return fills[name]


def linear_fills(
    apply: taps.Apply,
    variables: Any,
    images: Num[np.ndarray, "N ..."] | Num[Array, "N ..."],
    flows: Iterable[ChannelFlow],
    *,
    ridge: float | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> dict[str, Fill]:
    """`linear_fill` for several layers or groups, in one pass over the images.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      images: what `apply` takes; not those that the network is evaluated on.
      flows: where the channels go, such as `find_groups(...).groups.values()`.
      ridge: in units of the mean variance, positive; by default chosen for each.
      batch_size: images in a batch.
      mesh: the devices; by default all of this process.

    Returns:
      The fill of each, by its layer's name.

    Raises:
      InputError: no images, a ridge that is not positive, or activations that are not
        finite.
    """
    check_images(images)
    if ridge is not None and not (isinstance(ridge, Real) and 0 < ridge < np.inf):
        raise InputError(f"ridge must be positive and finite, got {ridge!r}")
    arguments.check_variables(variables)
    arguments.check_count("batch_size", batch_size)
    flows = _checked(flows)
    sums = _read(apply, variables, np.asarray(images), flows, batch_size, mesh)
    fills = {}
    for flow in flows:
        own = {reader: sums[flow.layer, reader] for reader in flow.readers}
        facts: dict[str, Any] = {"images": len(images)}
        best = ridge
        if best is None:
            errors = {c: sum(s.press(c) for s in own.values()) for c in RIDGES}
            best = min(errors, key=errors.__getitem__)
            facts["press"] = {f"{c:g}": float(error) for c, error in errors.items()}
        facts["ridge"] = best
        moments = {
            reader: s.moments(taps.at_path(variables["params"], reader)["kernel"], best)
            for reader, s in own.items()
        }
        fills[flow.layer] = Fill("linear", moments=moments, facts=facts)
    return fills


def _checked(flows: Any) -> list[ChannelFlow]:
    """Flows as a list; InputError where they are none."""
    found = list(flows) if isinstance(flows, Iterable) else [flows]
    for flow in found:
        arguments.check_kind("each of the flows", flow, ChannelFlow, "a ChannelFlow")
    return found


def mean_fills(
    apply: taps.Apply,
    variables: Any,
    images: Num[np.ndarray, "N ..."] | Num[Array, "N ..."],
    flows: Iterable[ChannelFlow],
    *,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> dict[str, Fill]:
    """At each reader, the mean of what it is given for a channel.

    What `linear_fills` tends to with an ever larger ridge. A mean at the layer's own
    output is another fill: the maximum of a mean is not the mean of the maximum.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      images: what `apply` takes; not those that the network is evaluated on.
      flows: where the channels go, such as `find_groups(...).groups.values()`.
      batch_size: images in a batch.
      mesh: the devices; by default all of this process.

    Returns:
      The fill of each, by its layer's name.

    Raises:
      InputError: no images, or activations that are not finite.
    """
    check_images(images)
    arguments.check_variables(variables)
    arguments.check_count("batch_size", batch_size)
    flows = _checked(flows)
    owners = {
        (f.layer, name): owner for f in flows for name, owner in f.readers.items()
    }
    held = {key: np.flatnonzero(owner >= 0) for key, owner in owners.items()}
    sums = {key: np.zeros(len(owner)) for key, owner in owners.items()}
    counts = dict.fromkeys(owners, 0)
    arrays = np.asarray(images)
    found = given_rows(apply, variables, arrays, held, batch_size, mesh)
    for key, rows, _ in found:
        sums[key][held[key]] += rows.sum(0, dtype=np.float64)
        counts[key] += len(rows)
    means: dict[str, dict[str, np.ndarray]] = {f.layer: {} for f in flows}
    for (layer, reader), total in sums.items():
        count = processes.total(np.array([counts[layer, reader]]))
        means[layer][reader] = (processes.total(total) / count).astype(np.float32)
    facts = {"images": len(images)}
    return {name: Fill("mean", means=own, facts=facts) for name, own in means.items()}


def _read(
    apply: taps.Apply,
    variables: Any,
    images: np.ndarray,
    flows: Sequence[ChannelFlow],
    batch_size: int,
    mesh: Mesh | None,
) -> dict[Pair, Sums]:
    """What each flow's readers are given for the images, added up."""
    features = {
        (f.layer, name): _features(f, name) for f in flows for name in f.readers
    }
    channels = {f.layer: f.channels for f in flows}
    sums: dict[Pair, Sums] = {}
    found = given_rows(apply, variables, images, features, batch_size, mesh)
    for key, rows, total in found:
        if key not in sums:
            groups, members = features[key].shape
            zeros = np.zeros((groups, members)), np.zeros((groups, *2 * (members,)))
            sums[key] = Sums(features[key], channels[key[0]], 0, *zeros, [])
        sums[key].add(rows, -(-total // _PRESS_ROWS))
    return {key: s.over_processes() for key, s in sums.items()}


def _features(flow: ChannelFlow, reader: str) -> Int[np.ndarray, "G Q"]:
    features = group_features(flow.readers[reader], flow.channels)
    if features is None:
        raise InputError(
            f"the linear fill needs as many input features of '{reader}' for one "
            f"channel of '{flow.layer}' as for another"
        )
    return regressed_together(features)
