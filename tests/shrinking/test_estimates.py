"""Estimated loss curves against slopes along written-out fills, and measured curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.ranking.order import prefix_masks
from jaxprune.recipes.models import PairCNN
from jaxprune.shrinking import estimates
from jaxprune.shrinking.halves import halves
from jaxprune.tasks import imitation
from jaxprune.tasks.imitation import (
    Probe,
    divergence,
    divergence_probe,
    relative_error,
    relative_error_probe,
)
from masked import network_of, overwritten
from random_data import random_split, random_variables
from toys import network as toy

SHAPE = (16, 16, 2)
MODEL = PairCNN(widths=(6, 8, 9), dense=(11, 3))
KEYS = jax.random.split(jax.random.key(0), 2)
IMAGES = jnp.asarray(random_split(n=70, shape=SHAPE).images)


# The mean square of the first logit's change, for the slopes to be compared.
FIRST = Probe(
    lambda outputs, keys: outputs[:, :1],
    lambda outputs, changes: jnp.square(changes[..., 0]),
)


def curves_of(apply, variables, images, names, probe=FIRST):
    network = network_of(apply, variables, images)
    groups = [network.groups.find(name) for name in names]
    orders, fitted = halves(network, images, groups, make_mesh())
    found = estimates.estimated_curves(network, fitted, orders, probe, make_mesh())
    return found, fitted


@pytest.mark.parametrize(
    ("group", "consumer"),
    [("conv2", "conv3"), ("conv3", "dense1"), ("dense1", "dense2")],
)
def test_losses_are_slopes_along_the_fill(group, consumer, monkeypatch):
    """The directional derivative of the logit when the consumer's input is replaced."""
    monkeypatch.setattr(estimates, "_LARGEST_BATCH", 32)  # and a batch that is not full
    apply, variables = toy(MODEL, SHAPE)
    curves, fitted = curves_of(apply, variables, IMAGES, ["conv2", "conv3", "dense1"])
    curve = curves[group]
    assert curve.losses[0] == 0

    def square(half, width):
        order = half.orders[group]
        keep = prefix_masks(order, [len(order) - width])[0]
        regression = half.fills[group].regressions(keep)[consumer]

        def along(share):
            def edit(run, x):
                step = regression(x, jnp.asarray(keep)) - x
                return run(x + share.reshape(-1, *(1,) * (x.ndim - 1)) * step)

            found = overwritten(apply, consumer, edit)(variables, half.images)
            return found[:, 0].sum()

        slopes = jax.grad(along)(jnp.zeros(len(half.images)))
        return float(jnp.square(slopes).sum())

    slow = [
        sum(square(half, width) for half in fitted) / len(IMAGES)
        for width in curve.widths[1:]
    ]
    slow = np.maximum.accumulate(slow)
    np.testing.assert_allclose(curve.losses[1:], slow, rtol=1e-3)


def test_where_a_linear_output_follows_the_estimate_is_the_loss():
    """The relative error of one number is a square: nothing is left out."""

    class Regressor(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(7, (3, 3), name="conv")(x))
            x = nn.relu(nn.ConvTranspose(9, (3, 3), (2, 2), name="rise")(x))
            return nn.Dense(1, name="out")(x.mean((1, 2)))

    x = np.random.default_rng(0).normal(size=(40, 6, 6, 2)).astype(np.float32)
    network = jaxprune.Network(Regressor().apply, random_variables(Regressor(), x), x)
    found = [
        jaxprune.analyse(network, x, curves=how).curves["rise"]
        for how in ("estimated", "measured")
    ]
    assert found[0].order == found[1].order
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-3)


def drawn(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_changes_of_all_logits_are_the_divergence_however_large(softmax, size):
    rng = np.random.default_rng(1)
    z = -jnp.sort(-drawn(rng, 7, 5))  # in the order of the probe's numbers
    step = size * drawn(rng, 2, 7, 5)
    outputs = nn.softmax if softmax else lambda z: z
    probe = divergence_probe()
    found = probe.loss(outputs(z), step)
    exact = jnp.stack([divergence(z + way, z) for way in step])
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-6)
    slope = jax.jvp(lambda z: probe.values(outputs(z), KEYS), (z,), (step[0],))[1]
    found = probe.loss(outputs(z), slope)
    np.testing.assert_allclose(found, exact[0], rtol=1e-3, atol=1e-6)


def test_of_many_classes_the_unlikely_ones_change_alike(monkeypatch):
    """Then it is exact; where they do not, the mean of what they do is taken."""
    monkeypatch.setattr(imitation, "_CLASSES", 3)
    rng = np.random.default_rng(2)
    z = 3 * drawn(rng, 6, 9)
    unlikely = jnp.argsort(jnp.argsort(-z)) >= 3
    step = jnp.where(unlikely, 0.7, drawn(rng, 6, 9))
    probe = divergence_probe()

    def estimate(step):
        slope = jax.jvp(lambda z: probe.values(z, KEYS), (z,), (step,))[1]
        assert slope.shape == (6, 4)
        return probe.loss(z, slope)

    exact = divergence(z + step, z)
    np.testing.assert_allclose(estimate(step), exact, rtol=1e-3, atol=1e-6)
    step += jnp.where(unlikely, 0.5 * drawn(rng, 6, 9), 0)
    assert (estimate(step) <= divergence(z + step, z) + 1e-6).all()


def test_of_logits_at_positions_half_the_mean_square_is_the_divergence():
    rng = np.random.default_rng(3)
    z, step = drawn(rng, 4, 2, 3, 5), drawn(rng, 4, 2, 3, 5)
    probe, keys = divergence_probe(), jax.random.split(jax.random.key(0), 4000)
    slope = jax.jvp(lambda z: probe.values(z, keys), (z,), (step,))[1]
    small = 1e-2
    exact = divergence(z + small * step, z) / small**2
    np.testing.assert_allclose(probe.loss(z, slope), exact, rtol=0.15)


def test_half_the_mean_square_of_random_sums_is_the_relative_error():
    rng = np.random.default_rng(4)
    whole, step = ({"a": drawn(rng, 3, 4, 5), "b": drawn(rng, 3, 2)} for _ in range(2))
    probe, keys = relative_error_probe(), jax.random.split(jax.random.key(0), 4000)

    def values(outputs):
        return probe.values({**outputs, "classes": jnp.arange(3)}, keys)

    slope = jax.jvp(values, (whole,), (step,))[1]
    exact = relative_error(jax.tree.map(jnp.add, whole, step), whole)
    np.testing.assert_allclose(probe.loss(whole, slope), exact, rtol=0.15)


def test_small_losses_are_estimated_as_they_are_measured():
    """The last consumer's rows are small; before it, ReLUs are left out, too."""
    apply, variables = toy(MODEL, SHAPE)
    variables["params"]["dense2"]["kernel"][:] *= 0.1
    network = network_of(apply, variables, IMAGES)
    found = [
        jaxprune.analyse(network, IMAGES, curves=how).curves
        for how in ("estimated", "measured")
    ]
    for name, curve in found[1].items():
        assert found[0][name].order == curve.order
        losses = np.array(found[0][name].losses), np.array(curve.losses)
        some = losses[1] > 1e-7
        ratios = losses[0][some] / losses[1][some]
        low, high = (0.7, 1.4) if name == "dense1" else (0.3, 3)
        assert ((low < ratios) & (ratios < high)).all()


class Rounded(nn.Module):
    """Between `first` and `second` nothing has a derivative."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        x = jnp.round(nn.Conv(7, (3, 3), name="second")(x) * 20) / 20
        return nn.Dense(3, name="out")(nn.relu(x).mean((1, 2)))


class Repeated(nn.Module):
    """Behind `conv` a loop whose length is not known when it is traced."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = nn.Dense(3, name="out")(nn.relu(x).mean((1, 2)))
        return jax.lax.while_loop(lambda y: y.sum() > 1e9, lambda y: y / 2, x)


@pytest.mark.parametrize(
    ("model", "same"), [(Rounded(), ["first"]), (Repeated(), ["conv"])]
)
def test_what_has_no_derivative_is_measured(model, same):
    x = np.random.default_rng(3).normal(size=(20, 6, 6, 2)).astype(np.float32)
    network = jaxprune.Network(model.apply, random_variables(model, x), x)
    told = []
    found = [
        jaxprune.analyse(
            network, x, curves=how, on_curve=lambda name, curve: told.append(name)
        ).curves
        for how in ("estimated", "measured")
    ]
    for name in same:
        assert found[0][name] == found[1][name]
        assert max(found[0][name].losses) > 0
    assert sorted(told) == sorted([*found[0], *found[1]])


def test_an_unknown_way_is_refused():
    network = network_of(*toy(MODEL, SHAPE), IMAGES)
    with pytest.raises(InputError, match=r"curves 'guessed'.*estimated, measured"):
        jaxprune.analyse(network, IMAGES, curves="guessed")
