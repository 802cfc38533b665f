"""Whether a layer's channels, as constants, are constants where they are read.

What follows the layer may put a channel together with something else that depends on
the image, as a residual sum or a gate does: then a constant does not stay one.
"""

from collections.abc import Sequence

import numpy as np

from jaxprune._base.errors import InputError
from jaxprune.fills.masked import Pruning
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Graph
from jaxprune.graph.trace import Equation


def check_constants(graph: Graph, prunings: Sequence[Pruning]) -> None:
    """Raises InputError unless pruned channels reach their consumers as constants."""
    for pruning in prunings:
        if not pruning.keep.all():
            _Walk(graph, pruning).check()


class _Walk:
    """Follows which pruned channels of which values depend on the image.

    A value holds a channel where an axis of it has the channel's label.
    """

    def __init__(self, graph: Graph, pruning: Pruning):
        self.graph, self.pruning = graph, pruning
        self.program = graph.program
        self.layer = graph.layer(pruning.group.name)
        (axis,) = self.layer.axes.channels
        self.roots = graph.labels.roots(self.layer.output, axis)[~pruning.keep]
        # By value, the roots that vary with the image, and where they began to.
        self.varying: dict[int, dict[int, Equation]] = {}

    def check(self) -> None:
        self.varying[self.layer.output] = {}
        after = self.program.behind([self.layer.output])
        for eqn in self.program.equations:
            for value in eqn.outputs:
                if value in after and value != self.layer.output:
                    self.varying[value] = self._varying(eqn, value)
        for name in self.pruning.group.consumers:
            consumer = self.graph.layer(name)
            for found in self._read(consumer).values():
                raise InputError(
                    f"fill '{self.pruning.fill.name}' is no constant where '{name}' "
                    f"reads the channels of '{self.layer.name}': {found.described} "
                    "joins them with what depends on the image; take the fill 'drop' "
                    "or 'linear'"
                )

    def _read(self, consumer: Layer) -> dict[int, Equation]:
        roots = self._held(consumer.input)
        varying = self.varying.get(consumer.input, {})
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
        """The pruned channels that a value holds."""
        labels = self.graph.labels
        axes = [labels.roots(value, a) for a in range(len(labels.values[value]))]
        found = np.concatenate([np.zeros(0, np.int64), *axes])
        return set(np.intersect1d(found, self.roots).tolist())

    def _summed(self, eqn: Equation, value: int) -> set[int]:
        """The pruned channels that an equation sums over: its result has others'."""
        labels, found = self.graph.labels, [np.zeros(0, np.int64)]
        for layer in self.graph.layers.values():
            if layer.equation is eqn and layer.groups == 1:
                axes = {layer.x: layer.axes.features}
                if layer.kernel is None:
                    axes[1 - layer.x] = layer.axes.kernel_features
                for operand, dims in axes.items():
                    if eqn.inputs[operand] == value:
                        found += [labels.roots(value, dim) for dim in dims]
        return set(np.intersect1d(np.concatenate(found), self.roots).tolist())
