"""The end of a network from a layer on, without what goes around the layer.

A residual sum or a concatenation lets an image reach the network's end other than
through the layer. What it brings there is the same under every mask, so it is worked
out once for a batch of images, and only the rest for every mask: the network's traced
operations are divided into those that depend on what is given for the layer (its
feature map and a mask, say), and those that depend on the images alone.

Axes: B images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, Int

# (weights, images, *given) -> logits [B, classes].
Logits = Callable[..., Array]


@dataclass(frozen=True)
class Head:
    """Logits from what is given for a layer, and from what goes around the layer.

    Attributes:
      whole: the network: (weights, images, *given) -> logits. Weights are any tree of
        arrays.
      image: shape and type of one image.
      given: number of images -> shapes and types of what is given for the layer; the
        first of them has the images on its first axis.
      apart: whether what goes around is worked out apart; otherwise it is the images.
    """

    whole: Logits
    image: ShapeDtypeStruct
    given: Callable[[int], tuple[ShapeDtypeStruct, ...]]
    apart: bool = True

    def around(self, weights: Any, images: Array) -> tuple[Array, ...]:
        """What the network's end reads besides what is given: arrays [B, ...]."""
        parts = self._divide(weights, images, self.given(len(images)))
        return tuple(jaxpr_as_fun(parts.before)(*jax.tree.leaves(weights), images))

    def logits(self, weights: Any, around: Sequence[Array], *given: Array) -> Array:
        """Logits [B, classes]."""
        images = batch_of(self.image, len(given[0]))
        parts = self._divide(weights, images, given)
        arguments = (*jax.tree.leaves(weights), *around, *given)
        (logits,) = jaxpr_as_fun(parts.after)(*arguments)
        return logits

    def shapes_around(self, weights: Any, batch: int) -> list[tuple[int, ...]]:
        """Shapes of the arrays that go around the layer for `batch` images."""
        images = batch_of(self.image, batch)
        parts = self._divide(weights, images, self.given(batch))
        return [var.aval.shape for var in parts.before.jaxpr.outvars]

    def _divide(self, weights: Any, images: Any, given: Sequence[Any]) -> "_Parts":
        closed = jax.make_jaxpr(self.whole)(weights, images, *given)
        return _divide(closed, len(given), self.apart)


def make_head(
    whole: Logits,
    weights: Any,
    images: Array,
    given: Callable[[int], tuple[ShapeDtypeStruct, ...]],
) -> Head:
    """The head of a network; see `Head`.

    Args:
      whole: (weights, images, *given) -> logits.
      weights: a tree of arrays.
      images: some, [N, ...], to try whether what goes around can be taken apart.
      given: number of images -> shapes and types of what is given for the layer.
    """
    image = ShapeDtypeStruct(images.shape[1:], images.dtype)
    head = Head(whole, image, given)
    if _is_by_image(head, weights, images):
        return head
    return replace(head, apart=False)


def batch_of(one: ShapeDtypeStruct, size: int) -> ShapeDtypeStruct:
    """`size` of them, on a first axis."""
    return ShapeDtypeStruct((size, *one.shape), one.dtype)


def _is_by_image(head: Head, weights: Any, images: Array) -> bool:
    """Whether an image's part of every array that goes around is the image's alone.

    It is not where an array has its images on another axis, or where it holds an
    image's place in its batch.
    """
    two, three = (head.shapes_around(weights, n) for n in (2, 3))
    if not two:
        return True
    first = all(shape[:1] == (2,) for shape in two)
    if not first or three != [(3, *shape[1:]) for shape in two]:
        return False
    images = images[np.arange(max(4, len(images))) % len(images)]
    index = shuffled_with_repeats(len(images))
    run = jax.jit(head.around)
    before, after = run(weights, images), run(weights, images[index])
    return all(is_close(a[index], b) for a, b in zip(before, after, strict=True))


def shuffled_with_repeats(size: int) -> Int[np.ndarray, " B"]:
    """Indices of a batch in another order, most of them twice."""
    return np.arange(size)[::-1] // 2


def is_close(a: Array, b: Array) -> bool:
    """Whether arrays are equal but for rounding, half of their type's digits."""
    inexact = jnp.issubdtype(a.dtype, jnp.inexact)
    tolerance = float(jnp.finfo(a.dtype).eps) ** 0.5 if inexact else 0.0
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = np.abs(one).max(initial=0)
    return bool(np.abs(one - other).max(initial=0) <= tolerance * scale)


class _Parts(NamedTuple):
    """Weights, images -> what goes around; weights, that, what is given -> logits."""

    before: ClosedJaxpr
    after: ClosedJaxpr


def _divide(closed: ClosedJaxpr, given: int, apart: bool) -> _Parts:
    """Divides (weights, images, what is given) -> logits."""
    jaxpr = closed.jaxpr
    *weights, image = jaxpr.invars[:-given]
    layer = jaxpr.invars[-given:]
    eqns = _needed(jaxpr)
    of_layer, of_image = set(layer), {image}
    for eqn in eqns:
        read = set(_variables(eqn.invars))
        if read & of_layer or not apart:
            of_layer.update(eqn.outvars)
        elif read & of_image:
            of_image.update(eqn.outvars)
    before = [eqn for eqn in eqns if not of_layer.intersection(eqn.outvars)]
    after = [eqn for eqn in eqns if not of_image.intersection(eqn.outvars)]
    read = set(_variables(v for eqn in after for v in eqn.invars))
    read.update(_variables(jaxpr.outvars))
    made = (image, *(var for eqn in before for var in eqn.outvars))
    crossing = [var for var in made if var in of_image and var in read]

    def part(invars: list, outvars: list, eqns: list) -> ClosedJaxpr:
        cut = jaxpr.replace(invars=invars, outvars=outvars, eqns=eqns)
        return ClosedJaxpr(cut, closed.consts)

    return _Parts(
        part([*weights, image], crossing, before),
        part([*weights, *crossing, *layer], jaxpr.outvars, after),
    )


def _needed(jaxpr: Jaxpr) -> list:
    """The operations that the outputs depend on."""
    needed = set(_variables(jaxpr.outvars))
    eqns = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(_variables(eqn.invars))
            eqns.append(eqn)
    return eqns[::-1]


def _variables(atoms: Any) -> list:
    return [atom for atom in atoms if not isinstance(atom, Literal)]
