"""The channels of a whole network, in groups that are pruned together.

A unit is what can be removed: a channel with all that it is tied to, such as those that
it meets in a residual sum, its BatchNorms, its gate, its depthwise convolution; of a
grouped convolution, a whole group. Units that one layer returns, and those tied to
them, make a group. Dense layers' units are channels too. See
`jaxprune.channels.coupling` for what is followed, and what is left whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxprune import arguments
from jaxprune.channels import taps
from jaxprune.channels.coupling import Coupling, components, trace
from jaxprune.channels.flow import ChannelFlow
from jaxprune.errors import InputError, check_choice


@dataclass(frozen=True)
class Groups:
    """All channels of a network.

    Attributes:
      groups: those that can be pruned, by the name of the first layer that returns
        them, in order of execution; the channels of a flow are the group's units.
      whole: layers whose channels all stay, with the reason.
    """

    groups: Mapping[str, ChannelFlow]
    whole: Mapping[str, str]

    def find(self, name: str) -> ChannelFlow:
        """The group that the layer `name` belongs to.

        Raises:
          InputError: there is none; with the reason where the layer is left whole.
        """
        if name in self.whole:
            raise InputError(
                f"the channels of '{name}' cannot be removed: {self.whole[name]}"
            )
        found = {p: g for g in self.groups.values() for p in g.producers}
        check_choice("group", name, found)
        return found[name]


def find_groups(apply: taps.Apply, variables: Any, x: Array | np.ndarray) -> Groups:
    """Finds which channels of a network can be pruned, and which go together.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      x: an input; only its first example's shape is used.

    Raises:
      InputError: the network does not run on `x` with these variables.
    """
    found = trace(apply, variables, jnp.asarray(arguments.check_finite("x", x)))
    count = 1 + max(
        (int(n.max()) for n in (*found.layers.values(), *found.parameters.values())),
        default=-1,
    )
    unit_of = components(count, found.tied)
    reasons: dict[int, str] = {}
    for node, why in found.kept.items():
        reasons.setdefault(int(unit_of[node]), why)
    read = [unit_of[nodes[nodes >= 0]] for nodes in found.readers.values()]
    unread = np.setdiff1d(unit_of, np.concatenate([[-1], *read]))
    for unit in unread:
        reasons.setdefault(int(unit), "no layer that can be cut reads them")
    # Layers are in one group if they have a unit in common.
    chains = [np.stack([n[:-1], n[1:]], axis=1) for n in found.layers.values()]
    group_of = components(count, np.concatenate([found.tied, *chains]))
    groups: dict[str, ChannelFlow] = {}
    whole: dict[str, str] = {}
    for name, nodes in found.layers.items():
        members = [
            n for n, o in found.layers.items() if group_of[o[0]] == group_of[nodes[0]]
        ]
        if members[0] != name:
            continue
        free = [u for u in _units(found, members, unit_of) if u not in reasons]
        if free:
            groups[name] = _group(found, name, members, unit_of, free)
        for member in members:
            units = set(unit_of[found.layers[member]].tolist())
            if not units & set(free):
                whole[member] = next(reasons[u] for u in sorted(units))
    return Groups(groups, {n: whole[n] for n in found.layers if n in whole})


def _units(found: Coupling, members: list[str], unit_of: np.ndarray) -> list[int]:
    """The units of layers, in the order of the first layer's channels."""
    nodes = np.concatenate([found.layers[name] for name in members])
    return list(dict.fromkeys(unit_of[nodes].tolist()))


def _group(
    found: Coupling,
    name: str,
    members: list[str],
    unit_of: np.ndarray,
    free: list[int],
) -> ChannelFlow:
    index = np.full(len(unit_of) + 1, -1)
    index[free] = np.arange(len(free))

    def units(nodes: np.ndarray) -> np.ndarray:
        return np.where(nodes >= 0, index[unit_of[nodes.clip(0)]], -1)

    def held(nodes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        every = {key: units(n) for key, n in nodes.items()}
        return {key: u for key, u in every.items() if (u >= 0).any()}

    return ChannelFlow(
        layer=name,
        channels=len(free),
        producers={m: units(found.layers[m]) for m in members},
        parameters=held(found.parameters),
        readers=held(found.readers),
    )
