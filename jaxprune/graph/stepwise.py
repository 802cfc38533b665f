"""A program run on one batch step by step, whichever value is asked for first."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array

from jaxprune.graph.evaluate import run_original
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Graph


class Stepwise:
    """Values of a network on one batch; each is worked out when it is first asked for.

    A value goes when all that read it have done so, which keeps feature maps of many
    images in memory no longer than they are needed.

    Args:
      graph: the network, for the batch's shape.
      arrays: its parameters, by path.
      batch: its inputs, an array or a tree.
      layers: those that `layer` decides the output of, by the value that they return.
      layer: function from such a layer's input to its output.
      also: values that are asked for as often beside the program itself.
    """

    def __init__(
        self,
        graph: Graph,
        arrays: Mapping[str, Any],
        batch: Any,
        layers: Mapping[int, Layer],
        layer: Callable[[Layer, Array], Array],
        also: Counter[int],
    ):
        self.program = program = graph.program
        self.layers, self.layer = layers, layer
        self.values: dict[int, Any] = dict(program.constants)
        self.values |= {program.leaves[path]: a for path, a in arrays.items()}
        self.fixed = set(self.values)
        self.values |= zip(program.batch, jax.tree.leaves(batch), strict=True)
        self.left = Counter(program.results) + also
        inside = {v for layer in layers.values() for v in (*layer.inner, layer.output)}
        for eqn in program.equations:
            if not inside.intersection(eqn.outputs):
                self.left.update(eqn.inputs)
        self.left.update(layer.input for layer in layers.values())
        self.done: set[int] = set()

    def read(self, value: int) -> Any:
        """A value, and all that it needs first."""
        if value in self.values:
            return self.values[value]
        assert value not in self.done, "asked for more often than was said"
        inputs: tuple[int, ...]
        outputs: tuple[int, ...]
        if value in self.layers:
            layer = self.layers[value]
            found = [self.layer(layer, self.read(layer.input))]
            inputs, outputs = (layer.input,), (value,)
        else:
            eqn = self.program.made_by[value]
            found = run_original(eqn, [self.read(v) for v in eqn.inputs])
            inputs, outputs = eqn.inputs, eqn.outputs
        for out, array in zip(outputs, found, strict=True):
            if self.left[out] > 0:
                self.values[out] = array
        self.done.update(outputs)
        for given in inputs:
            self.release(given)
        return found[outputs.index(value)]

    def release(self, value: int) -> None:
        """One of those who read it has done so."""
        self.left[value] -= 1
        if self.left[value] <= 0 and value not in self.fixed:
            self.values.pop(value, None)
