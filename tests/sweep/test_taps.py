from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.recipes.models import CifarResNet, CifarVGG, PairCNN
from jaxprune.sweep.taps import default_tap
from random_data import random_split, random_variables


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(self.features, (3, 3), name="conv")(x))


class Nested(nn.Module):
    """Defined `late` first and called it last, under a path of two parts."""

    def setup(self):
        self.late = Block(5)
        self.early = Block(4)
        self.out = nn.Dense(3)

    def __call__(self, x):
        return self.out(self.late(self.early(x)).reshape(x.shape[0], -1))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(3, (3, 3), name="twice")
        return nn.Dense(2)(conv(conv(x)).mean((1, 2)))


class NoConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def build(model, channels=3, size=6):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, size, size, channels)), jnp.float32)
    return model.apply, random_variables(model, x), x


class Rectified(nn.Module):
    """A convolution, and what follows it."""

    then: Callable

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(self.then(nn.Conv(3, (3, 3), name="conv")(x)).mean((1, 2)))


def normed(x):
    return nn.relu(nn.BatchNorm(use_running_average=True)(x))


@pytest.mark.parametrize(
    ("then", "tap"),
    [
        (nn.relu, "relu"), (lambda x: jnp.maximum(x, 0), "relu"), (nn.gelu, "conv"),
        (normed, "conv"), (lambda x: x, "conv"), (lambda x: x + nn.relu(x), "conv"),
        (lambda x: jnp.maximum(x, 1), "conv"),
        (lambda x: nn.relu(x) + 2 * nn.relu(x), "relu"),
    ],
)  # fmt: skip
def test_the_default_tap_is_behind_a_relu_that_alone_is_given_the_map(then, tap):
    apply, variables, x = build(Rectified(then))
    network = jaxprune.Network(
        lambda v, x: apply(v, jnp.float32(x) / 255), variables, x
    )
    assert default_tap(network, "conv") == tap
    split = random_split(n=8, shape=(6, 6, 3), classes=2)
    tapped = jaxprune.tap_layer(network, split, layer="conv", tap=tap)
    assert (tapped.mean_feature_map >= 0).all() == (tap == "relu")
    if then is nn.gelu:
        with pytest.raises(InputError, match="give tap 'conv'"):
            jaxprune.tap_layer(network, split, layer="conv", tap="relu")


@pytest.mark.parametrize(
    ("model", "size", "channels", "expected"),
    [(Nested(), 6, 3, "late/conv"), (PairCNN(widths=(2, 3, 4)), 8, 2, "conv3"),
     (CifarVGG(widths=(2,) * 13, dense=(4, 4, 4, 2)), 32, 3, "conv2d_12")],
)  # fmt: skip
def test_last_conv_is_the_one_executed_last(model, size, channels, expected):
    assert jaxprune.last_conv(*build(model, channels, size)) == expected


class Mapped(nn.Module):
    """A convolution, a sum with what it is given, and one that makes the output."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(5, (3, 3), name="stem")(x)
        y = nn.Conv(4, (3, 3), name="inside")(nn.relu(x))
        x = x + nn.Conv(5, (3, 3), name="added")(nn.relu(y))
        return nn.Conv(2, (1, 1), name="out")(x)


def test_last_conv_is_one_whose_channels_can_leave():
    """Neither what makes the output nor what is added to something else."""
    assert jaxprune.last_conv(*build(Mapped())) == "inside"


def test_last_conv_of_a_residual_network_is_its_recipes():
    """In both the last block; CIFAR's ends with a projection shortcut."""
    model = CifarResNet(8, (4, 6, 8), 3)
    assert jaxprune.last_conv(*build(model, 3, 8)) == "stage3_block0/conv1"


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(2, name="norm")(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(2)(x.mean((1, 2)))


def test_a_network_of_which_no_convolution_can_be_swept():
    with pytest.raises(InputError, match=r"'conv' .* channels 0 and 1 go together"):
        jaxprune.last_conv(*build(Normed()))


def test_capture_by_hand():
    apply, variables, x = build(Nested())
    early = variables["params"]["early"]["conv"]
    expected = nn.Conv(4, (3, 3)).apply({"params": early}, x)
    got = jaxprune.capture(apply, variables, x, "early/conv")
    np.testing.assert_array_equal(got, expected)
    behind = jaxprune.capture(apply, variables, x, "early/conv", nn.relu)
    np.testing.assert_array_equal(behind, nn.relu(expected))


@pytest.mark.parametrize("tap", jaxprune.TAPS)
@pytest.mark.parametrize("layer", ["early/conv", "late/conv"])
def test_putting_back_what_was_captured_changes_nothing(layer, tap):
    apply, variables, x = build(Nested())
    feature_map = jaxprune.capture(apply, variables, x, layer, jaxprune.TAPS[tap])
    np.testing.assert_array_equal(
        jaxprune.run_from(apply, variables, x, layer, feature_map), apply(variables, x)
    )


def test_replacing_runs_the_rest_of_the_network():
    apply, variables, x = build(Nested())
    logits = jaxprune.run_from(
        apply, variables, x, "late/conv", jnp.zeros((2, 6, 6, 5))
    )
    bias = variables["params"]["out"]["bias"]
    np.testing.assert_allclose(logits, jnp.broadcast_to(bias, (2, 3)), atol=1e-6)


def test_the_trunk_is_dead_code_in_the_head():
    apply, variables, x = build(Nested())
    fm = jnp.ones((2, 6, 6, 5))
    head = jax.jit(lambda v, x, fm: jaxprune.run_from(apply, v, x, "late/conv", fm))
    assert "convolution" not in head.lower(variables, x, fm).compile().as_text()
    whole = jax.jit(lambda v, x: apply(v, x)).lower(variables, x).compile()
    assert "conv" in whole.as_text()


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [(Nested(), "late/konv", "did you mean 'late/conv'"),
     (Shared(), "twice", "called 2 times")],
)  # fmt: skip
def test_layers_that_cannot_be_tapped(model, layer, message):
    with pytest.raises(InputError, match=message):
        jaxprune.Network(*build(model)).graph().with_map(layer)


def test_a_network_without_convolution():
    with pytest.raises(InputError, match="no convolution"):
        jaxprune.last_conv(*build(NoConv()))


def test_a_jitted_apply_is_as_good_as_any():
    apply, variables, x = build(Nested())
    jitted = jax.jit(apply)
    jitted(variables, x)
    ones = jnp.ones((2, 6, 6, 5))
    np.testing.assert_array_equal(
        jaxprune.run_from(jitted, variables, x, "late/conv", ones),
        jaxprune.run_from(apply, variables, x, "late/conv", ones),
    )
