import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from jaxprune._base.errors import InputError
from jaxprune.recipes.models import CifarResNet, CifarVGG, PairCNN
from random_data import random_variables


def shapes(model, *shape):
    images = jnp.zeros((1, *shape))
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_cifar_vgg_is_the_reports_network():
    variables = shapes(CifarVGG(), 32, 32, 3)
    assert count(variables) == 21_557_322
    assert count(variables["params"]) == 21_549_258
    names = {name for name in reference.CIFAR_LAYERS if name != "pool"}
    assert set(variables["params"]) == names
    assert variables["params"]["conv2d_12"]["kernel"].shape == (3, 3, 512, 512)
    assert variables["params"]["dense"]["kernel"].shape == (512, 4096)


def test_pair_cnn_counts():
    # conv 9*2*32+32, 9*32*64+64, 9*64*128+128; norms 4*(32+64+128);
    # dense 1152*128+128, 128*2+2
    expected = 608 + 18_496 + 73_856 + 896 + 147_584 + 258
    variables = shapes(PairCNN(), 28, 28, 2)
    assert count(variables) == expected
    assert variables["params"]["dense1"]["kernel"].shape == (1152, 128)


@pytest.mark.parametrize(
    ("depth", "count_a"), [(20, 269_722), (32, 464_154), (56, 853_018)]
)
def test_cifar_resnet_counts(depth, count_a):
    """`count_a`: the paper's network (0.27, 0.46, 0.85 million), shortcuts padded."""
    n = (depth - 2) // 6
    convs = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2)
    convs += 9 * (32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    assert convs + norms + 64 * 10 + 10 == count_a
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    variables = shapes(CifarResNet(depth), 32, 32, 3)
    assert count(variables["params"]) == count_a + shortcuts
    block = variables["params"]["stage3_block0"]
    assert block["conv1"]["kernel"].shape == (3, 3, 32, 64)
    assert block["shortcut"]["kernel"].shape == (1, 1, 32, 64)
    assert len(variables["params"]) == 3 * n + 3


@pytest.mark.parametrize(
    ("model", "shape", "forward"),
    [
        (CifarVGG(widths=range(3, 16), dense=(12, 10, 8, 4)), (32, 32, 3),
         reference.cifar_vgg),
        (PairCNN(widths=(3, 5, 9), dense=(10, 4)), (28, 28, 2), reference.pair_cnn),
        (CifarResNet(14, (3, 4, 5), 4), (10, 8, 3), reference.cifar_resnet),
        (CifarResNet(8, (4, 4, 4), 4), (9, 9, 3), reference.cifar_resnet),
    ],
)  # fmt: skip
def test_forward_pass_equals_numpy(model, shape, forward):
    variables = random_variables(model, jnp.zeros((1, *shape)))
    images = np.random.default_rng(1).integers(0, 256, (5, *shape), np.uint8)
    ours = jax.jit(model.apply)(variables, jnp.asarray(images, jnp.float32) / 255)
    expected = forward(variables, images)
    # float32 sums against float64: 13 layers of about 1e-7 each.
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_training_needs_dropout_keys_and_gives_statistics():
    model = CifarVGG(widths=(2,) * 13, dense=(4, 4, 4, 2))
    variables = random_variables(model, jnp.zeros((1, 32, 32, 3)))
    x = jnp.ones((4, 32, 32, 3)) * jnp.arange(4.0)[:, None, None, None]

    @jax.jit
    def run(seed):
        return model.apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )  # fmt: skip

    (first, stats), (again, _), (other, _) = run(1), run(1), run(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    before = variables["batch_stats"]["batch_normalization"]["mean"]
    assert not np.allclose(before, stats["batch_stats"]["batch_normalization"]["mean"])


@jax.numpy_dtype_promotion("standard")  # BatchNorm's statistics stay float32
def test_a_resnet_in_half_precision():
    model = CifarResNet(8, (2, 3, 4), 5, dtype=jnp.bfloat16)
    variables = shapes(model, 32, 32, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.eval_shape(model.apply, variables, jnp.zeros((6, 32, 32, 3)))
    assert (logits.shape, logits.dtype) == ((6, 5), jnp.bfloat16)


def test_wrong_number_of_widths():
    with pytest.raises(InputError, match="CifarVGG takes 13 widths"):
        shapes(CifarVGG(widths=(1, 2)), 32, 32, 3)
    with pytest.raises(InputError, match="CifarResNet takes 3 widths"):
        shapes(CifarResNet(widths=(1, 2)), 32, 32, 3)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_wrong_depth(depth):
    with pytest.raises(InputError, match=f"is 6n \\+ 2 .*, got {depth}"):
        shapes(CifarResNet(depth), 32, 32, 3)
