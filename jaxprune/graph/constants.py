"""Whether a layer's channels, as constants, are constants where they are read.

What follows the layer may put a channel together with something else that depends on
the image, as a residual sum or a gate does: then a constant does not stay one.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.labels import Labels
from jaxprune.graph.layers import Layer
from jaxprune.graph.trace import Equation


def where_varying(
    labels: Labels,
    layer: str,
    group: PruningGroup,
    removed: Bool[np.ndarray, " P"] | None = None,
) -> dict[str, Equation]:
    """The consumers that read channels which are constants at a layer as others.

    Args:
      labels: of the network.
      layer: whose channels become constants.
      group: of its channels.
      removed: True where a channel becomes one; by default all of them.

    Returns:
      For each such consumer, the operation that makes a constant depend on the image.
    """
    return _Walk(labels, labels.layers[layer], group, removed).found()


class _Walk:
    """Follows which constant channels of which values depend on the image.

    A value holds a channel where an axis of it has the channel's label.
    """

    def __init__(self, labels: Labels, layer: Layer, group: PruningGroup, removed: Any):
        self.labels, self.program = labels, labels.program
        self.layer, self.group = layer, group
        (axis,) = layer.axes.channels
        roots = labels.roots(layer.output, axis)
        self.roots = roots if removed is None else roots[removed]
        # By value, the roots that vary with the image, and where they began to.
        self.varying: dict[int, dict[int, Equation]] = {}

    def found(self) -> dict[str, Equation]:
        """See `where_varying`."""
        self.varying[self.layer.output] = {}
        after = self.program.behind([self.layer.output])
        for eqn in self.program.equations:
            for value in eqn.outputs:
                if value in after and value != self.layer.output:
                    self.varying[value] = self._varying(eqn, value)
        found: dict[str, Equation] = {}
        consumers = [self.labels.layers[name] for name in self.group.consumers]
        # First those behind the layer: there it is said which operation it is.
        for consumer in sorted(consumers, key=lambda c: c.input not in self.varying):
            for eqn in self._read(consumer).values():
                found.setdefault(consumer.name, eqn)
        return found

    def _read(self, consumer: Layer) -> dict[int, Equation]:
        roots = self._held(consumer.input)
        of_all = dict.fromkeys(roots, consumer.equation)
        varying = self.varying.get(consumer.input, of_all)
        return {root: varying[root] for root in roots if root in varying}

    def _varying(self, eqn: Equation, out: int) -> dict[int, Equation]:
        held = self._held(out)
        found: dict[int, Equation] = {}
        constant: set[int] = set()
        for value in eqn.inputs:
            if value not in self.program.live:
                continue
            given = self._held(value) - self._summed(eqn, value)
            varies = self.varying.get(value, dict.fromkeys(given, eqn))
            constant |= given - set(varies)
            for root in held:
                if root in given and root in varies:
                    found.setdefault(root, varies[root])
                elif root not in given and eqn.name != "concatenate":
                    found.setdefault(root, eqn)
        # Named where a channel that was constant until then meets another value.
        return {root: eqn if root in constant else e for root, e in found.items()}

    def _held(self, value: int) -> set[int]:
        """The constant channels that a value holds."""
        labels = self.labels
        axes = [labels.roots(value, a) for a in range(len(labels.values[value]))]
        found = np.concatenate([np.zeros(0, np.int64), *axes])
        return set(np.intersect1d(found, self.roots).tolist())

    def _summed(self, eqn: Equation, value: int) -> set[int]:
        """The constant channels that an equation sums over: its result has others'."""
        labels, found = self.labels, [np.zeros(0, np.int64)]
        for layer in labels.layers.values():
            if layer.equation is eqn and labels.is_read(layer):
                axes = {layer.x: layer.axes.features}
                if layer.kernel is None:
                    axes[1 - layer.x] = layer.axes.kernel_features
                for operand, dims in axes.items():
                    if eqn.inputs[operand] == value:
                        found += [labels.roots(value, dim) for dim in dims]
        return set(np.intersect1d(np.concatenate(found), self.roots).tolist())
