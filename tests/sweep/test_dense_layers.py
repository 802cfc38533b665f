"""Dense layers by name: of an MLP in front of a classifier, and of one on tokens."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from random_data import random_split, random_variables
from reference import prune


class Mixed(nn.Module):
    """An MLP on eight tokens, and one behind the mean over them."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), 8, -1)
        h = nn.gelu(nn.Dense(7, name="tokens")(x))
        x = x + nn.Dense(x.shape[-1], name="project")(h)
        q, k = (nn.Dense(4, name=name)(x) for name in ("query", "key"))
        weights = nn.softmax(q @ k.swapaxes(1, 2))
        x = nn.relu(nn.Dense(6, name="inner")((weights @ x).mean(1)))
        return nn.Dense(3, name="classes")(x)


def tapped(layer, **options):
    split = random_split(n=33, shape=(8, 3, 2), classes=3)
    variables = random_variables(Mixed(), np.zeros((1, 8, 3, 2), np.float32))

    def apply(variables, images):
        return Mixed().apply(variables, images.astype(np.float32) / 64)

    return tap_layer(apply, variables, split, layer=layer, **options), variables, apply


@pytest.mark.parametrize("fill", ["zero", "bias", "drop"])
@pytest.mark.parametrize(
    ("layer", "consumer"), [("tokens", "project"), ("inner", "classes")]
)
def test_every_k_against_weights_really_zeroed(layer, consumer, fill):
    found, variables, apply = tapped(layer, criteria=["abs_mean"])
    assert found.channels == {"tokens": 7, "inner": 6}[layer]
    scores = jaxprune.score(found, "abs_mean")
    result = sweep_layer(found, scores, fill=fill)
    images, labels = found.split.images, found.split.labels
    for k in range(found.channels):
        if fill == "drop":
            pruned = jax.tree.map(np.array, variables)
            pruned["params"][consumer]["kernel"][result.order[:k]] = 0
        else:
            pruned = prune(variables, layer, result.order[:k], fill)
        predicted = np.asarray(apply(pruned, images)).argmax(1)
        np.testing.assert_array_equal(result.predictions[k], predicted)
        assert result.accuracy[k] == pytest.approx((predicted == labels).mean())
    assert len({*map(bytes, result.predictions)}) > 1


def test_a_compact_network_without_some_of_them():
    found, variables, apply = tapped("tokens")
    keep = np.arange(7) % 2 == 0
    x = found.split.images[:9].astype(np.float32) / 64
    model = jaxprune.from_linen(Mixed(), variables, x)
    small = jaxprune.compact(model, layer="tokens", keep=keep, fill="bias")
    expected = apply(prune(variables, "tokens", np.flatnonzero(~keep), "bias"), x * 64)
    np.testing.assert_allclose(small(x), expected, atol=1e-5)
    assert small.arrays["params/tokens/kernel"].shape == (6, 4)


def test_a_product_of_two_values_has_no_channels():
    network = jaxprune.from_linen(
        Mixed(), random_variables(Mixed(), np.zeros((1, 8, 3, 2), np.float32)),
        np.zeros((2, 8, 3, 2), np.float32),
    )  # fmt: skip
    (name,) = [n for n in network.layers if network.layers[n].kind == "product"][:1]
    with pytest.raises(InputError, match="no convolution and no dense layer but a pro"):
        tap_layer(
            lambda v, x: network.function(v, x.astype(np.float32)), network.params,
            random_split(n=9, shape=(8, 3, 2), classes=3), layer=name,
        )  # fmt: skip
