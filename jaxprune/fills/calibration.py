"""Fitting the fills `linear` and `mean` on unlabelled images.

Axes: N images, P channels, G groups of Q features of a consumer as in
`jaxprune.fills.linear`, n rows, which are images and positions.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jaxprune._base import arguments, processes
from jaxprune._base.batch import check_batch, size_of, take
from jaxprune._base.errors import InputError
from jaxprune.adapters.networks import takes_network
from jaxprune.fills.fill import LinearFill, MeanFill
from jaxprune.fills.linear import group_features, regressed_together
from jaxprune.fills.moments import Sums
from jaxprune.fills.operands import Pair, operand_rows
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.network import Network

# Ridges to choose from, in units of the mean variance. Where channels predict one
# another poorly, larger ones have less squared error, and yet cost accuracy.
RIDGES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

# Rows of a consumer's input that the ridge is chosen on: neighbouring positions say
# nearly the same.
_PRESS_ROWS = 2**14
# The same times the features of a group: beyond 2048 of these, fewer rows.
_PRESS_ELEMENTS = 2**25


@takes_network
def linear_fill(
    network: Network,
    images: Any,
    *,
    layer: str | None = None,
    ridge: float | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> LinearFill:
    """Fits what the kept channels say for a pruned one; see `jaxprune.fills.linear`.

    One pass over a few hundred images, without labels. Where several processes run
    together, each gives the same images and works on its share of them.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      images: inputs of the network, [N, ...] or a tree of such; not those that it is
        evaluated on.
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
    images = check_batch("images that a fill is fitted on", images)
    graph = network.with_example(take(images, np.arange(1))).graph()
    group = graph.channels_of(graph.last_conv() if layer is None else layer)
    fills = linear_fills(
        network, images, [group], ridge=ridge, batch_size=batch_size, mesh=mesh
    )
    found: LinearFill = fills[group.name]
    return found


@takes_network
def linear_fills(
    network: Network,
    images: Any,
    groups: Iterable[PruningGroup],
    *,
    ridge: float | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> dict[str, LinearFill]:
    """`linear_fill` for several layers or groups, in one pass over the images.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      images: inputs of the network, [N, ...] or a tree of such; not those that it is
        evaluated on.
      groups: such as `find_groups(...).groups.values()`.
      ridge: in units of the mean variance, positive; by default chosen for each.
      batch_size: images in a batch.
      mesh: the devices; by default all of this process.

    Returns:
      The fill of each, by its name.

    Raises:
      InputError: no images, a ridge that is not positive, activations that are not
        finite, or a group that is read by a product of two values of an image.
    """
    images = check_batch("images that a fill is fitted on", images)
    if ridge is not None and not (isinstance(ridge, Real) and 0 < ridge < np.inf):
        raise InputError(f"ridge must be positive and finite, got {ridge!r}")
    arguments.check_count("batch_size", batch_size)
    network = network.with_example(take(images, np.arange(1)))
    groups = _checked(groups)
    sums = _read(network, images, groups, batch_size, mesh, press=ridge is None)
    kernels = {consumer: network.kernel(consumer) for _, consumer in sums}
    fills = {}
    for group in groups:
        own = {consumer: sums[group.name, consumer] for consumer in group.consumers}
        facts: dict[str, Any] = {"images": size_of(images)}
        best = ridge
        if best is None:
            of_each = [s.press(RIDGES) for s in own.values()]
            errors = dict(zip(RIDGES, np.sum(of_each, axis=0), strict=True))
            best = min(errors, key=errors.__getitem__)
            facts["press"] = {f"{c:g}": float(error) for c, error in errors.items()}
        facts["ridge"] = best
        moments = {
            consumer: s.moments(kernels[consumer], best) for consumer, s in own.items()
        }
        fills[group.name] = LinearFill("linear", moments=moments, facts=facts)
    return fills


def _checked(groups: Any) -> list[PruningGroup]:
    """Groups as a list; InputError where they are none."""
    found = list(groups) if isinstance(groups, Iterable) else [groups]
    for group in found:
        kind = "a PruningGroup, as find_groups(...).groups holds them"
        arguments.check_kind("each of the groups", group, PruningGroup, kind)
    return found


@takes_network
def mean_fills(
    network: Network,
    images: Any,
    groups: Iterable[PruningGroup],
    *,
    batch_size: int = 128,
    mesh: Mesh | None = None,
) -> dict[str, MeanFill]:
    """At each consumer, the mean of what it is given for a channel.

    What `linear_fills` tends to with an ever larger ridge. A mean at the layer's own
    output is another fill: the maximum of a mean is not the mean of the maximum.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      images: inputs of the network, [N, ...] or a tree of such; not those that it is
        evaluated on.
      groups: such as `find_groups(...).groups.values()`.
      batch_size: images in a batch.
      mesh: the devices; by default all of this process.

    Returns:
      The fill of each, by its name.

    Raises:
      InputError: no images, activations that are not finite, or a group that is read
        by a product of two values of an image.
    """
    images = check_batch("images that a fill is fitted on", images)
    arguments.check_count("batch_size", batch_size)
    network = network.with_example(take(images, np.arange(1)))
    groups = _checked(groups)
    _check_linear(network, groups)
    owners = {
        (g.name, name): owner
        for g in groups
        for name, owner in g.readers.items()
        if name in g.consumers or not network.graph().reader(name).in_a_loop
    }
    held = {key: np.flatnonzero(owner >= 0) for key, owner in owners.items()}
    sums = {key: np.zeros(len(owner)) for key, owner in owners.items()}
    counts = dict.fromkeys(owners, 0)
    for key, rows, _ in operand_rows(network, images, held, batch_size, mesh):
        sums[key][held[key]] += rows.sum(0, dtype=np.float64)
        counts[key] += len(rows)
    means: dict[str, dict[str, np.ndarray]] = {g.name: {} for g in groups}
    for (group, consumer), total in sums.items():
        count = processes.total(np.array([counts[group, consumer]]))
        means[group][consumer] = (processes.total(total) / count).astype(np.float32)
    facts = {"images": size_of(images)}
    return {
        name: MeanFill("mean", means=own, facts=facts) for name, own in means.items()
    }


def why_not_fitted(network: Network, group: PruningGroup) -> str:
    """Why units cannot be predicted where they are read; "" where they can."""
    for name, owner in group.consumers.items():
        if how := network.layers[name].takes_drop_alone:
            return f"'{name}' reads them {how}"
        if group_features(owner, group.units) is None:
            return f"'{name}' has another number of features for some than for others"
    return ""


def _check_linear(network: Network, groups: Sequence[PruningGroup]) -> None:
    """Raises InputError where units are read in a way that takes 'drop' alone."""
    for group in groups:
        for consumer in group.consumers:
            layer = network.layers[consumer]
            if layer.takes_drop_alone and not layer.in_a_loop:
                raise InputError(
                    f"'{consumer}' reads '{group.name}' {layer.takes_drop_alone}: it "
                    "takes the fill 'drop' alone"
                )


def _read(
    network: Network,
    images: Any,
    groups: Sequence[PruningGroup],
    batch_size: int,
    mesh: Mesh | None,
    press: bool,
) -> dict[Pair, Sums]:
    """Moments of the inputs of each group's consumers; some rows, too, for `press`."""
    _check_linear(network, groups)
    features = {
        (g.name, name): _features(g, name) for g in groups for name in g.consumers
    }
    channels = {g.name: g.units for g in groups}
    sums: dict[Pair, Sums] = {}
    found = operand_rows(network, images, features, batch_size, mesh)
    for key, rows, total in found:
        if key not in sums:
            level = rows.mean(0, dtype=np.float64)
            sums[key] = Sums.about(level, features[key], channels[key[0]])
        most = min(_PRESS_ROWS, _PRESS_ELEMENTS // features[key].shape[1])
        sums[key].add(rows, -(-total // most) if press else total)
    return {key: s.over_processes() for key, s in sums.items()}


def _features(group: PruningGroup, consumer: str) -> Int[np.ndarray, "G Q"]:
    features = group_features(group.consumers[consumer], group.units)
    if features is None:
        raise InputError(
            f"the linear fill needs as many input features of '{consumer}' for one "
            f"channel of '{group.name}' as for another"
        )
    return regressed_together(features)
