"""Sweeps with a consumer's running sum, against networks computed one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import consumers
import jaxprune
import reference
from jaxprune._base.mesh import make_mesh
from random_data import random_variables
from selected import quick

RIDGE = 0.03


def sweep(apply, variables, split, fill, devices=1, **options):
    mesh = make_mesh(jax.devices()[:devices])
    tapped = jaxprune.tap_layer(
        apply, variables, split, layer="first", batch_size=8, mesh=mesh
    )
    scores = np.abs(jaxprune.criteria.mean(tapped.mean_feature_map))
    return jaxprune.sweep_layer(tapped, scores, fill=fill, **options)


def expected_logits(variables, split, consumer, order, fill, calibration):
    """Of every K, [K, N, C]: the consumer's input is worked out anew for each."""
    x = consumers.consumer_input(variables, split.images)
    fitted = consumers.consumer_input(variables, calibration)
    logits = []
    for k in range(len(order)):
        keep = np.argsort(order) >= k
        if fill == "linear":
            edited = consumers.predicted(
                x, fitted, keep, RIDGE, flat=consumer == "dense"
            )
        elif fill == "drop":
            edited = x * keep
        else:
            written = reference.prune(variables, "first", order[:k], fill)
            edited = consumers.consumer_input(written, split.images)
        logits.append(consumers.logits_from(variables, consumer, edited))
    return np.stack(logits)


@pytest.mark.parametrize(
    ("consumer", "fill"),
    quick(
        itertools.product(consumers.CONSUMERS, ("zero", "bias", "drop", "linear")),
        {
            *((consumer, "linear") for consumer in consumers.CONSUMERS),
            *(("dense", fill) for fill in ("zero", "bias", "drop")),
        },
    ),
)
def test_every_k_equals_networks_computed_one_by_one(consumer, fill):
    _, apply, variables, split = consumers.read(consumer)
    calibration = split.images[:20]
    given = fill
    if fill == "linear":
        given = jaxprune.linear_fill(
            apply, variables, calibration, layer="first", ridge=RIDGE
        )
    result = sweep(apply, variables, split, given)
    assert result.about["evaluation"] == "RunningSum"
    logits = expected_logits(
        variables, split, consumer, result.order, fill, calibration
    )
    for predictions, row in zip(result.predictions, logits, strict=True):
        reference.check_predictions(predictions, row)
    if consumer == "same":
        every = sweep(apply, variables, split, given, every_pair=True)
        assert every.about["evaluation"] == "EveryPair"
        np.testing.assert_array_equal(result.predictions, every.predictions)


@pytest.mark.parametrize("consumer", ["dense", "same"])
@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing(consumer, devices):
    _, apply, variables, split = consumers.read(consumer)
    fill = jaxprune.linear_fill(
        apply, variables, split.images, layer="first",
        mesh=make_mesh(jax.devices()[:devices]),
    )  # fmt: skip
    one = sweep(apply, variables, split, fill)
    many = sweep(apply, variables, split, fill, devices)
    np.testing.assert_array_equal(one.predictions, many.predictions)


def test_calibration_takes_batches_and_devices_together():
    _, apply, variables, split = consumers.read("same")
    fills = [
        jaxprune.linear_fill(
            apply, variables, split.images, layer="first", ridge=RIDGE,
            batch_size=size, mesh=make_mesh(jax.devices()[:devices]),
        )
        for size, devices in ((30, 1), (7, 2))
    ]  # fmt: skip
    one, other = (fill.moments["consumer"] for fill in fills)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)


def test_nothing_pruned_changes_nothing():
    _, apply, variables, split = consumers.read("same")
    fill = jaxprune.linear_fill(apply, variables, split.images[:3], layer="first")
    result = sweep(apply, variables, split, fill)
    logits = apply(variables, jnp.asarray(split.images))
    np.testing.assert_array_equal(result.predictions[0], logits.argmax(-1))


class TwoConsumers(nn.Module):
    """Two convolutions read the channels of 'first'."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        a = nn.relu(nn.Conv(5, (3, 3), name="a")(x))
        b = nn.relu(nn.Conv(4, (1, 1), name="b")(nn.max_pool(x, (2, 2), (2, 2))))
        x = jnp.concatenate([a.mean((1, 2)), b.mean((1, 2))], -1)
        return nn.Dense(4, name="out")(x)


def test_two_consumers_have_a_fold_each():
    model = TwoConsumers()
    _, _, _, split = consumers.read("same")
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    fill = jaxprune.linear_fill(apply, variables, split.images, layer="first")
    assert set(fill.moments) == {"a", "b"}
    result = sweep(apply, variables, split, fill)
    assert result.about["evaluation"] == "EveryPair"
    x = jnp.asarray(split.images, jnp.float32) / 255
    for k in (1, 3, 5):
        keep = result.keep(k)
        small = jaxprune.compact(
            model, variables, "first", keep, fill=fill, example=x[:4]
        )
        np.testing.assert_array_equal(small(x).argmax(-1), result.predictions[k])


def test_bfloat16(standard_promotion):
    _, apply, variables, split = consumers.read("same", dtype=jnp.bfloat16)
    fill = jaxprune.linear_fill(
        apply, variables, split.images, layer="first", ridge=RIDGE
    )
    result = sweep(apply, variables, split, fill)
    assert result.about["evaluation"] == "EveryPair"
    logits = expected_logits(
        variables, split, "same", result.order, "linear", split.images
    )
    top = np.sort(logits, axis=-1)
    margin = (top[..., -1] - top[..., -2]) / np.abs(logits).max()
    differs = result.predictions != logits.argmax(-1)
    # bfloat16 has eight binary digits, and three layers round.
    assert (margin[differs] < 0.05).all() and differs.mean() < 0.25


class Shortcut(nn.Module):
    """The images reach the end around 'first' and its consumer, too."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        y = nn.relu(nn.Conv(10, (3, 3), name="first")(x))
        x = x + nn.Conv(8, (3, 3), name="consumer")(y)
        return nn.Dense(4, name="out")(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("fill", ["zero", "mean", "drop", "linear"])
def test_a_residual_block_sums_up_its_inner_convolution(fill):
    model = Shortcut()
    _, _, _, split = consumers.read("same")
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    if fill == "linear":
        fill = jaxprune.linear_fill(apply, variables, split.images, layer="first")
    fast = sweep(apply, variables, split, fill)
    every = sweep(apply, variables, split, fill, every_pair=True)
    assert fast.about["evaluation"] == "RunningSum"
    np.testing.assert_array_equal(fast.predictions, every.predictions)
