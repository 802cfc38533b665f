"""The channels of a whole network, in groups that are pruned together.

A unit is what goes at once: a channel with all that it is tied to, such as those that
it meets in a residual sum, its BatchNorms, its gate, its depthwise convolution; of a
grouped convolution, a whole group. Units that one layer returns, and those tied to
them, make a group. A unit can go if some layer reads it, and nothing keeps it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from jaxprune._base.errors import InputError, check_choice
from jaxprune.graph.labels import Labels
from jaxprune.graph.layers import Layer
from jaxprune.graph.unions import STAYS, Unions

# A leaf's path, and one of its axes.
LeafAxis = tuple[str, int]


@dataclass(frozen=True)
class PruningGroup:
    """Units that belong together, and where they are.

    Every index is given the unit that it belongs to; -1 where it belongs to none.

    Attributes:
      name: of the first layer that returns them, in order of execution.
      units: their number.
      leaves: for axes of the parameters that hold units, of each index.
      producers: for each layer that returns units, of each output channel [U].
      consumers: for each layer that sums over units, of each input feature [F].
      sums: for each sum over units by itself, of each of its terms [F]; see
        `Network.with_streams`.
    """

    name: str
    units: int
    leaves: Mapping[LeafAxis, Int[np.ndarray, " _"]]
    producers: Mapping[str, Int[np.ndarray, " U"]]
    consumers: Mapping[str, Int[np.ndarray, " F"]]
    sums: Mapping[str, Int[np.ndarray, " F"]] = field(default_factory=dict)

    def __repr__(self) -> str:
        layers = [", ".join(names) for names in (self.producers, self.consumers)]
        return f"PruningGroup({self.units} units, {layers[0]} -> {layers[1]})"

    @property
    def readers(self) -> dict[str, Int[np.ndarray, " F"]]:
        """The consumers, and the sums."""
        return {**self.consumers, **self.sums}

    def kept(self, keep: Bool[np.ndarray, " P"]) -> dict[LeafAxis, np.ndarray]:
        """Of each axis in `leaves`, the indices that a mask of the units leaves."""
        return {axis: kept_indices(keep, owner) for axis, owner in self.leaves.items()}


def kept_indices(keep: Bool[np.ndarray, " P"], owner: np.ndarray) -> np.ndarray:
    """True where an index belongs to a unit that is kept, or to none."""
    return (owner < 0) | keep[owner.clip(0)]


@dataclass(frozen=True)
class Groups:
    """All channels of a network.

    Attributes:
      groups: those that can be pruned, by name, in order of execution.
      whole: layers whose channels all stay, with the reason; or groups of which one
        layer has several.
    """

    groups: Mapping[str, PruningGroup]
    whole: Mapping[str, str]

    def find(self, name: str) -> PruningGroup:
        """The group of this name, or that the layer of this name belongs to.

        Raises:
          InputError: there is none; with the reason where the layer is left whole.
        """
        if name in self.groups:
            return self.groups[name]
        if name in self.whole:
            raise InputError(_refusal(name, self.whole[name]))
        found = {p: g for g in reversed([*self.groups.values()]) for p in g.producers}
        check_choice("group", name, {**self.groups, **found})
        return found[name]


def _refusal(name: str, why: str) -> str:
    return f"the channels of '{name}' cannot be removed: {why}"


class Grouping:
    """From labels to groups."""

    def __init__(self, labels: Labels):
        self.labels = labels
        self.layers = labels.layers
        self._read = self._roots_that_are_read()

    def groups(self) -> Groups:
        """All groups of the network."""
        together = Unions()
        together.new(self.labels.unions.count)
        for _, roots in self._channel_axes():
            free = roots[self._free(roots)]
            together.tie(free[:-1], free[1:])
        members: dict[int, list[tuple[str, np.ndarray]]] = {}
        for name, roots in self._channel_axes():
            for group in np.unique(together.find(roots[self._free(roots)])):
                members.setdefault(int(group), []).append((name, roots))
        found: dict[str, PruningGroup] = {}
        for group, axes in members.items():
            units = np.concatenate([roots for _, roots in axes])
            units = units[self._free(units)]
            units = units[together.find(units) == group]
            if len(set(units.tolist())) < 2:
                continue  # it would leave nothing
            name = _unused(axes[0][0], found)
            found[name] = self._group(name, np.array([*dict.fromkeys(units.tolist())]))
        produced = {name for group in found.values() for name in group.producers}
        whole = {
            name: self._why(layer)
            for name, layer in self.layers.items()
            if layer.leaf is not None and name not in produced
        }
        return Groups(found, whole)

    def of_layer(self, name: str) -> PruningGroup:
        """The channels of one layer, each of which is a unit.

        Raises:
          InputError: there is no such layer, a channel stays, or several go together.
        """
        layer = self.layers[name]
        axes = [roots for found, roots in self._channel_axes() if found == name]
        if len(axes) != 1:
            several = "it has several axes of channels: prune its groups (find_groups)"
            raise InputError(_refusal(name, several))
        (roots,) = axes
        if not self._free(roots).all():
            raise InputError(_refusal(name, self._why(layer)))
        if len(np.unique(roots)) < len(roots):
            _, first, count = np.unique(roots, return_index=True, return_counts=True)
            one = int(first[count > 1].min())
            other = int(np.flatnonzero(roots == roots[one])[1])
            together = f"channels {one} and {other} go together: prune its groups"
            raise InputError(_refusal(name, f"{together} (find_groups)"))
        group = self._group(name, roots)
        for key in group.sums:
            where = self.labels.sums[key].equation.described
            raise InputError(_refusal(name, f"{where} adds them up: prune its groups"))
        return group

    def _channel_axes(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each layer's axes of output channels: the units' lowest labels."""
        for name, layer in self.layers.items():
            if layer.kernel is not None:
                for axis in layer.axes.channels:
                    yield name, self.labels.roots(layer.product, axis)

    def _roots_that_are_read(self) -> np.ndarray:
        read = np.zeros(self.labels.unions.count, bool)
        for layer in self.layers.values():
            for axis in layer.axes.features if self.labels.is_read(layer) else ():
                read[self.labels.roots(layer.input, axis)] = True
        return read

    def _free(self, roots: np.ndarray) -> Bool[np.ndarray, " _"]:
        """Whether units can go."""
        return (roots != STAYS) & self._read[roots]

    def _why(self, layer: Layer) -> str:
        """Why a channel of a layer stays: the first one that does."""
        for axis in layer.axes.channels:
            roots = self.labels.roots(layer.product, axis)
            labels = self.labels.values[layer.product][axis]
            free = self._free(roots)
            if not free.all():
                first = int(np.argmin(free))
                if roots[first] == STAYS:
                    return self.labels.unions.reason(int(labels[first]))
                which = f"channel {first}" if free.any() else "them"
                return f"no layer reads {which}"
        for axis in layer.axes.channels:
            labels = self.labels.values[layer.product][axis]
            if len(np.unique(labels)) > 1:
                where = self.labels.unions.where_tied(labels)
                return f"{where} ties them all together"
        return "it has one channel"

    def _group(self, name: str, units: np.ndarray) -> PruningGroup:
        index = np.full(self.labels.unions.count, -1)
        index[units] = np.arange(len(units))
        index[STAYS] = -1

        def held(value: int, axes: tuple[int, ...]) -> np.ndarray:
            """The unit of each index of some axes as one."""
            owner = np.full(1, -1)
            for axis in axes:
                own = index[self.labels.roots(value, axis)]
                owner = np.maximum(owner[:, None], own).ravel()
            return owner

        leaves: dict[LeafAxis, np.ndarray] = {}
        for path, value in self.labels.program.leaves.items():
            for axis in range(len(self.labels.program.shape(value))):
                leaves[path, axis] = held(value, (axis,))
        producers, consumers = {}, {}
        for key, layer in self.layers.items():
            if layer.kernel is not None:
                producers[key] = held(layer.product, layer.axes.channels)
            if self.labels.is_read(layer):
                consumers[key] = held(layer.input, layer.axes.features)
        sums = {
            key: held(layer.input, layer.axes.features)
            for key, layer in self.labels.sums.items()
        }

        def holding(found: Mapping) -> dict:
            return {key: owner for key, owner in found.items() if (owner >= 0).any()}

        return PruningGroup(
            name, len(units), holding(leaves), holding(producers), holding(consumers),
            holding(sums),
        )  # fmt: skip


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """A group's name: its layer's, numbered where the layer has other groups."""
    count = 2
    found = name
    while found in taken:
        found, count = f"{name}[{count}]", count + 1
    return found
