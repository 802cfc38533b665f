"""Networks that are cut with the linear fill, against explicit regressions."""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import consumers
import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.fills.linear import Regression
from random_data import random_variables
from selected import quick

RIDGE = 0.03


def cut(consumer, keep):
    model, apply, variables, split = consumers.read(consumer)
    fill = jaxprune.linear_fill(
        apply, variables, split.images, layer="first", ridge=RIDGE
    )
    x = jnp.asarray(split.images, jnp.float32) / 255
    small = jaxprune.compact(model, variables, "first", keep, fill=fill, example=x[:8])
    return small, variables, split, x


@pytest.mark.parametrize(
    ("consumer", "kept"),
    quick(
        itertools.product(consumers.CONSUMERS, (9, 4, 1)),
        {(consumer, 4) for consumer in consumers.CONSUMERS},
    ),
)
def test_it_equals_the_explicit_regression(consumer, kept):
    keep = np.random.default_rng(kept).permutation(consumers.P) < kept
    small, variables, split, x = cut(consumer, keep)
    assert small.variables["params"]["first"]["kernel"].shape[-1] == kept
    inputs = consumers.consumer_input(variables, split.images)
    edited = consumers.predicted(inputs, inputs, keep, RIDGE, flat=consumer == "dense")
    expected = consumers.logits_from(variables, consumer, edited)
    # Sums of at most 200 float32 products.
    np.testing.assert_allclose(small(x), expected, atol=2e-5 * np.abs(expected).max())


def test_borders_get_the_constants_that_they_read():
    """A SAME convolution reads fewer pruned channels' constants at its border."""
    keep = np.arange(consumers.P) > 4
    small, *_ = cut("same", keep)
    rows = small.variables["offsets"]["consumer"]["rows"]
    assert len(rows) == 9
    small, *_ = cut("valid", keep)
    assert "offsets" not in small.variables  # alike everywhere: in the bias


@pytest.mark.parametrize("consumer", ["dense", "same"])
@pytest.mark.parametrize("error", ["sign", "constants", "missing"])
def test_an_error_in_the_fold_is_caught(consumer, error, monkeypatch):
    fold = Regression.fold

    def wrong(self, kernel):
        if error == "sign":
            flipped = replace(self, coefficients=-self.coefficients)
            return fold(flipped, kernel)
        return kernel if error == "missing" else fold(self, kernel)

    monkeypatch.setattr(Regression, "fold", wrong)
    if error == "constants":
        monkeypatch.setattr(
            "jaxprune.compaction.cut._constants",
            lambda layer, prunings, given: np.zeros(layer.inputs),
        )
    with pytest.raises(InputError, match="times what rounding explains"):
        cut(consumer, np.arange(consumers.P) > 3)


class Linear(nn.Module):
    """Nothing between the convolution and what reads it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="first")(x)
        x = nn.relu(nn.Conv(5, (3, 3), name="consumer")(x))
        return nn.Dense(4, name="out")(x.mean((1, 2)))


def test_an_affine_function_of_two_others_leaves_at_no_loss():
    model = Linear()
    _, _, _, split = consumers.read("same")
    x = jnp.asarray(split.images, jnp.float32) / 255
    variables = random_variables(model, x[:1])
    p = variables["params"]["first"]
    p["kernel"][..., 2] = 2 * p["kernel"][..., 0] - p["kernel"][..., 5]
    p["bias"][2] = 2 * p["bias"][0] - p["bias"][5] + 0.7
    fill = jaxprune.linear_fill(model.apply, variables, x, layer="first", ridge=1e-8)
    keep = np.arange(6) != 2
    small = jaxprune.compact(model, variables, "first", keep, fill=fill, example=x[:4])
    np.testing.assert_allclose(small(x), model.apply(variables, x), atol=1e-4)
    dropped = jaxprune.compact(
        model, variables, "first", keep, fill="drop", example=x[:4]
    )
    assert np.abs(dropped(x) - model.apply(variables, x)).max() > 0.1


def test_the_record_names_the_fill_and_how_it_was_made(tmp_path):
    keep = np.arange(consumers.P) > 3
    small, _, _, x = cut("same", keep)
    small.save(tmp_path / "small")
    again = jaxprune.load_compact(tmp_path / "small")
    layer = again.layers["first"]
    assert (layer.channels, layer.kept) == (10, tuple(range(4, 10)))
    assert layer.fill == "linear"
    assert layer.fill_facts["ridge"] == RIDGE
    assert layer.fill_facts["images"] == 30
    np.testing.assert_array_equal(again(x), small(x))


def test_two_layers_in_a_row():
    model, apply, variables, split = consumers.read("same")
    x = jnp.asarray(split.images, jnp.float32) / 255
    layers = {}
    for name, p in (("first", consumers.P), ("consumer", 7)):
        fill = jaxprune.linear_fill(apply, variables, split.images, layer=name)
        layers[name] = (np.arange(p) % 3 > 0, fill)
    small = jaxprune.compact_layers(model, variables, layers, example=x[:8])
    assert small.variables["params"]["consumer"]["kernel"].shape == (3, 3, 6, 4)
    assert small.proof.bound_used <= 1
