"""Tasks whose outputs are numbers: regression, and images that are made anew.

Axes: N images, D numbers of one image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.tasks.task import Score, Task


@dataclass(frozen=True)
class Regression(Task):
    """Numbers for each image."""

    def for_targets(self, outputs: Any, targets: Iterable[Any]) -> Task:
        """With R^2 told of targets less their mean.

        Far from 0 the sums of their squares would hold nothing of their variance.
        """
        sums = [(np.sum(batch, 0, np.float64), len(batch)) for batch in targets]
        total, images = (sum(column) for column in zip(*sums, strict=True))
        return _regression(self.output, np.asarray(total / images))


def regression(*, output: Any = None) -> Task:
    """Numbers for each image: outputs and targets [N], or of one shape [N, ...].

    The loss is the mean squared error over an image's numbers. Scores are R^2, of all
    numbers together (the variance left over the variance that there is), the squared
    and the absolute error.

    Args:
      output: part of the network's output, see `Task`.
    """
    return _regression(output, np.zeros(()))


def _regression(output: Any, level: np.ndarray) -> Task:
    """The task, with targets near this level."""

    def explained(outputs: Any, targets: Any) -> Float[Array, "N S"]:
        """Squared error, 1, squares of targets, targets."""
        left = jnp.square(_difference(outputs, targets)).sum(-1, keepdims=True)
        y = targets.astype(left.dtype) - jnp.asarray(level, left.dtype)
        y = y.reshape(len(y), -1)
        squares = jnp.square(y).sum(-1, keepdims=True)
        return jnp.concatenate([left, jnp.ones_like(left), squares, y], axis=-1)

    return Regression(
        "regression", squared_error,
        {
            "R2": Score(explained, _r_squared),
            "squared_error": Score(squared_error, higher_is_better=False),
            "absolute_error": Score(_absolute_error, higher_is_better=False),
        },
        output,
    )  # fmt: skip


def reconstruction(*, peak: float = 1.0, output: Any = None) -> Task:
    """Images made anew: outputs and targets of one shape [N, ...].

    The loss is the mean squared error of an image. Scores are the peak signal-to-noise
    ratio in dB, 10 log10(peak^2 / loss), its mean over images, and the squared error.

    Args:
      peak: the largest value that a pixel can have.
      output: part of the network's output, see `Task`.
    """
    arguments.check_number("peak", peak, float(np.finfo(np.float32).tiny), np.inf)

    def psnr(outputs: Array, targets: Array) -> Array:
        error = squared_error(outputs, targets)
        # That of float32's own rounding, where there is no error at all.
        least = (peak * float(jnp.finfo(jnp.float32).eps)) ** 2
        return 10 * jnp.log10(peak**2 / jnp.maximum(error, least))

    return Task(
        "reconstruction", squared_error,
        {
            "PSNR": Score(psnr),
            "squared_error": Score(squared_error, higher_is_better=False),
        },
        output, predict=lambda outputs: outputs, max_drop=0.1,
    )  # fmt: skip


def squared_error(outputs: Any, targets: Any) -> Array:
    """The mean over each image's numbers, [N]."""
    return jnp.square(_difference(outputs, targets)).mean(-1)


def _absolute_error(outputs: Any, targets: Any) -> Array:
    return jnp.abs(_difference(outputs, targets)).mean(-1)


def _difference(outputs: Any, targets: Any) -> Float[Array, "N D"]:
    """Of outputs and targets; one number for each image may be [N] or [N, 1]."""
    one, other = (a.reshape(len(a), -1) for a in (outputs, targets))
    flat = outputs.ndim <= 2 and targets.ndim <= 2 and one.shape == other.shape
    if not flat and outputs.shape != targets.shape:
        raise InputError(
            f"outputs and targets must be of one shape, got {list(outputs.shape)} and "
            f"{list(targets.shape)}"
        )
    wide = jnp.promote_types(outputs.dtype, jnp.float32)
    return one.astype(wide) - other.astype(wide)


def _r_squared(sums: Float[np.ndarray, "*K S"]) -> Float[np.ndarray, "*K"]:
    left, images, squares = sums[..., 0], sums[..., 1], sums[..., 2]
    total = squares - np.square(sums[..., 3:]).sum(-1) / np.maximum(images, 1)
    return 1 - left / np.maximum(total, np.finfo(np.float32).tiny)
