"""Sweeps with a reader's running sum, against networks computed one by one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
import readers
import reference
from jaxprune.mesh import make_mesh
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


def expected_logits(variables, split, reader, order, fill, calibration):
    """Of every K, [K, N, C]: the reader's input is worked out anew for each."""
    x = readers.reader_input(variables, split.images)
    fitted = readers.reader_input(variables, calibration)
    logits = []
    for k in range(len(order)):
        keep = np.argsort(order) >= k
        if fill == "linear":
            edited = readers.predicted(x, fitted, keep, RIDGE, flat=reader == "dense")
        elif fill == "drop":
            edited = x * keep
        else:
            written = reference.prune(variables, "first", order[:k], fill)
            edited = readers.reader_input(written, split.images)
        logits.append(readers.logits_from(variables, reader, edited))
    return np.stack(logits)


@pytest.mark.parametrize(
    ("reader", "fill"),
    quick(
        itertools.product(readers.READERS, ("zero", "bias", "drop", "linear")),
        {
            *((reader, "linear") for reader in readers.READERS),
            *(("dense", fill) for fill in ("zero", "bias", "drop")),
        },
    ),
)
def test_every_k_equals_networks_computed_one_by_one(reader, fill):
    _, apply, variables, split = readers.read(reader)
    calibration = split.images[:20]
    given = fill
    if fill == "linear":
        given = jaxprune.linear_fill(
            apply, variables, calibration, layer="first", ridge=RIDGE
        )
    result = sweep(apply, variables, split, given)
    assert result.about["evaluation"] == "RunningSum"
    logits = expected_logits(variables, split, reader, result.order, fill, calibration)
    for predictions, row in zip(result.predictions, logits, strict=True):
        reference.check_predictions(predictions, row)
    if reader == "same":
        every = sweep(apply, variables, split, given, every_pair=True)
        assert every.about["evaluation"] == "EveryPair"
        np.testing.assert_array_equal(result.predictions, every.predictions)


@pytest.mark.parametrize("reader", ["dense", "same"])
@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing(reader, devices):
    _, apply, variables, split = readers.read(reader)
    fill = jaxprune.linear_fill(
        apply, variables, split.images, layer="first",
        mesh=make_mesh(jax.devices()[:devices]),
    )  # fmt: skip
    one = sweep(apply, variables, split, fill)
    many = sweep(apply, variables, split, fill, devices)
    np.testing.assert_array_equal(one.predictions, many.predictions)


def test_calibration_takes_batches_and_devices_together():
    _, apply, variables, split = readers.read("same")
    fills = [
        jaxprune.linear_fill(
            apply, variables, split.images, layer="first", ridge=RIDGE,
            batch_size=size, mesh=make_mesh(jax.devices()[:devices]),
        )
        for size, devices in ((30, 1), (7, 2))
    ]  # fmt: skip
    one, other = (fill.moments["reader"] for fill in fills)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)


def test_nothing_pruned_changes_nothing():
    _, apply, variables, split = readers.read("same")
    fill = jaxprune.linear_fill(apply, variables, split.images[:3], layer="first")
    result = sweep(apply, variables, split, fill)
    logits = apply(variables, jnp.asarray(split.images))
    np.testing.assert_array_equal(result.predictions[0], logits.argmax(-1))


class TwoReaders(nn.Module):
    """Two convolutions read the channels of 'first'."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        a = nn.relu(nn.Conv(5, (3, 3), name="a")(x))
        b = nn.relu(nn.Conv(4, (1, 1), name="b")(nn.max_pool(x, (2, 2), (2, 2))))
        x = jnp.concatenate([a.mean((1, 2)), b.mean((1, 2))], -1)
        return nn.Dense(4, name="out")(x)


def test_two_readers_have_a_fold_each():
    model = TwoReaders()
    _, _, _, split = readers.read("same")
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
    _, apply, variables, split = readers.read("same", dtype=jnp.bfloat16)
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
    """The images reach the end around 'first' and its reader, too."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        y = nn.relu(nn.Conv(10, (3, 3), name="first")(x))
        x = x + nn.Conv(8, (3, 3), name="reader")(y)
        return nn.Dense(4, name="out")(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("fill", ["zero", "mean", "drop", "linear"])
def test_a_residual_block_sums_up_its_inner_convolution(fill):
    model = Shortcut()
    _, _, _, split = readers.read("same")
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    if fill == "linear":
        fill = jaxprune.linear_fill(apply, variables, split.images, layer="first")
    fast = sweep(apply, variables, split, fill)
    every = sweep(apply, variables, split, fill, every_pair=True)
    assert fast.about["evaluation"] == "RunningSum"
    np.testing.assert_array_equal(fast.predictions, every.predictions)
