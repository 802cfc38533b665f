"""Tasks whose outputs are logits of classes: of an image, or of each of its pixels.

Axes: N images, H x W pixels (or any axes), C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.tasks.task import LOSS, Score, Task

# What a classification keeps of each image.
CLASS, IN_TOP = "class", "in_top"
# The true class is looked for among so many, where there are more than twice as many.
TOP = 5


def cross_entropy(
    logits: Float[Array, "*N C"], labels: Int[Array, "*N"]
) -> Float[Array, "*N"]:
    """Of each row, in nats; in float32 at least."""
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(wide), labels)


@dataclass(frozen=True)
class Classification(Task):
    """Logits [N, C], and the index of a class for each image."""

    def judge(self, outputs: Any, targets: Any) -> dict[str, Array]:
        """The loss of each image, its predicted class, and whether its own is near."""
        classes = outputs.shape[-1]
        smallest = jnp.uint8 if classes <= 256 else jnp.uint16
        found = {
            LOSS: self.loss(outputs, targets),
            CLASS: jnp.argmax(outputs, axis=-1).astype(smallest),
        }
        if classes > 2 * TOP:
            found[IN_TOP] = in_top(outputs, targets)
        return found

    def kept(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All but losses, of which sums are enough."""
        return {name: array for name, array in values.items() if name != LOSS}


def in_top(logits: Float[Array, "N C"], labels: Int[Array, " N"]) -> Array:
    """Whether fewer than TOP logits are larger than the true class's."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return (logits > own).sum(-1) < TOP


def classification(*, output: Any = None) -> Task:
    """One class for each image.

    The loss is the cross-entropy, in nats. A sweep counts accuracy, balanced accuracy,
    top-5 accuracy where there are more than ten classes, and confusion.

    Args:
      output: part of the network's output that holds the logits [N, C]: a key, a
        position, or a function of the output.
    """

    def right(logits: Array, labels: Array) -> Array:
        return jnp.argmax(logits, axis=-1) == labels

    return Classification(
        "classification", cross_entropy, {"accuracy": Score(right)}, output,
        predict=lambda logits: jnp.argmax(logits, axis=-1), logits=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Segmentation(Task):
    """Logits of a class for each pixel.

    Attributes:
      ignore: target of pixels that do not count.
    """

    ignore: int | None = None

    def for_targets(self, outputs: Any, targets: Iterable[Any]) -> Task:
        """Itself.

        Raises:
          InputError: a target that is the index of no class, and is not `ignore`.
        """
        classes = outputs.shape[-1]
        for batch in targets:
            others = np.unique(batch)
            others = others[(others < 0) | (others >= classes)]
            if self.ignore is not None:
                others = others[others != self.ignore]
            if others.size:
                raise InputError(
                    f"targets must lie in 0 .. {classes - 1}, as there are {classes} "
                    f"classes, got {others[0]}; ignore={others[0]} leaves such pixels "
                    "out"
                )
        return self


def segmentation(*, ignore: int | None = None, output: Any = None) -> Task:
    """A class for each pixel: targets [N, H, W], logits [N, H, W, C].

    The loss is the mean cross-entropy of an image's pixels, in nats. Scores are the
    mean over classes of intersection over union, and the share of pixels that are
    right. Both are counted over all images before they are divided (Everingham et al.
    2010); classes that are neither true nor predicted anywhere do not count.

    Args:
      ignore: target of pixels that do not count, such as 255.
      output: part of the network's output that holds the logits, see `Task`.
    """
    if ignore is not None:
        arguments.check_number("ignore", ignore, -(2.0**31), 2.0**31 - 1)

    def counted(targets: Array) -> Array:
        return targets != ignore if ignore is not None else jnp.ones_like(targets, bool)

    def known(targets: Array) -> Array:
        return jnp.where(counted(targets), targets, 0).astype(jnp.int32)

    def of_image(values: Array) -> Array:
        return values.reshape(len(values), -1).sum(-1)

    def loss(logits: Array, targets: Array) -> Array:
        _check_pixels(logits, targets)
        here = counted(targets)
        losses = jnp.where(here, cross_entropy(logits, known(targets)), 0.0)
        count = jnp.maximum(of_image(here), 1).astype(losses.dtype)
        return of_image(losses) / count

    def overlaps(logits: Array, targets: Array) -> Array:
        classes = jnp.arange(logits.shape[-1])
        here = counted(targets)[..., None]
        true = (known(targets)[..., None] == classes) & here
        found = (jnp.argmax(logits, axis=-1)[..., None] == classes) & here

        def area(which: Array) -> Array:
            return which.reshape(len(which), -1, len(classes)).sum(1)

        counts = jnp.concatenate([area(true & found), area(true | found)], axis=-1)
        return counts.astype(jnp.float32)

    def pixels(logits: Array, targets: Array) -> Array:
        right = (jnp.argmax(logits, axis=-1) == targets) & counted(targets)
        counts = jnp.stack([of_image(right), of_image(counted(targets))], axis=-1)
        return counts.astype(jnp.float32)

    scores = {
        "mean_IoU": Score(overlaps, _mean_iou),
        "pixel_accuracy": Score(pixels, _share),
    }
    return Segmentation(
        "segmentation", loss, scores, output,
        predict=lambda logits: jnp.argmax(logits, axis=-1), logits=True, ignore=ignore,
    )  # fmt: skip


def _check_pixels(logits: Any, targets: Any) -> None:
    whole = jnp.issubdtype(targets.dtype, jnp.integer)
    if not whole or logits.shape[:-1] != targets.shape:
        raise InputError(
            f"task 'segmentation' takes logits [N, H, W, C] and integer targets [N, H, "
            f"W], got {list(logits.shape)} and {targets.dtype} {list(targets.shape)}"
        )


def _mean_iou(sums: Float[np.ndarray, "*K S"]) -> Float[np.ndarray, "*K"]:
    """Of intersections, then unions, of each class."""
    intersection, union = np.split(sums, 2, axis=-1)
    there = union > 0
    shares = np.where(there, intersection / np.maximum(union, 1), 0)
    return shares.sum(-1) / np.maximum(there.sum(-1), 1)


def _share(sums: Float[np.ndarray, "*K S"]) -> Float[np.ndarray, "*K"]:
    """Of a count, then the number that it is out of."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)
