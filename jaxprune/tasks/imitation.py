"""The task without targets: to return what the whole network returns.

Both of its losses have a probe: a few numbers of the outputs whose changes tell the
loss. Their gradients tell what a small change anywhere in the network costs.

Axes: N images, C classes, D numbers of a probe, W ways in which a network is changed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._base.errors import InputError
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.tasks.task import Score, Task

# Classes of an image whose logits are told apart in a probe.
_CLASSES = 8


class Probe(NamedTuple):
    """What a loss of changed outputs is estimated from.

    Attributes:
      values: (outputs, keys of D draws) -> [N, D], to be differentiated.
      loss: (outputs before they change, changes of the values [..., N, D]) -> [..., N].
    """

    values: Callable[[Any, Array], Array]
    loss: Callable[[Any, Array], Array]


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


def divergence_probe() -> Probe:
    """The probe of `divergence`.

    Of outputs [N, C] it holds the logits themselves: how they change tells the
    divergence to all orders. Beyond _CLASSES these are an image's likeliest classes,
    and the mean of the others, which are taken to change alike. Of outputs
    [N, ..., C] it is the log-probability of labels that are drawn from them, one for
    each position: the Fisher information of the predictions is the divergence's second
    derivative.
    """

    def values(outputs: Array, keys: Array) -> Float[Array, "N D"]:
        logits = _logits(outputs)
        if logits.ndim == 2:
            top, rest = _likeliest(logits)
            return jnp.concatenate([top.logits, rest.logits], 1)

        def drawn(key: Array) -> Float[Array, " N"]:
            labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            each = jnp.take_along_axis(
                jax.nn.log_softmax(logits), labels[..., None], -1
            )
            each = each.reshape(len(each), -1)
            return each.sum(-1) / np.sqrt(each.shape[-1])

        return jax.vmap(drawn, out_axes=1)(keys)

    def loss(outputs: Array, changes: Float[Array, "*W N D"]) -> Float[Array, "*W N"]:
        logits = _logits(outputs)
        if logits.ndim != 2:
            return _half_square(changes)
        shares = jnp.concatenate([part.shares for part in _likeliest(logits)], 1)
        # The logarithm of the mean of exp(x), where the mean of x is 0.
        x = changes - (shares * changes).sum(-1, keepdims=True)
        small = jnp.log1p((shares * jnp.expm1(jnp.minimum(x, 1))).sum(-1))
        large = jax.nn.logsumexp(x, -1, b=shares)
        return jnp.maximum(jnp.where(x.max(-1) < 1, small, large), 0)

    return Probe(values, loss)


class _Classes(NamedTuple):
    """Some of an image's classes.

    Attributes:
      logits: of each.
      shares: their probabilities, whatever the logits may become.
    """

    logits: Float[Array, "N _"]
    shares: Float[Array, "N _"]


def _likeliest(logits: Float[Array, "N C"]) -> tuple[_Classes, _Classes]:
    """The likeliest classes, at most _CLASSES, and all others as one, if there are."""
    shares = jax.nn.softmax(jax.lax.stop_gradient(logits))
    count = min(_CLASSES, logits.shape[1])
    _, index = jax.lax.top_k(shares, count)
    top = _Classes(
        jnp.take_along_axis(logits, index, 1), jnp.take_along_axis(shares, index, 1)
    )
    if count == logits.shape[1]:
        return top, _Classes(logits[:, :0], shares[:, :0])
    others = jnp.put_along_axis(shares, index, 0, 1, inplace=False)
    share = others.sum(1, keepdims=True)
    weights = others / jnp.maximum(share, jnp.finfo(jnp.float32).tiny)
    return top, _Classes((weights * logits).sum(1, keepdims=True), share)


def _logits(outputs: Float[Array, "N *axes C"]) -> Float[Array, "N *axes C"]:
    """Logits, or the logarithms of probabilities, in float32."""
    wide = outputs.astype(jnp.float32)
    return jnp.where(are_probabilities(outputs), log_probabilities(wide), wide)


def _half_square(changes: Float[Array, "*W N D"]) -> Float[Array, "*W N"]:
    return jnp.square(changes).mean(-1) / 2


def relative_error(outputs: Any, whole: Any) -> Float[Array, " N"]:
    """|outputs - whole|^2 / |whole|^2 of each image, the mean over arrays.

    Raises:
      InputError: there are no floating-point numbers.
    """
    errors = [
        jnp.square(left - right).sum(-1) / _size(right)
        for left, right in zip(_rows(outputs), _rows(whole), strict=True)
    ]
    return sum(errors[1:], errors[0]) / len(errors)


def relative_error_probe() -> Probe:
    """The probe of `relative_error`: sums of the outputs with random signs."""

    def values(outputs: Any, keys: Array) -> Float[Array, "N D"]:
        rows = _rows(outputs)

        def drawn(key: Array) -> Float[Array, " N"]:
            total = jnp.zeros(len(rows[0]))
            for i, row in enumerate(rows):
                own = jax.random.fold_in(key, i)
                signs = jax.random.rademacher(own, row.shape, row.dtype)
                size = jax.lax.stop_gradient(_size(row))
                total += (signs * row).sum(-1) * jnp.sqrt(2 / (size * len(rows)))
            return total

        return jax.vmap(drawn, out_axes=1)(keys)

    return Probe(values, lambda outputs, changes: _half_square(changes))


def _rows(outputs: Any) -> list[Float[Array, "N _"]]:
    """The floating-point arrays of outputs, a row for each image.

    Raises:
      InputError: there are none.
    """
    rows = [
        jnp.asarray(leaf, jnp.float32).reshape(len(leaf), -1)
        for leaf in jax.tree.leaves(outputs)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not rows:
        raise InputError("the network's output has no floating-point array")
    return rows


def _size(rows: Float[Array, "N _"]) -> Float[Array, " N"]:
    """|row|^2, and a little more than 0."""
    return jnp.maximum(jnp.square(rows).sum(-1), jnp.finfo(jnp.float32).tiny)


def _agreement(outputs: Array, whole: Array) -> Array:
    """Share of an image's predictions that are the whole network's."""
    same = outputs.argmax(-1) == whole.argmax(-1)
    return same.reshape(len(same), -1).mean(-1)


def _distance(outputs: Any, whole: Any) -> Array:
    return jnp.sqrt(relative_error(outputs, whole))
