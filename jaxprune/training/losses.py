"""Losses of training: a task's own, and the distance from a teacher.

Axes: N images, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxprune._base.errors import InputError
from jaxprune.tasks.imitation import relative_error
from jaxprune.tasks.task import Task


def check_distillation(temperature: float, weight: float) -> None:
    """Raises InputError if the numbers are not those of a distillation."""
    if not 0 < temperature < np.inf:
        raise InputError(f"a temperature is positive and finite, got {temperature}")
    if not 0 <= weight <= 1:
        raise InputError(f"the weight of the teacher lies in 0 .. 1, got {weight}")


def distillation(
    logits: Float[Array, "N *axes C"],
    teacher: Float[Array, "N *axes C"],
    temperature: float,
) -> Float[Array, "N *axes"]:
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
    task: Task,
    outputs: Any,
    targets: Any,
    teacher: Any,
    temperature: float,
    weight: float,
) -> Float[Array, ""]:
    """Of a batch, by teacher and targets.

    Args:
      task: what outputs are for.
      outputs: the student's: the part that the task goes by.
      targets: of each image; of no use where the teacher has all the weight.
      teacher: the teacher's outputs; None where targets have all the weight.
      temperature: that both sides' logits are divided by.
      weight: of the teacher.
    """
    if teacher is None:
        return task.loss(outputs, targets).mean()
    loss = weight * _distance(task, outputs, teacher, temperature).mean()
    if weight < 1:
        loss += (1 - weight) * task.loss(outputs, targets).mean()
    return loss


def _distance(task: Task, outputs: Any, teacher: Any, temperature: float) -> Array:
    """How far outputs are from the teacher's; its mean is the loss."""
    if task.logits:
        return distillation(outputs, teacher, temperature)
    if task.imitates:
        return task.loss(outputs, teacher)
    return relative_error(outputs, teacher)
