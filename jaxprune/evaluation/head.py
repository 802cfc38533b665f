"""The end of a network from a layer on, without what goes around the layer.

A residual sum or a concatenation lets an image reach the network's end other than
through the layer. What it brings there is the same under every mask, so it is worked
out once for a batch of images, and only the rest for every mask: the network's
equations are divided into those that depend on a value, such as the layer's feature
map, and those that depend on the images alone.

Axes: B images, M pairs of an image and a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxprune._base.arguments import is_close
from jaxprune._base.batch import size_of, take
from jaxprune.graph.evaluate import Change, run
from jaxprune.graph.network import Graph, Network
from jaxprune.graph.trace import Program

# Where the end begins: the network for a batch -> the number of a value.
Start = Callable[[Graph], int]


@dataclass(frozen=True)
class Head:
    """A network's results from one of its values, and from what goes around that.

    Attributes:
      network: the network.
      image: shape and type of one image, or of several inputs.
      start: the value.
      apart: whether what goes around is worked out apart; otherwise it is the images.
    """

    network: Network
    image: Any
    start: Start
    apart: bool = True

    def around(self, arrays: Mapping[str, Any], images: Any) -> tuple[Array, ...]:
        """Other values that the network's end reads: arrays [B, ...]."""
        if not self.apart:
            return tuple(jax.tree.leaves(images))
        graph = self.network.graph(images)
        values = crossing(graph.program, self.start(graph))
        return tuple(run(graph.program, arrays, images, want=values))

    def results(
        self,
        arrays: Mapping[str, Any],
        around: Sequence[Array],
        given: Any,
        before: Callable[[Graph], Mapping[int, Change]] = lambda graph: {},
    ) -> Any:
        """The network's output.

        Args:
          arrays: the network's, by path.
          around: of the same images.
          given: the value, in the network's own layout of axes.
          before: changes of equations' operands behind it.
        """
        graph = self.network.graph(self._images(given))
        start = self.start(graph)
        known = {start: given}
        images = None
        if self.apart:
            known |= zip(crossing(graph.program, start), around, strict=True)
        else:
            images = jax.tree.unflatten(jax.tree.structure(self.image), around)
        return run(graph.program, arrays, images, given=known, before=before(graph))

    def shapes_around(self, batch: int) -> list[tuple[int, ...]]:
        """Shapes of the arrays that go around the value for `batch` images."""
        if not self.apart:
            return [(batch, *one.shape) for one in jax.tree.leaves(self.image)]
        graph = self.network.graph(_batch_of(self.image, batch))
        values = crossing(graph.program, self.start(graph))
        return [graph.program.shape(value) for value in values]

    def _images(self, given: Any) -> Any:
        return _batch_of(self.image, given.shape[0])


def crossing(program: Program, start: int) -> list[int]:
    """The values that depend on the batch and are read behind one that they avoid."""
    behind = program.behind([start])
    after = behind - {start}
    read = {v for e in program.equations for v in e.inputs if after & {*e.outputs}}
    ends = (read | {*program.results}) - behind
    return sorted(ends & program.live)


def make_head(network: Network, images: Any, start: Start) -> Head:
    """The head of a network; see `Head`.

    Args:
      network: the network.
      images: some, [N, ...], to try whether what goes around can be taken apart.
      start: value that the end begins with.
    """
    image = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), images)
    head = Head(network, image, start)
    return head if _is_by_image(head, images) else replace(head, apart=False)


def _batch_of(one: Any, size: int) -> Any:
    """`size` of them, on a first axis."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype), one
    )


def _is_by_image(head: Head, images: Any) -> bool:
    """Whether an image's part of every array that goes around is the image's alone.

    It is not where an array has its images on another axis, or where it holds an
    image's place in its batch.
    """
    two, three = (head.shapes_around(n) for n in (2, 3))
    if not two:
        return True
    first = all(shape[:1] == (2,) for shape in two)
    if not first or three != [(3, *shape[1:]) for shape in two]:
        return False
    count = max(4, size_of(images))
    images = take(images, np.arange(count) % size_of(images))
    index = shuffled_with_repeats(count)
    around = jax.jit(head.around)
    before, after = (
        around(head.network.arrays, x) for x in (images, take(images, index))
    )
    return all(is_close(a[index], b) for a, b in zip(before, after, strict=True))


def shuffled_with_repeats(size: int) -> Int[np.ndarray, " B"]:
    """Indices of a batch in another order, most of them twice."""
    return np.arange(size)[::-1] // 2
