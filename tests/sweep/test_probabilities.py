"""Networks that end with a softmax: losses are those of the same network without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.recipes.models import PairCNN
from random_data import random_split
from toys import network

SPLIT = random_split(n=40, shape=(16, 16, 2), classes=3)
MODEL = PairCNN(widths=(4, 5, 6), dense=(7, 3))


def both():
    apply, variables = network(MODEL, SPLIT.image_shape)
    return apply, lambda v, x: jax.nn.softmax(apply(v, x)), variables


@pytest.mark.parametrize("fill", ["zero", "drop"])
def test_a_sweep(fill):
    results = []
    *networks, variables = both()
    names = ("taylor", "oracle")
    for apply in networks:
        tapped = jaxprune.tap_layer(
            apply, variables, SPLIT, layer="conv2", batch_size=8, criteria=names
        )
        scores = {name: jaxprune.score(tapped, name, fill=fill) for name in names}
        swept = jaxprune.sweep_layer(tapped, scores["taylor"], fill=fill)
        results.append((swept, scores))
    (logits, by_logits), (ends, by_ends) = results
    np.testing.assert_array_equal(ends.predictions, logits.predictions)
    # Rounding of exp and log.
    np.testing.assert_allclose(ends.cross_entropy, logits.cross_entropy, rtol=1e-5)
    for name in by_ends:
        np.testing.assert_allclose(by_ends[name], by_logits[name], rtol=1e-3, atol=1e-5)


def test_the_mean_of_two_networks_probabilities():
    """No softmax is its last operation: the loss is that of the mean."""
    _, softmax, variables = both()

    def ensemble(v, x):
        return (softmax(v["one"], x) + softmax(v["two"], x)) / 2

    other = jax.tree.map(lambda leaf: leaf * np.float32(0.9), variables)
    pair = {"one": variables, "two": other}
    tapped = jaxprune.tap_layer(
        ensemble, pair, SPLIT, layer="one/params/conv3", batch_size=8
    )
    swept = jaxprune.sweep_layer(tapped, np.arange(6.0), ks=[0])
    p = np.asarray(ensemble(pair, jnp.asarray(SPLIT.images)), np.float64)
    expected = -np.log(p[np.arange(len(p)), SPLIT.labels]).mean()
    np.testing.assert_allclose(swept.cross_entropy, [expected], rtol=1e-5)


def test_curves_of_widths():
    *networks, variables = both()
    logits, ends = (
        jaxprune.analyse(apply, variables, SPLIT.images).curves for apply in networks
    )
    assert logits.keys() == ends.keys()
    for name, curve in logits.items():
        assert ends[name].order == curve.order
        np.testing.assert_allclose(
            ends[name].losses, curve.losses, rtol=1e-3, atol=1e-6
        )


def test_which_outputs_are_probabilities():
    rows = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(4), 5), jnp.float32)
    assert are_probabilities(rows) and are_probabilities(rows.astype(jnp.bfloat16))
    for other in (rows - 0.25, rows * 1.01, rows.at[3].add(0.01), jnp.log(rows)):
        assert not are_probabilities(other)
    assert not are_probabilities(jnp.array([[1.5, -0.5]]))
    np.testing.assert_allclose(log_probabilities(rows), np.log(rows), rtol=1e-6)
    assert np.isfinite(log_probabilities(jnp.array([[1.0, 0.0]]))).all()
