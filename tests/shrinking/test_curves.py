"""Loss curves against masked networks written out, and answers that are planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base.mesh import make_mesh
from jaxprune.adapters.queries import find_groups
from jaxprune.fills.calibration import linear_fills
from jaxprune.ranking.order import prefix_masks
from jaxprune.recipes.models import PairCNN
from jaxprune.shrinking.curves import Curve, measured_curves
from jaxprune.shrinking.halves import halves
from jaxprune.shrinking.selection import selection_order
from jaxprune.tasks.imitation import divergence
from masked import network_of, overwritten
from random_data import random_split
from toys import network as toy

SHAPE = (16, 16, 2)
MODEL = PairCNN(widths=(6, 8, 9), dense=(11, 3))


def network():
    apply, variables = toy(MODEL, SHAPE)
    return apply, variables, jnp.asarray(random_split(n=70, shape=SHAPE).images)


def curves_of(apply, variables, images, names):
    groups = find_groups(apply, variables, images)
    network = network_of(apply, variables, images)
    found = [groups.find(name) for name in names]
    orders, fitted = halves(network, images, found, make_mesh())
    found = measured_curves(network, fitted, orders, divergence, make_mesh())
    return dict(found), fitted


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_loss(apply, variables, images, fill, keep, consumer):
    """The consumer's pruned inputs written over, its input's other features left."""
    regression = fill.regressions(keep)[consumer]
    whole = softmax(np.asarray(apply(variables, images), np.float64))

    def masked(run, x):
        x = np.array(x, np.float64)
        for features, a, c in zip(
            regression.features, regression.coefficients, regression.constants,
            strict=True,
        ):  # fmt: skip
            kept = keep[np.arange(len(features)) % len(keep)]
            part = x[..., features]
            predicted = part @ a + c
            x[..., features] = np.where(kept, part, predicted)
        return run(jnp.asarray(x, jnp.float32))

    cut = softmax(np.asarray(overwritten(apply, consumer, masked)(variables, images)))
    return (whole * np.log(whole / cut)).sum(-1).mean()


def test_the_halves_are_of_other_images_each():
    """Fills and orders of one half are those that its images alone would have."""
    apply, variables, images = network()
    group = find_groups(apply, variables, images).find("conv3")
    net = network_of(apply, variables, images)
    orders, fitted = halves(net, images, [group], make_mesh())
    assert sum(len(half.images) for half in fitted) == len(images)
    for half, other in zip(fitted, reversed(fitted), strict=True):
        ((name, moments),) = half.fills["conv3"].moments.items()
        alone = linear_fills(net, other.images, [group], ridge=moments.ridge)["conv3"]
        np.testing.assert_allclose(moments.covariance, alone.moments[name].covariance)
        np.testing.assert_array_equal(half.orders["conv3"], selection_order(alone))
    of_all = linear_fills(net, images, [group], ridge=moments.ridge)["conv3"]
    np.testing.assert_array_equal(orders["conv3"], selection_order(of_all))


def test_a_unit_of_a_class_that_one_half_lacks_is_not_free():
    """Its class is in the other half: the order without it pays there."""
    rng = np.random.default_rng(0)
    images = np.abs(rng.normal(size=(64, 6))).astype(np.float32)
    second = np.random.default_rng(0).permutation(64) % 2 == 1
    images[:, 5] = np.where(second, 5.0, 0.0)  # read by the last unit alone

    def apply(variables, x):
        hidden = jax.nn.relu(x @ variables["first"])
        return hidden @ variables["last"]

    first = np.abs(rng.normal(size=(6, 8))).astype(np.float32)
    first[5], first[:, 7] = 0, np.eye(6)[5]
    last = rng.normal(size=(8, 4)).astype(np.float32)
    net = network_of(apply, {"first": first, "last": last}, images)
    orders, fitted = halves(net, images, net.groups.groups.values(), make_mesh())
    (name,) = orders
    rank = [int(np.flatnonzero(half.orders[name] == 7)[0]) for half in fitted]
    assert min(rank) == 0
    ((_, curve),) = measured_curves(net, fitted, orders, divergence, make_mesh())
    assert curve.loss(7) > 0.01


@pytest.mark.parametrize(
    ("group", "consumer"),
    [("conv2", "conv3"), ("conv3", "dense1"), ("dense1", "dense2")],
)
def test_losses_equal_the_slow_way(group, consumer):
    apply, variables, images = network()
    curves, fitted = curves_of(apply, variables, images, [group])
    curve = curves[group]
    assert curve.losses[0] == 0 and curve.widths[0] == len(curve.order)
    for i in (1, len(curve.widths) - 1):
        assert curve.keep(curve.widths[i]).sum() == curve.widths[i]
        pruned = len(curve.order) - curve.widths[i]
        slow = 0
        for half in fitted:
            keep = prefix_masks(half.orders[group], [pruned])[0]
            fill, share = half.fills[group], len(half.images) / len(images)
            found = slow_loss(apply, variables, half.images, fill, keep, consumer)
            slow += share * found
        assert curve.losses[i] >= slow - 1e-6  # never falling
        assert min(abs(loss - slow) for loss in curve.losses) < 1e-5


def test_a_dead_unit_and_a_copy_cost_nothing():
    apply, variables, images = network()
    variables["params"]["dense2"]["kernel"][3] = 0
    variables["params"]["dense1"]["kernel"][:, 5] = 0
    variables["params"]["dense1"]["bias"][5] = 0
    curves, _ = curves_of(apply, variables, images, ["dense1"])
    curve = curves["dense1"]
    assert {3, 5} <= set(curve.order[:4])  # others never fire on these images
    assert curve.loss(9) == pytest.approx(0, abs=1e-5)
    assert curve.loss(2) > 100 * max(curve.loss(9), 1e-7)


def test_between_measured_widths_lies_a_straight_line():
    curve = Curve((0, 1, 2, 3), (4, 2, 1), (0.0, 1.0, 5.0))
    assert [curve.loss(w) for w in (4, 3, 2, 1.5, 1)] == [0, 0.5, 1, 3, 5]
    assert curve.keep(3).tolist() == [False, True, True, True]


def test_divergence_is_zero_for_equal_predictions_and_positive_otherwise():
    z = jax.random.normal(jax.random.key(0), (5, 4))
    np.testing.assert_allclose(divergence(z + 3, z), 0, atol=1e-6)
    assert (divergence(-z, z) > 0).all()
