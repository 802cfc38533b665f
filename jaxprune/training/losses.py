"""Losses of training: cross-entropy, and the divergence from a teacher.

Axes: N images, C classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxprune._base.errors import InputError


def check_distillation(temperature: float, weight: float) -> None:
    """Raises InputError if the numbers are not those of a distillation."""
    if not 0 < temperature < np.inf:
        raise InputError(f"a temperature is positive and finite, got {temperature}")
    if not 0 <= weight <= 1:
        raise InputError(f"the weight of the teacher lies in 0 .. 1, got {weight}")


def distillation(
    logits: Float[Array, "N C"], teacher: Float[Array, "N C"], temperature: float
) -> Float[Array, " N"]:
    """How far the student's logits are from the teacher's, in nats x T^2.

    T^2 KL(softmax(teacher / T) || softmax(logits / T)): with T^2, its gradient has the
    size of cross-entropy's at every T. Hinton, Vinyals and Dean 2015.
    """
    student, target = (
        jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
        for x in (logits, teacher)
    )
    divergence = optax.losses.kl_divergence_with_log_targets(student, target)
    return temperature**2 * divergence


def cross_entropy(
    logits: Float[Array, "N C"], labels: Int[Array, " N"]
) -> Float[Array, ""]:
    """Mean over a batch, in nats."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return entropy.mean()


def accuracy(logits: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, ""]:
    """Share of a batch that is predicted right."""
    return (jnp.argmax(logits, axis=-1) == labels).mean(dtype=jnp.float32)


def mean_loss(
    logits: Float[Array, "N C"],
    labels: Int[Array, " N"],
    target: Float[Array, "N C"] | None,
    temperature: float,
    weight: float,
) -> Float[Array, ""]:
    """Of a batch, by teacher and labels.

    Args:
      logits: the student's.
      labels: class index of each image; of no use where the teacher has all the
        weight.
      target: the teacher's logits; None where labels have all the weight.
      temperature: that both sides' logits are divided by.
      weight: of the teacher.
    """
    if target is None:
        return cross_entropy(logits, labels)
    loss = weight * distillation(logits, target, temperature).mean()
    if weight < 1:
        loss += (1 - weight) * cross_entropy(logits, labels)
    return loss
