"""One writing of a network for batches of any size; its function is the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from jaxprune._base.errors import InputError
from jaxprune.conv import conv_general_dilated
from jaxprune.graph.any_size import of_any_size

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(5, 20, 20, 3)).astype(np.float32)
PARAMS = {
    "conv": RNG.normal(size=(3, 3, 3, 32)).astype(np.float32) / 8,
    "deep": RNG.normal(size=(3, 3, 32, 32)).astype(np.float32) / 8,
    "step": RNG.normal(size=(32, 32)).astype(np.float32) / 8,
    "out": RNG.normal(size=(32, 4)).astype(np.float32),
}


def convolve(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def network(params, x):
    """Sizes in reshapes, slices and broadcasts, a loop, two kinds of convolution.

    At 20 x 20, Winograd's algorithm begins at 3 images.
    """
    x = nn.relu(convolve(x, params["conv"]))
    x = nn.gelu(convolve(x, params["deep"]))
    x = nn.max_pool(x[:, ::2, 1:], (3, 3), (2, 2), "SAME")
    x = x.reshape(len(x) * x.shape[1], -1, 32).mean(1).reshape(len(x), -1, 32)

    def step(carry, _):
        return jnp.tanh(carry @ params["step"]), None

    x, _ = jax.lax.scan(step, x.max(1), None, length=3)
    places = jnp.broadcast_to(jnp.arange(32.0), x.shape)
    return {"logits": x @ params["out"], "places": places + x}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_batch_of_any_size(size):
    found = jax.jit(of_any_size(network, PARAMS, IMAGES))(IMAGES[:size])
    expected = jax.jit(network)(PARAMS, IMAGES[:size])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    # The same float32 operations, in another order in the convolutions.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found,
                 expected)  # fmt: skip


def test_a_symbols_size():
    (size,) = export.symbolic_shape("N")
    shape = jax.ShapeDtypeStruct((size, *IMAGES.shape[1:]), IMAGES.dtype)
    program = export.export(jax.jit(of_any_size(network, PARAMS, IMAGES)))(shape)
    assert str(program.out_avals[0].shape) == "(N, 4)"
    for count in (1, 5):
        found = program.call(IMAGES[:count])["logits"]
        expected = jax.jit(network)(PARAMS, IMAGES[:count])["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_does_not_depend_on_the_batch_is_computed():
    def function(params, x):
        return x.mean((1, 2)) @ jnp.exp(params["first"] * 2)

    params = {"first": np.ones((3, 2), np.float32)}
    written = jax.make_jaxpr(of_any_size(function, params, IMAGES))(IMAGES)
    assert "exp" not in {eqn.primitive.name for eqn in written.eqns}


def over_images(params, x):
    return jax.lax.map(lambda image: image.mean((0, 1)), x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, x: x.mean((1, 2)) * (2.0 * len(x)), "it holds numbers that differ"),
        (lambda p, x: x + np.zeros(x.shape, np.float32), "numbers that differ"),
        (lambda p, x: jnp.tanh(x) if len(x) == 2 else x, "it goes another way"),
        (over_images, r"'scan' \(test_any_size.py:\d+\) runs over its images"),
    ],
)
def test_code_that_is_another_for_other_sizes(function, message):
    with pytest.raises(InputError, match=message) as error:
        of_any_size(function, {"unused": np.ones(1, np.float32)}, IMAGES)
    assert "\n" not in str(error.value)
