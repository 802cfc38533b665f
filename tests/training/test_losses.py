"""Cross-entropy and distillation against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base.errors import InputError
from jaxprune.tasks.classes import classification
from jaxprune.training import losses


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_distillation_equals_numpy():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 7, 5)).astype(np.float32)
    p, q = (log_softmax(x / 2.5) for x in (teacher, student))
    expected = 2.5**2 * (np.exp(p) * (p - q)).sum(-1)
    ours = losses.distillation(jnp.asarray(student), jnp.asarray(teacher), 2.5)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    same = losses.distillation(jnp.asarray(student), jnp.asarray(student), 2.5)
    np.testing.assert_array_equal(same, 0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_weighs_teacher_and_labels(weight):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 8, 4)).astype(np.float32)
    labels = np.arange(8) % 4
    p, q = (log_softmax(v / 3) for v in (teacher, student))
    divergence = 9 * (np.exp(p) * (p - q)).sum(-1).mean()
    entropy = -log_softmax(student)[np.arange(8), labels].mean()
    expected = weight * divergence + (1 - weight) * entropy
    task = classification()
    given = task, jnp.asarray(student), jnp.asarray(labels), jnp.asarray(teacher)
    assert float(losses.mean_loss(*given, 3.0, weight)) == pytest.approx(
        expected, rel=1e-5
    )
    if weight == 1:  # and labels play no part
        other = losses.mean_loss(*given[:2], given[2] * 0 - 1, given[3], 3.0, 1.0)
        assert float(other) == pytest.approx(expected, rel=1e-5)
    alone = losses.mean_loss(*given[:3], None, 3.0, weight)
    assert float(alone) == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize(
    ("temperature", "weight", "message"),
    [(0.0, 1.0, "temperature"), (np.nan, 1.0, "temperature"), (4.0, 1.5, "weight")],
)
def test_numbers_that_are_no_distillation_s(temperature, weight, message):
    with pytest.raises(InputError, match=message):
        losses.check_distillation(temperature, weight)
