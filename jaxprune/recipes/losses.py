"""Losses of training: cross-entropy, and the divergence from a teacher.

Axes: N images, C classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

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


def mean_loss(
    logits: Array,
    labels: Array,
    target: Array | None,
    temperature: float,
    weight: float,
) -> Array:
    """Of a batch, without penalties; no labels where the teacher has all the weight."""
    share = 0.0 if target is None else weight
    loss = jnp.zeros(())
    if target is not None:
        loss += share * distillation(logits, target, temperature).mean()
    if share < 1:
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss += (1 - share) * entropy.mean()
    return loss
