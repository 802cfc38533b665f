"""Half of every group of a network gone: what many tests of frameworks begin with."""

import numpy as np

import jaxprune


def halved(network, images, fill="drop", but=()):
    """The network without every second unit.

    Args:
      network: the network.
      images: what the fill is fitted on.
      fill: "drop", "mean" or "linear".
      but: names of groups that stay whole.
    """
    groups = {n: g for n, g in network.groups.groups.items() if n not in but}
    fills = dict.fromkeys(groups, fill)
    if fill != "drop":
        fit = jaxprune.mean_fills if fill == "mean" else jaxprune.linear_fills
        fills = fit(network, images, groups.values())
    keep = {name: np.arange(group.units) % 2 == 0 for name, group in groups.items()}
    return jaxprune.compact_groups(network, {n: (keep[n], fills[n]) for n in groups})
