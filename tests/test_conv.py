import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxprune import conv
from jaxprune._base import mesh as mesh_lib
from jaxprune._base import winograd
from jaxprune._base.mesh import make_mesh
from random_data import random_variables

NUMBERS = ("NHWC", "HWIO", "NHWC")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("height", "width", "c_in", "c_out", "kernel"),
    [(2, 2, 5, 7, (3, 3)), (1, 1, 3, 2, (3, 3)), (3, 3, 20, 4, (1, 1)),
     (7, 6, 3, 4, (3, 5)), (8, 8, 20, 4, (5, 3)), (9, 1, 2, 2, (3, 3)),
     (16, 16, 32, 33, (3, 3)), (15, 17, 40, 32, (3, 3))],
)  # fmt: skip
def test_values_and_gradients_equal_xlas_in_float64(
    x64, height, width, c_in, c_out, kernel
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, height, width, c_in)))
    w = jnp.asarray(rng.normal(size=(*kernel, c_in, c_out)))

    def results(convolve):
        def loss(x, w):
            y = convolve(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, w)

    ours, xlas = results(conv.conv_general_dilated), results(lax.conv_general_dilated)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(xlas), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "padding": 1},
     {"feature_group_count": 2}, {"padding": "VALID"}, {"padding": "CIRCULAR"},
     {"padding": 1}, {"padding": ((1, 0), (0, 2))}, {"kernel_size": (2, 2)},
     {"use_bias": False}, {"dtype": jnp.bfloat16}, {"precision": "highest"},
     {"kernel_size": (3,)}],
    ids=str,
)  # fmt: skip
def test_takes_all_that_nn_conv_passes(options):
    options = {"features": 4, "kernel_size": (3, 3), **options}
    shape = (2, 4, 6) if len(options["kernel_size"]) == 1 else (2, 2, 3, 6)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    plain = nn.Conv(**options)
    ours = nn.Conv(**options, conv_general_dilated=conv.conv_general_dilated)
    variables = random_variables(plain, x)
    a, b = plain.apply(variables, x), ours.apply(variables, x)
    assert a.dtype == b.dtype and a.shape == b.shape
    # One rounding to bfloat16 (8 bits) or sums of 54 float32 products.
    tolerance = 2e-2 if a.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance
    )


@pytest.mark.parametrize("chunk", [1, 2**14, 2**25])
def test_winograd_in_parts_equals_the_plain_sum(x64, monkeypatch, chunk):
    monkeypatch.setattr(winograd, "_PART_BYTES", chunk)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(11, 5, 6, 3)), rng.normal(size=(3, 3, 3, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(
        padded[:, i : i + 5, j : j + 6] @ w[i, j] for i in range(3) for j in range(3)
    )
    got = winograd.convolve(jnp.asarray(x), jnp.asarray(w), None)
    np.testing.assert_allclose(got, y, atol=1e-12)
    gradient = rng.normal(size=y.shape)
    expected = np.stack(
        [
            [
                np.einsum("nhwi,nhwo->io", padded[:, i : i + 5, j : j + 6], gradient)
                for j in range(3)
            ]
            for i in range(3)
        ]
    )
    got = winograd.kernel_gradient(jnp.asarray(x), jnp.asarray(gradient), None)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_sharded_batch():
    mesh = make_mesh()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 12, 12, 32)).astype(np.float32)
    w = rng.normal(size=(3, 3, 32, 32)).astype(np.float32)

    @jax.jit
    def gradients(x, w):
        def loss(x, w):
            y = conv.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=NUMBERS
            )
            return jnp.sum(jnp.sin(y))

        return jax.grad(loss, (0, 1))(x, w)

    alone = gradients(x, w)
    spread = gradients(mesh_lib.spread(x, mesh), mesh_lib.replicate(w, mesh))
    for a, b in zip(alone, spread, strict=True):
        # Sums of up to 2,304 float32 products.
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_vmap_over_kernels():
    x = jnp.ones((2, 2, 2, 3))
    w = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 3, 3, 4)), jnp.float32)

    def convolve(w):
        return conv.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=NUMBERS
        )

    batched = jax.vmap(convolve)(w)
    for one, kernel in zip(batched, w, strict=True):
        np.testing.assert_allclose(one, convolve(kernel), atol=1e-5)


def test_exports_for_every_platform():
    def f(x):
        w = jnp.ones((3, 3, 3, 2))
        return conv.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=NUMBERS
        )

    x = jnp.ones((1, 2, 2, 3))
    exported = jax.export.export(jax.jit(f), platforms=("cpu", "cuda", "tpu"))(x)
    np.testing.assert_allclose(exported.call(x), f(x))


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 7, 5, 2)])
def test_pool_equals_flax(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def flax_pool(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    np.testing.assert_array_equal(conv.max_pool_2x2(x), flax_pool(x))
    ours, theirs = (
        jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x)
        for f in (conv.max_pool_2x2, flax_pool)
    )
    np.testing.assert_array_equal(ours, theirs)
