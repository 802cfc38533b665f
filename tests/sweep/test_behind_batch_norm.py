"""tap="relu" where BatchNorm lies between the convolution and its ReLU."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from random_data import random_split

WIDTHS, CLASSES = (6, 8), 4
SPLIT = random_split(n=40, shape=(8, 8, 3), classes=CLASSES)
FILLS = ("zero", "mean", "bias", "drop")


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, activation=nn.relu):
        for i, width in enumerate(WIDTHS):
            x = nn.Conv(width, (3, 3), use_bias=bool(i), name=f"conv{i}")(x)
            x = nn.BatchNorm(True, name=f"bn{i}")(x)
            x = activation(x)
        return nn.Dense(CLASSES, name="out")(x.mean((1, 2)))


def apply(variables, images, **options):
    return Net().apply(variables, images.astype(jnp.float32) / 255, **options)


@functools.cache
def variables():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    drawn = jax.tree.map(
        lambda s: rng.normal(0.1, 0.5, s.shape).astype(np.float32), shapes
    )
    stats = jax.tree.map(np.abs, drawn["batch_stats"])
    return {**drawn, "batch_stats": stats}


def by_hand(layer, keep, values):
    """The network with values in place of channels, put there behind the ReLU."""
    x = jnp.asarray(SPLIT.images, jnp.float32) / 255
    params, stats = variables()["params"], variables()["batch_stats"]
    for i, width in enumerate(WIDTHS):
        conv = nn.Conv(width, (3, 3), use_bias=bool(i))
        x = conv.apply({"params": params[f"conv{i}"]}, x)
        norm = {"params": params[f"bn{i}"], "batch_stats": stats[f"bn{i}"]}
        x = nn.relu(nn.BatchNorm(True).apply(norm, x))
        if f"conv{i}" == layer:
            x = jnp.where(keep, x, np.asarray(values, np.float32))
    out = {"params": params["out"]}
    return np.asarray(nn.Dense(CLASSES).apply(out, x.mean((1, 2))))


def bias_by_hand(i):
    """What BatchNorm and ReLU make of the bias alone."""
    params, stats = variables()["params"], variables()["batch_stats"][f"bn{i}"]
    norm, bias = params[f"bn{i}"], params[f"conv{i}"].get("bias", 0)
    scale = norm["scale"] / np.sqrt(stats["var"] + 1e-5)
    return np.maximum((bias - stats["mean"]) * scale + norm["bias"], 0)


@functools.cache
def tapped(layer, criteria=()):
    return jaxprune.tap_layer(
        apply, variables(), SPLIT, layer=layer, tap="relu", criteria=criteria
    )


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("layer", ["conv0", "conv1"])
def test_what_is_pruned_is_so_behind_the_relu(layer, fill):
    i = int(layer[-1])
    found = tapped(layer)
    np.testing.assert_allclose(found.bias, bias_by_hand(i), rtol=1e-5, atol=1e-6)
    scores = jaxprune.criteria.mean(found.mean_feature_map)
    result = jaxprune.sweep_layer(found, scores, fill=fill)
    zeros = np.zeros(WIDTHS[i], np.float32)
    means = found.channel_means.astype(np.float32)
    values = {"mean": means, "bias": bias_by_hand(i)}.get(fill, zeros)
    for k in result.ks:
        logits = by_hand(layer, result.keep(k), values)
        np.testing.assert_array_equal(result.predictions[k], logits.argmax(1))
    keep = result.keep(3)
    expected = by_hand(layer, keep, values)
    fill = means if fill == "mean" else fill
    small = jaxprune.compact(
        apply, variables(), layer, keep, fill=fill, tap="relu", example=SPLIT.images
    )
    np.testing.assert_allclose(small(SPLIT.images), expected, atol=1e-5)
    # The tapped layer's network says so itself.
    for network in (found.network, pickle.loads(pickle.dumps(plain(found)))):
        again = jaxprune.compact(network, layer, keep, fill=fill)
        np.testing.assert_allclose(again(SPLIT.images), expected, atol=1e-5)


def plain(found):
    """Its network as one that can be pickled: of a function that has a name."""
    network = jaxprune.Network(apply, variables(), SPLIT.images)
    return network.with_relu(found.name)


def test_criteria_go_by_what_the_relu_returns():
    found = tapped("conv1", ("taylor", "apoz", "oracle"))
    _, caught = nn.apply(
        lambda net, x: net(x), Net(), capture_intermediates=True
    )(variables(), jnp.asarray(SPLIT.images, jnp.float32) / 255)  # fmt: skip
    (normed,) = caught["intermediates"]["bn1"]["__call__"]
    maps = np.maximum(np.asarray(normed), 0)
    np.testing.assert_allclose(found.mean_feature_map, maps.mean(0), atol=1e-5)
    zeros = (maps == 0).mean((0, 1, 2))
    np.testing.assert_allclose(jaxprune.score(found, "apoz"), 1 - zeros, atol=1e-6)

    def loss(maps):
        logits = maps.mean((1, 2)) @ out["kernel"] + out["bias"]
        rows = jnp.arange(len(maps))
        return -jax.nn.log_softmax(logits)[rows, SPLIT.labels]

    out = variables()["params"]["out"]
    gradient = jax.grad(lambda m: loss(m).sum())(jnp.asarray(maps))
    products = np.abs(np.asarray(maps * gradient).sum((1, 2)) / 64).mean(0)
    scores = jaxprune.score(found, "taylor")
    np.testing.assert_allclose(scores, products, rtol=1e-4)
    whole = float(loss(jnp.asarray(maps)).mean())
    oracle = []
    for channel in range(WIDTHS[1]):
        keep = np.arange(WIDTHS[1]) != channel
        logits = by_hand("conv1", keep, np.zeros(WIDTHS[1]))
        rows = jax.nn.log_softmax(logits)[np.arange(40), SPLIT.labels]
        oracle.append(float(-rows.mean()) - whole)
    found = jaxprune.score(found, "oracle", fill="zero")
    np.testing.assert_allclose(
        found - found[0], np.array(oracle) - oracle[0], atol=1e-5
    )


def test_the_network_is_the_same_where_the_relu_follows_at_once():
    network = jaxprune.Network(apply, variables(), SPLIT.images[:2])
    assert network.with_relu("out") is network
    behind = network.with_relu("conv0")
    assert behind.layers["conv0"].output != network.layers["conv0"].output
    assert behind.layers["conv1"].output == network.layers["conv1"].output
    for copied in (copy.copy(behind), behind.with_example(SPLIT.images[:3])):
        assert copied.layers["conv0"].output == behind.layers["conv0"].output


def test_what_is_no_relu_is_refused():
    def gelu(variables, images):
        return apply(variables, images, activation=nn.gelu)

    with pytest.raises(jaxprune.InputError, match="tap 'relu' is not what follows"):
        jaxprune.tap_layer(gelu, variables(), SPLIT, layer="conv0", tap="relu")
    with pytest.raises(jaxprune.InputError, match="unknown tap 'gelu'"):
        jaxprune.compact(
            apply, variables(), "conv0", np.arange(6) > 1, tap="gelu",
            example=SPLIT.images,
        )  # fmt: skip
