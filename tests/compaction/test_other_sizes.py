"""Inputs of another size than the example's, where the network's code allows it."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from jaxprune.fills.masked import make_pruning
from masked import zeroed
from random_data import random_variables

RNG = np.random.default_rng(0)


class Maps(nn.Module):
    """As many positions as there are pixels; or, where it is flat, a fixed number."""

    flat: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.ConvTranspose(8, (2, 2), (2, 2), name="second")(x))
        if self.flat:
            return nn.Dense(3, name="classes")(x.reshape(len(x), -1))
        return nn.Conv(3, (1, 1), name="classes")(x)


def network(flat=False):
    x = RNG.normal(size=(20, 8, 8, 2)).astype(np.float32)
    return jaxprune.from_linen(Maps(flat), random_variables(Maps(flat), x), x)


@pytest.mark.parametrize("size", [(4, 4), (16, 12)])
def test_what_is_left_is_the_network_with_zeros_there_too(size):
    whole = network()
    small = halved(whole, whole.example)
    groups = whole.groups.groups
    prunings = [
        make_pruning(whole, group, np.arange(group.units) % 2 == 0, "drop")
        for group in groups.values()
    ]
    x = RNG.normal(size=(5, *size, 2)).astype(np.float32)
    expected = whole.function(zeroed(whole, prunings), x)
    np.testing.assert_allclose(small(x), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(small)(x), expected, atol=1e-5)


def test_a_shrunk_network_takes_them():
    whole = network()
    small = jaxprune.shrink(whole, whole.example, speedup=1.5)
    x = RNG.normal(size=(2, 12, 6, 2)).astype(np.float32)
    assert small(x).shape == (2, 12, 6, 3)


@pytest.mark.parametrize(
    ("flat", "fill", "shape", "message"),
    [
        (False, "mean", (5, 12, 8, 2), "the fill 'mean' was put in for that size"),
        (False, "linear", (5, 4, 4, 2), "the fill 'linear' was put in for that size"),
        (True, "drop", (5, 12, 8, 2), r"shape \[N, 8, 8, 2\], got \[5, 12, 8, 2\]"),
        (False, "drop", (5, 8, 8, 3), r"shape \[N, 8, 8, 2\], got \[5, 8, 8, 3\]"),
        (False, "drop", (8, 8, 2), r"shape \[N, 8, 8, 2\], got \[8, 8, 2\]"),
    ],
)
def test_what_cannot_be_is_refused(flat, fill, shape, message):
    whole = network(flat)
    small = halved(whole, whole.example, fill)
    with pytest.raises(InputError, match=message) as error:
        small(np.zeros(shape, np.float32))
    assert "\n" not in str(error.value)
