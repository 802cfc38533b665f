"""Residual blocks: the channels inside can leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
import reference
from jaxprune._base.errors import InputError
from jaxprune.recipes import models
from random_data import random_split, random_variables

MODEL = models.CifarResNet(8, (3, 4, 5), 4)
# A block whose first convolution has stride 2, and the last.
KEEP = {
    "stage2_block0/conv1": np.array([True, False, True, True]),
    "stage3_block0/conv1": np.array([False, True, True, False, True]),
}


@pytest.fixture(scope="module")
def drawn():
    """A split, its images scaled, variables."""
    split = random_split(n=8, shape=(12, 12, 3))
    x = jnp.asarray(split.images, jnp.float32) / 255
    return split, x, random_variables(MODEL, x)


@pytest.fixture(scope="module")
def small(drawn):
    _, x, variables = drawn
    layers = {name: (keep, "zero") for name, keep in KEEP.items()}
    return jaxprune.compact_layers(
        MODEL, variables, layers, example=x, call={"train": False}
    )


def test_inner_convolutions_equal_written_weights(drawn, small):
    split, x, variables = drawn
    pruned = jax.tree.map(np.copy, variables)
    for name, keep in KEEP.items():
        block, conv = name.split("/")
        pruned["params"][block][conv]["kernel"][..., ~keep] = 0
        left = small.variables["params"][block]
        assert left[conv]["kernel"].shape[-1] == keep.sum()
        assert left["conv2"]["kernel"].shape[-2] == keep.sum()
    expected = reference.cifar_resnet(pruned, split.images)
    # Sums of a few hundred float32 products, logits near 1.
    np.testing.assert_allclose(small(x), expected, atol=2e-5, rtol=0)


def test_it_is_read_again_without_its_class(drawn, small, tmp_path):
    small.save(tmp_path / "small")
    loaded = jaxprune.load_compact(tmp_path / "small")
    np.testing.assert_array_equal(loaded(drawn[1]), small(drawn[1]))


@pytest.mark.parametrize(
    "layer", ["conv", "stage1_block0/conv2", "stage2_block0/shortcut"]
)
def test_channels_of_a_residual_sum_cannot_leave_alone(drawn, layer):
    _, x, variables = drawn
    keep = np.arange(4 if "stage2" in layer else 3) > 0
    with pytest.raises(InputError, match="joins them with what depends on the image"):
        jaxprune.compact(MODEL, variables, layer, keep, example=x)


def test_its_statistics_can_be_estimated_again(drawn, small):
    _, x, _ = drawn
    again = jaxprune.recalibrate(small, small.variables, [x])
    again = small.with_arrays(again).variables
    first = small.variables["params"]["conv"]["kernel"]
    maps = jax.lax.conv_general_dilated(
        x, first, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        again["batch_stats"]["bn"]["mean"], maps.mean((0, 1, 2)), atol=1e-5
    )
    shapes = jax.tree.map(np.shape, small.variables)
    assert jax.tree.map(np.shape, again) == shapes
