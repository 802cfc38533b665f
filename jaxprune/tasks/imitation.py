"""The task without targets: to return what the whole network returns.

Axes: N images, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune._base.errors import InputError
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.tasks.task import Score, Task


def imitation(*, logits: bool = False, output: Any = None) -> Task:
    """The whole network's own outputs are the targets; no label is used.

    The loss is, of logits, the Kullback-Leibler divergence from the whole network's
    predictions, in nats, and the score the share of predictions that agree. Of other
    outputs it is the relative squared error, |f - whole|^2 / |whole|^2, and the score
    its square root.

    Args:
      logits: whether outputs are logits [N, ..., C], or probabilities.
      output: part of the network's output, see `Task`.
    """
    if logits:
        scores = {"agreement": Score(_agreement)}
        return Task("imitation", divergence, scores, output, imitates=True)
    scores = {"relative_error": Score(_distance, higher_is_better=False)}
    return Task("imitation", relative_error, scores, output, imitates=True)


def like_whole(outputs: Any) -> Task:
    """The imitation that suits outputs of these shapes: [N, C] is taken for logits."""
    single = not isinstance(outputs, (dict, list, tuple)) and hasattr(outputs, "ndim")
    return imitation(logits=single and outputs.ndim == 2 and outputs.shape[1] > 1)


def divergence(
    outputs: Float[Array, "N *axes C"], whole: Float[Array, "N *axes C"]
) -> Float[Array, " N"]:
    """Kullback-Leibler divergence from the whole network's predictions, in nats.

    Both networks return logits or, where the whole one's outputs say so, probabilities.
    Over the positions of an image it is the mean.
    """
    probabilities = are_probabilities(whole)

    def log_softmax(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return jax.nn.log_softmax(jnp.where(probabilities, log_probabilities(x), x))

    target, found = log_softmax(whole), log_softmax(outputs)
    each = (jnp.exp(target) * (target - found)).sum(-1)
    return each.reshape(len(each), -1).mean(-1)


def relative_error(outputs: Any, whole: Any) -> Float[Array, " N"]:
    """|outputs - whole|^2 / |whole|^2 of each image, the mean over arrays.

    Raises:
      InputError: there are no floating-point numbers.
    """
    pairs = [
        (a.reshape(len(a), -1), b.reshape(len(b), -1))
        for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(whole), strict=True)
        if jnp.issubdtype(b.dtype, jnp.floating)
    ]
    if not pairs:
        raise InputError("the network's output has no floating-point array")
    tiny = jnp.finfo(jnp.float32).tiny
    errors = []
    for a, b in pairs:
        left, right = a.astype(jnp.float32), b.astype(jnp.float32)
        size = jnp.maximum(jnp.square(right).sum(-1), tiny)
        errors.append(jnp.square(left - right).sum(-1) / size)
    return sum(errors[1:], errors[0]) / len(errors)


def _agreement(outputs: Array, whole: Array) -> Array:
    """Share of an image's predictions that are the whole network's."""
    same = outputs.argmax(-1) == whole.argmax(-1)
    return same.reshape(len(same), -1).mean(-1)


def _distance(outputs: Any, whole: Any) -> Array:
    return jnp.sqrt(relative_error(outputs, whole))
