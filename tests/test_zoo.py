import jax
import jax.numpy as jnp
import numpy as np
import pytest

from random_data import random_split, random_variables
from zoo import CLASSES, EXAMPLE_SHAPE, ZOO


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_logits_are_finite_and_each_images_own(name):
    model = ZOO[name]()
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    images = random_split(n=4, shape=EXAMPLE_SHAPE).images
    images = jnp.asarray(images, jnp.float32) / 255
    apply = jax.jit(model.apply)
    logits = apply(variables, images)
    assert logits.shape == (4, CLASSES)
    assert np.isfinite(logits).all()
    assert np.ptp(logits, 0).min() > 1e-3  # the image decides, in every class
    alone = jnp.concatenate([apply(variables, image[None]) for image in images])
    # Another batch size may be summed in another order: 1e-7 a layer.
    np.testing.assert_allclose(alone, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ZOO)
def test_trains(name):
    def step(x):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = ZOO[name]().init(keys, x)
        return ZOO[name]().apply(
            variables, x, train=True, rngs=keys, mutable=["batch_stats"]
        )

    logits, _ = jax.eval_shape(step, jnp.zeros((2, *EXAMPLE_SHAPE)))
    assert logits.shape == (2, CLASSES)
