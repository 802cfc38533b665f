"""The part of a network behind a layer, without what goes around the layer.

A residual sum or a concatenation lets an image reach the network's end other than
through the layer. What it brings there is the same under every mask, so it is worked
out once for a batch of images, and only the rest for every mask: the network's traced
operations are divided into those that depend on the feature map or the mask, and those
that depend on the images alone.

Axes: B images, P channels.
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

# (variables, images, feature map, kept) -> logits [B, classes]. `kept` is True where a
# channel is kept: [P] for a whole batch, or [B, P] with a row for each image.
Logits = Callable[[Any, Any, Any, Any], Array]


@dataclass(frozen=True)
class Head:
    """Logits from a layer's feature map and from what goes around the layer.

    Attributes:
      whole: the network, given the feature map too.
      image: shape and type of one image.
      feature_map: shape and type of one image's feature map.
      apart: whether what goes around is worked out apart; otherwise it is the images.
    """

    whole: Logits
    image: ShapeDtypeStruct
    feature_map: ShapeDtypeStruct
    apart: bool = True

    def around(self, variables: Any, images: Array) -> tuple[Array, ...]:
        """What the network's end reads besides the feature map: arrays [B, ...]."""
        parts = self._divide(variables, images, *self._layer(len(images)))
        return tuple(jaxpr_as_fun(parts.before)(*jax.tree.leaves(variables), images))

    def logits(
        self, variables: Any, around: Sequence[Array], feature_map: Array, kept: Array
    ) -> Array:
        """Logits [B, classes]; see `Logits`."""
        images = _batch(self.image, len(feature_map))
        parts = self._divide(variables, images, feature_map, kept)
        arguments = (*jax.tree.leaves(variables), *around, feature_map, kept)
        (logits,) = jaxpr_as_fun(parts.behind)(*arguments)
        return logits

    def shapes_around(self, variables: Any, batch: int) -> list[tuple[int, ...]]:
        """Shapes of the arrays that go around the layer, for so many images."""
        parts = self._divide(variables, _batch(self.image, batch), *self._layer(batch))
        return [var.aval.shape for var in parts.before.jaxpr.outvars]

    def _layer(self, batch: int) -> tuple[ShapeDtypeStruct, ShapeDtypeStruct]:
        kept = ShapeDtypeStruct(self.feature_map.shape[-1:], bool)
        return _batch(self.feature_map, batch), kept

    def _divide(self, variables: Any, images: Any, fm: Any, kept: Any) -> "_Parts":
        closed = jax.make_jaxpr(self.whole)(variables, images, fm, kept)
        return _divide(closed, self.apart)


def make_head(
    whole: Logits, variables: Any, images: Array, feature_map: ShapeDtypeStruct
) -> Head:
    """The head of a network; see `Head`.

    Args:
      whole: the network, given the feature map too.
      variables: its variables.
      images: some, [N, ...], to try whether what goes around can be taken apart.
      feature_map: shape and type of one image's feature map.
    """
    image = ShapeDtypeStruct(images.shape[1:], images.dtype)
    head = Head(whole, image, feature_map)
    if _is_by_image(head, variables, images):
        return head
    return replace(head, apart=False)


def _is_by_image(head: Head, variables: Any, images: Array) -> bool:
    """Whether an image's part of every array that goes around is the image's alone.

    It is not where an array has its images on another axis, or where it holds an
    image's place in its batch.
    """
    two, three = (head.shapes_around(variables, n) for n in (2, 3))
    if not two:
        return True
    first = all(shape[:1] == (2,) for shape in two)
    if not first or three != [(3, *shape[1:]) for shape in two]:
        return False
    images = images[np.arange(max(4, len(images))) % len(images)]
    index = mixed(len(images))
    run = jax.jit(head.around)
    before, after = run(variables, images), run(variables, images[index])
    return all(is_close(a[index], b) for a, b in zip(before, after, strict=True))


def mixed(size: int) -> Int[np.ndarray, " B"]:
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
    """Variables, images -> what goes around; variables, that, layer, mask -> logits."""

    before: ClosedJaxpr
    behind: ClosedJaxpr


def _divide(closed: ClosedJaxpr, apart: bool) -> _Parts:
    """Divides (variables, images, feature map, mask) -> logits."""
    jaxpr = closed.jaxpr
    *weights, image, layer, mask = jaxpr.invars
    eqns = _needed(jaxpr)
    of_layer, of_image = {layer, mask}, {image}
    for eqn in eqns:
        read = set(_variables(eqn.invars))
        if read & of_layer or not apart:
            of_layer.update(eqn.outvars)
        elif read & of_image:
            of_image.update(eqn.outvars)
    before = [eqn for eqn in eqns if not of_layer.intersection(eqn.outvars)]
    behind = [eqn for eqn in eqns if not of_image.intersection(eqn.outvars)]
    read = set(_variables(v for eqn in behind for v in eqn.invars))
    read.update(_variables(jaxpr.outvars))
    made = (image, *(var for eqn in before for var in eqn.outvars))
    crossing = [var for var in made if var in of_image and var in read]

    def part(invars: list, outvars: list, eqns: list) -> ClosedJaxpr:
        cut = jaxpr.replace(invars=invars, outvars=outvars, eqns=eqns)
        return ClosedJaxpr(cut, closed.consts)

    return _Parts(
        part([*weights, image], crossing, before),
        part([*weights, *crossing, layer, mask], jaxpr.outvars, behind),
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


def _batch(one: ShapeDtypeStruct, size: int) -> ShapeDtypeStruct:
    return ShapeDtypeStruct((size, *one.shape), one.dtype)
