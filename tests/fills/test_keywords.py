"""Networks that call their layers by keyword, through everything that intercepts."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from masked import given_to
from random_data import random_split, random_variables


class Keywords(nn.Module):
    """Every layer is called by keyword, or by position: the same network."""

    by_keyword: bool

    @nn.compact
    def __call__(self, x, train=False):
        def call(module, name, x):
            return module(**{name: x}) if self.by_keyword else module(x)

        x = call(nn.Conv(5, (3, 3), name="conv"), "inputs", x)
        norm = nn.BatchNorm(use_running_average=not train, name="bn")
        x = nn.relu(call(norm, "x", x))
        x = call(nn.Dropout(0.5, deterministic=not train), "inputs", x)
        x = nn.relu(call(nn.Conv(4, (3, 3), name="consumer"), "inputs", x))
        return call(nn.Dense(3, name="out"), "inputs", x.mean((1, 2)))


@pytest.fixture(scope="module")
def drawn():
    split = random_split(n=20, classes=3)
    x = jnp.asarray(split.images, jnp.float32) / 255
    return split, x, random_variables(Keywords(True), x[:1])


@pytest.mark.parametrize("fill", ["zero", "drop", "linear"])
def test_tap_sweep_compact_and_proof(drawn, fill):
    split, x, variables = drawn
    predictions, logits, proofs = [], [], []
    for by_keyword in (True, False):
        model = Keywords(by_keyword)

        def apply(variables, images, model=model, **kwargs):
            return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

        given = fill
        if fill == "linear":
            given = jaxprune.linear_fill(apply, variables, split.images, layer="conv")
        tapped = jaxprune.tap_layer(apply, variables, split, layer="conv")
        scores = jaxprune.criteria.mean(tapped.mean_feature_map)
        result = jaxprune.sweep_layer(tapped, scores, fill=given)
        small = jaxprune.compact(
            model, variables, "conv", result.keep(2), fill=given, example=x[:4]
        )
        predictions.append(result.predictions)
        logits.append(small(x))
        proofs.append(small.proof.equations)
    np.testing.assert_array_equal(*predictions)
    np.testing.assert_array_equal(*logits)
    assert proofs[0] == proofs[1] > 0


def test_recalibration(drawn):
    _, x, variables = drawn
    one, other = (
        jaxprune.recalibrate(
            partial(Keywords(by_keyword).apply, train=False), variables, [x]
        )["batch_stats"]["bn"]
        for by_keyword in (True, False)
    )
    np.testing.assert_array_equal(one["mean"], other["mean"])
    np.testing.assert_array_equal(one["var"], other["var"])


def test_layers_and_their_inputs(drawn):
    _, x, variables = drawn
    for by_keyword in (True, False):
        apply = Keywords(by_keyword).apply
        layers = jaxprune.list_layers(apply, variables, x)
        assert [layer.name for layer in layers] == ["conv", "consumer", "out"]
        given = given_to(apply, variables, x, ["conv"])
        np.testing.assert_array_equal(given["conv"], x)
