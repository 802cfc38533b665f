"""Logits over a split, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.evaluation.predict import compiled, predict
from random_data import random_split, random_variables


class Small(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), dtype=self.dtype)(x))
        return nn.Dense(4, dtype=self.dtype)(x.reshape(x.shape[0], -1))


def scaled(model):
    return lambda variables, images: model.apply(
        variables, images.astype(jnp.float32) / 255
    )


@pytest.fixture(scope="module")
def split():
    return random_split(23)


@pytest.fixture(scope="module")
def variables(split):
    return random_variables(Small(), jnp.zeros((1, *split.image_shape)))


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 5), (1, 23), (4, 6), (8, 99)])
def test_as_one_image_after_another(split, variables, devices, batch_size):
    """Uneven and single batches, rounded up to the devices."""
    apply = scaled(Small())
    done = []
    logits = predict(
        apply, variables, split, batch_size=batch_size,
        mesh=make_mesh(jax.devices()[:devices]), on_images=done.append,
    )  # fmt: skip
    one_by_one = np.concatenate(
        [apply(variables, split.read(np.array([i]))) for i in range(23)]
    )
    assert logits.shape == (23, 4) and logits.dtype == np.float32
    assert sum(done) == 23
    # float32's rounding of sums of 256 products near 1.
    np.testing.assert_allclose(logits, one_by_one, atol=1e-5)


def test_logits_are_float32_whatever_the_network_computes_in(split, variables):
    logits = predict(scaled(Small(jnp.bfloat16)), variables, split, batch_size=8)
    assert logits.dtype == np.float32


def test_one_compilation_for_several_calls(split, variables):
    mesh = make_mesh(jax.devices()[:2])
    traces = []

    def apply(variables, images):
        traces.append(images.shape)
        return scaled(Small())(variables, images)

    program = compiled(apply, mesh)
    assert program.compile_seconds == 0
    for part in (split, split.select(np.arange(3))):
        predict(program, variables, part, batch_size=8, mesh=mesh)
    assert program.compile_seconds > 0
    assert traces == [(4, 8, 8, 3)]


def test_precision_is_that_of_the_call(split, variables):
    """A program is compiled at its first use, under what the caller asks for then."""
    seen = []

    def apply(variables, images):
        seen.append(jax.config.jax_default_matmul_precision)
        return scaled(Small())(variables, images)

    program = compiled(apply)
    with jax.default_matmul_precision("highest"):
        predict(program, variables, split, batch_size=8)
    assert seen == ["highest"]


def test_bad_input(split, variables):
    apply = scaled(Small())
    with pytest.raises(
        InputError, match="batch_size must be an integer of at least 1, got 0"
    ):
        predict(apply, variables, split, batch_size=0)
    with pytest.raises(InputError, match="the split has no images"):
        predict(apply, variables, split.select(np.arange(0)), batch_size=4)
    with pytest.raises(InputError, match=r"logits \[1, classes\], got shape \[1\]"):
        predict(lambda v, x: apply(v, x).sum(-1), variables, split, batch_size=8)
