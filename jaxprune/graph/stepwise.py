"""A program run step by step on batch after batch, whichever value is asked for first.

All batches take a step before any takes the next one: a step may depend on what it is
given of all of them.

Axes: B images of a batch.
"""

import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune.graph.evaluate import run
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Graph

# Bytes of a value, of all batches, that are kept in memory; more go to a file.
_IN_MEMORY = 2**29


class Batches:
    """A value's arrays [B, ...], one for each batch.

    Larger ones than _IN_MEMORY in all are in a temporary file without a name, which
    goes with the object.
    """

    def __init__(self, count: int):
        """Holds no array yet, of `count` that are to come."""
        self._count = count
        self._arrays: list[Any] = []
        self._file: Any = None
        self._sharding: Any = None

    def append(self, array: Any) -> None:
        """Takes the next batch's."""
        if not self._arrays and array.nbytes * self._count > _IN_MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lasts
            weakref.finalize(self, self._file.close)
            self._sharding = getattr(array, "sharding", None)
        if self._file is None:
            self._arrays.append(array)
            return
        kept = np.ascontiguousarray(array)
        self._arrays.append((self._file.tell(), kept.shape, kept.dtype))
        self._file.write(kept.reshape(-1).view(np.uint8).data)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, index: int) -> Any:
        found = self._arrays[index]
        if self._file is None:
            return found
        start, shape, dtype = found
        array = np.empty(shape, dtype)
        self._file.seek(start)
        self._file.readinto(array.reshape(-1).view(np.uint8).data)
        return (
            array if self._sharding is None else jax.device_put(array, self._sharding)
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def of_batch(value: Any, index: int) -> Any:
    """A value for a batch; one that does not depend on the images is one for all."""
    return value[index] if isinstance(value, Batches) else value


def by_batch(function: Callable[[int], Sequence[Any]], count: int) -> list[Batches]:
    """What a function of a batch's number returns, of all batches."""
    found: list[Batches] = []
    for i in range(count):
        for place, array in enumerate(function(i)):
            if not i:
                found.append(Batches(count))
            found[place].append(array)
    return found


class Stepwise:
    """Values of a network on some batches; each is worked out when it is asked for.

    A value goes when all that read it have done so, which keeps feature maps of many
    images no longer than they are needed.

    Args:
      graph: the network, for the batches' shape.
      arrays: its parameters, by path.
      batches: its inputs: an array or a tree for each batch.
      layers: those that `layer` decides the output of, by the value that they return.
      layer: function from such a layer's input to its output, both of all batches.
      also: values that are asked for as often beside the program itself.
    """

    def __init__(
        self,
        graph: Graph,
        arrays: Mapping[str, Any],
        batches: Sequence[Any],
        layers: Mapping[int, Layer],
        layer: Callable[[Layer, Batches], Batches],
        also: Counter[int],
    ):
        self.program = program = graph.program
        self.layers, self.layer = layers, layer
        self.fixed: dict[int, Any] = dict(program.constants)
        self.fixed |= {program.leaves[path]: a for path, a in arrays.items()}
        self.count = len(batches)
        leaves = [jax.tree.leaves(batch) for batch in batches]
        columns = by_batch(lambda i: leaves[i], self.count)
        self.values = dict(zip(program.batch, columns, strict=True))
        self.left = Counter(program.results) + also
        inside = {v for layer in layers.values() for v in (*layer.inner, layer.output)}
        for eqn in program.equations:
            if not inside.intersection(eqn.outputs):
                self.left.update(eqn.inputs)
        self.left.update(layer.input for layer in layers.values())
        self.done: set[int] = set()

    def read(self, value: int) -> Batches:
        """A value that depends on the images, and all that it needs first."""
        if value in self.values:
            return self.values[value]
        assert value not in self.done, "asked for more often than was said"
        if value in self.layers:
            layer = self.layers[value]
            found = [self.layer(layer, self.read(layer.input))]
            return self._keep([value], [value], found, Counter([layer.input]))[value]
        while missing := self._missing(value):
            self.read(missing)
        live = self.program.live
        equations = self.program.needed([value], self.values)
        uses = Counter(v for eqn in equations for v in eqn.inputs if v in live)
        made = [v for eqn in equations for v in eqn.outputs if v in live]
        want = [v for v in made if v == value or self.left[v] > uses[v]]
        known = {v: self.values[v] for v in sorted({*uses} - {*made})}
        part = self.part(want, known)
        found = by_batch(
            lambda i: part({v: array[i] for v, array in known.items()}), self.count
        )
        return self._keep(made, want, found, uses)[value]

    def _missing(self, value: int) -> int | None:
        """What a layer returns that a value needs, if it is not known yet."""
        known = {*self.values, *self.layers}
        for eqn in self.program.needed([value], known):
            for given in eqn.inputs:
                if given in self.layers and given not in self.values:
                    return given
        return None

    def part(
        self,
        want: Sequence[int],
        known: Collection[int],
        then: Callable[[list[Any]], Any] = lambda found: found,
        name: Any = "",
    ) -> Callable[[Mapping[int, Any]], Any]:
        """A compiled function to some values of a batch from others.

        Args:
          want: those asked for.
          known: those given, beside what does not depend on the images.
          then: what becomes of the values inside the function.
          name: tells one `then` from others.
        """
        program = self.program
        key = name, tuple(want), tuple(sorted(known))
        if key not in program.compiled:

            def function(fixed: Mapping[int, Any], given: Mapping[int, Any]) -> Any:
                given = {**fixed, **given}
                return then(run(program, {}, None, given=given, want=want, fast=True))

            program.compiled[key] = jax.jit(function)
        equations = program.needed(want, {*known, *self.fixed})
        read = {*want, *(v for eqn in equations for v in eqn.inputs)}
        fixed = {v: self.fixed[v] for v in sorted(read & {*self.fixed})}
        return partial(program.compiled[key], fixed)

    def _keep(
        self,
        done: Sequence[int],
        values: Sequence[int],
        found: Sequence[Batches],
        uses: Counter[int],
    ) -> dict[int, Batches]:
        """Keeps what will be read again, and lets go what has been read for it."""
        self.done.update(done)
        for value, array in zip(values, found, strict=True):
            if self.left[value] > 0:
                self.values[value] = array
        for value, count in uses.items():
            self.release(value, count)
        return dict(zip(values, found, strict=True))

    def release(self, value: int, times: int = 1) -> None:
        """Those who read it have done so, so many times."""
        self.left[value] -= times
        if self.left[value] <= 0:
            self.values.pop(value, None)
