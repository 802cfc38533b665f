"""Every way of evaluating gives what the plain one gives, on any number of devices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
import reference
from jaxprune._base.mesh import make_mesh
from jaxprune.data.splits import image_split
from jaxprune.evaluation.changed_pairs import carry_forward, changed_pairs
from jaxprune.evaluation.program import Plan
from jaxprune.evaluation.running_sum import STEP, RunningSum
from jaxprune.fills.fill import ConstantFill, resolve_fill
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from jaxprune.sweep.oracle import MaskLosses
from jaxprune.sweep.strategy import choose_evaluation
from random_data import random_split, random_variables
from selected import quick
from toys import network, planted, run_sweep

# Which way each layer of Chain is evaluated.
WAYS = {"last": "RunningSum", "inner": "ChangedPairs"}


class Chain(nn.Module):
    """A convolution read by two others, and one of these read by a dense layer."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        conv, dense = (
            partial(nn.Conv, dtype=self.dtype),
            partial(nn.Dense, dtype=self.dtype),
        )
        x = nn.relu(conv(9, (3, 3), name="inner")(x))
        x = nn.BatchNorm(use_running_average=True, dtype=self.dtype, name="norm")(x)
        side = nn.relu(conv(2, (1, 1), name="side")(x))
        x = nn.relu(conv(9, (3, 3), name="last")(x))
        x = jnp.concatenate([x, side], axis=-1)
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return dense(4, name="out")(nn.relu(dense(10, name="consumer")(x)))


def chain(dtype=jnp.float32):
    return *network(Chain(dtype), (8, 8, 3)), random_split()


@pytest.mark.parametrize("layer", WAYS)
@pytest.mark.parametrize("fill", ["zero", "bias", "mean", "drop"])
def test_every_way_equals_the_dense_one_and_written_weights(layer, fill):
    apply, variables, split = chain()
    fast = run_sweep(apply, variables, split, layer, fill=fill, mask_chunk=3)
    dense = run_sweep(apply, variables, split, layer, fill=fill, every_pair=True)
    assert dense.about["evaluation"] == "EveryPair"
    if fill != "drop":
        assert fast.about["evaluation"] == WAYS[layer]
        mean = fast.mean_feature_map.mean((0, 1))
        logits = [
            apply(
                reference.prune(variables, layer, fast.order[:k], fill, mean),
                split.images,
            )
            for k in fast.ks
        ]
        reference.check_predictions(fast.predictions, np.stack(logits))
        reference.check_predictions(dense.predictions, np.stack(logits))
        losses = reference.cross_entropy(np.stack(logits), split.labels)
        # float32 sums in another order.
        np.testing.assert_allclose(fast.cross_entropy, losses, rtol=1e-4)
        assert np.ptp(losses) > 0.01
    np.testing.assert_allclose(fast.cross_entropy, dense.cross_entropy, rtol=1e-4)
    # Float32 sums in another order: equal but for ties closer than their rounding.
    assert (fast.predictions != dense.predictions).mean() < 0.01


@pytest.mark.parametrize(
    ("layer", "every_pair"),
    [("last", False), ("inner", False), ("last", True)],
)
def test_devices_change_nothing(layer, every_pair):
    apply, variables, split = chain()
    one, two, eight = (
        run_sweep(
            apply, variables, split, layer, every_pair=every_pair,
            mesh=make_mesh(jax.local_devices()[:devices]),
        )
        for devices in (1, 2, 8)
    )  # fmt: skip
    for some in (two, eight):
        np.testing.assert_array_equal(some.predictions, one.predictions)
        np.testing.assert_allclose(some.scores, one.scores, rtol=1e-5)
        np.testing.assert_allclose(some.cross_entropy, one.cross_entropy, rtol=1e-5)


def test_meshes_are_as_square_as_the_devices_allow():
    shapes = [dict(make_mesh(jax.local_devices()[:n]).shape) for n in (1, 2, 6, 8)]
    assert shapes == [
        {"data": 1, "mask": 1},
        {"data": 2, "mask": 1},
        {"data": 3, "mask": 2},
        {"data": 4, "mask": 2},
    ]


def test_changed_pairs_by_hand():
    differs = np.array([[0, 0, 1, 0], [1, 0, 0, 1]], bool)  # images by rank
    differs = jnp.asarray(differs)
    changed = changed_pairs(differs, jnp.array([0, 1, 2, 3]))
    assert changed.T.astype(int).tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    # From 0 to 3 pruned channels at once, and no mask without any.
    some = changed_pairs(differs, jnp.array([1, 3]))
    assert some.T.astype(int).tolist() == [[1, 1], [1, 0]]


def test_predictions_are_carried_forward():
    changed = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], bool)
    losses = np.array([0.5, 0.6, 0.7, 0.8], np.float32)
    judged = {"class": np.zeros((4, 2), int), "loss": np.zeros((4, 2), np.float32)}
    judged["class"][changed], judged["loss"][changed] = [5, 6, 7, 8], losses
    carried = carry_forward(jnp.asarray(changed), jax.tree.map(jnp.asarray, judged))
    classes = carried["class"]
    assert classes.tolist() == [[5, 6], [5, 7], [8, 7], [8, 7]]
    np.testing.assert_array_equal(carried["loss"], np.float32(classes / 10))


class TwoConsumers(nn.Module):
    """The planted channels, read by two convolutions."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (1, 1), name="only")(x))
        x = nn.Conv(2, (1, 1), name="out")(x) + nn.Conv(2, (1, 1), name="idle")(x)
        return x.mean((1, 2))


@pytest.mark.parametrize("way", ["RunningSum", "ChangedPairs"])
def test_the_number_of_changed_pairs_is_exact(way):
    """Channel 0 is dead on every image, 3 on 15 of 40; 1 never holds its fill, 0."""
    apply, variables, split = planted()
    images = split.images.copy()
    images[:15, ..., 1] = 0
    split = type(split)(images, split.sources, split.labels, split.class_names)
    if way == "ChangedPairs":
        out = variables["params"]["out"]["kernel"][None, None]
        variables["params"]["out"]["kernel"] = out
        variables["params"]["idle"] = {"kernel": 0 * out, "bias": np.zeros(2, "f")}

        def apply(variables, x, **kwargs):
            return TwoConsumers().apply(
                variables, x.astype(jnp.float32) / 255, **kwargs
            )

    scores = np.array([0, 1, 3, 2], np.float32)  # order 0, 1, 3, 2
    result = run_sweep(apply, variables, split, "only", scores=scores)
    assert result.about["evaluation"] == way
    assert result.about["pairs"] == 4 * 40
    # K = 0: all; K = 1: none, 0 is dead; K = 2: all; K = 3: those that show channel 3.
    assert result.about["pairs_evaluated"] == 40 + 0 + 40 + 25
    dense = run_sweep(apply, variables, split, "only", scores=scores, every_pair=True)
    np.testing.assert_array_equal(result.predictions, dense.predictions)


def test_where_nothing_repeats_every_pair_is_evaluated():
    apply, variables, split = chain()
    result = run_sweep(apply, variables, split, "inner", tap="conv")
    assert result.about["pairs_evaluated"] == result.about["pairs"]


def test_more_channels_than_one_step_and_features_that_are_no_channel():
    """A dense layer that reads a flattened map beside constants."""

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(3, (3, 3), name="first")(x))
            x = nn.relu(nn.Conv(70, (3, 3), name="tapped")(x))
            x = nn.max_pool(x, (4, 4), (4, 4)).reshape(x.shape[0], -1)
            other = jnp.broadcast_to(jnp.array([1.0, -1.0]), (len(x), 2))
            x = jnp.concatenate([other, x], axis=-1)
            return nn.Dense(4, name="out")(nn.relu(nn.Dense(16, name="consumer")(x)))

    apply, variables = network(Wide(), (8, 8, 3))
    split = random_split(n=31)
    fast = run_sweep(apply, variables, split, fill="mean")
    dense = run_sweep(apply, variables, split, fill="mean", every_pair=True)
    assert fast.about["evaluation"] == "RunningSum"
    np.testing.assert_array_equal(fast.predictions, dense.predictions)
    assert len({tuple(row) for row in fast.predictions.tolist()}) > 3


def test_all_scores_equal_and_all_channels_dead():
    apply, variables, split = planted()
    variables["params"]["only"]["bias"][:] = -9
    result = run_sweep(apply, variables, split, scores=np.zeros(4, np.float32))
    assert result.order.tolist() == [0, 1, 2, 3]
    assert result.about["pairs_evaluated"] == 40
    assert (result.predictions == result.predictions[0]).all()


@jax.numpy_dtype_promotion("standard")  # flax's BatchNorm mixes types
@pytest.mark.parametrize("layer", WAYS)
def test_bfloat16_equals_the_dense_way_in_bfloat16(layer):
    apply, variables, split = chain(jnp.bfloat16)
    fast = run_sweep(apply, variables, split, layer)
    assert fast.about["evaluation"] == "ChangedPairs"
    dense = run_sweep(apply, variables, split, layer, every_pair=True)
    logits = np.stack(
        [
            apply(
                reference.prune(variables, layer, fast.order[:k], "zero"), split.images
            )
            for k in fast.ks
        ]
    ).astype(np.float32)
    top = np.sort(logits, axis=-1)
    # XLA rounds sums to bfloat16's 8 bits where it likes: near ties may go either way.
    clear = top[..., -1] - top[..., -2] > 2**-6 * np.abs(logits).max()
    assert clear.mean() > 0.7
    np.testing.assert_array_equal(fast.predictions[clear], dense.predictions[clear])


@pytest.mark.parametrize(
    ("precision", "way"), [("highest", "RunningSum"), ("BF16_BF16_F32", "ChangedPairs")]
)
def test_a_layer_that_rounds_its_factors_in_its_own_way_is_not_summed_up(
    precision, way
):
    apply, variables, split = chain()

    def at_precision(variables, images, **kwargs):
        with jax.default_matmul_precision(precision):
            return apply(variables, images, **kwargs)

    found = run_sweep(at_precision, variables, split, ks=(0,))
    assert found.about["evaluation"] == way


def test_few_units_that_read_many_features_make_no_large_batches():
    """Four units that read 64 features of each channel; 23 images and 6 masks."""

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(6, (3, 3), name="conv")(x))
            return nn.Dense(4, name="out")(x.reshape(len(x), -1))

    apply, variables = network(Flat(), (8, 8, 3))
    tapped = tap_layer(apply, variables, random_split(), tap="relu")
    plan = Plan(
        np.arange(6), tuple(range(6)), ConstantFill("zero", np.zeros(6, np.float32))
    )
    way, images = choose_evaluation(tapped, plan, None, False)
    assert isinstance(way.way, RunningSum)
    assert way.way.pairs <= STEP * images
    assert way.way.pairs * STEP * 64 <= 2**22


class Scaled(nn.Module):
    """Channels of one convolution that a dense layer, or a padded one, reads."""

    dense: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(37, (1, 1), name="only")(x))
        if self.dense:
            return nn.Dense(3, name="out")(x.reshape(len(x), -1))
        return nn.Conv(3, (3, 3), name="out")(x).mean((1, 2))


def of_any_scale(dense, seed=0, **options):
    """A layer whose channels are of twelve decades; and their scales."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(12, 3, 3, 2)).astype(np.float32)
    variables = random_variables(Scaled(dense), images[:1])
    scales = np.float32(10.0 ** rng.uniform(-6, 6, 37))
    for leaf in variables["params"]["only"].values():
        leaf *= scales
    split = image_split(images, np.arange(12) % 3, ("a", "b", "c"))
    apply = Scaled(dense).apply
    tapped = tap_layer(apply, variables, split, layer="only", tap="relu", **options)
    return tapped, scales


@pytest.mark.parametrize("dense", [True, False])
def test_the_linear_fill_beside_a_channel_far_from_zero(dense):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(64, 3, 3, 2)).astype(np.float32)
    variables = random_variables(Scaled(dense), images[:1])
    variables["params"]["only"]["bias"][5] = 1e6
    split = image_split(images, np.arange(64) % 3, ("a", "b", "c"))
    apply = Scaled(dense).apply
    tapped = tap_layer(apply, variables, split, layer="only", tap="relu")
    fill = jaxprune.linear_fill(apply, variables, images, layer="only")
    fast, slow = (
        sweep_layer(tapped, rng.permutation(37) / 37, fill=fill, every_pair=every)
        for every in (False, True)
    )
    np.testing.assert_array_equal(fast.predictions, slow.predictions)
    small = jaxprune.shrink(Scaled(dense), variables, images, speedup=1.5)
    assert small.proof.bound_used < 1


@pytest.mark.parametrize("fill", ["zero", "bias", "mean", "drop"])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("seed", quick(range(4), (0,)))
def test_channels_of_any_scale_leave_no_rounding_behind(seed, dense, fill):
    """Twelve decades, the largest pruned first: what stays is as good as without it."""
    tapped, scales = of_any_scale(dense, seed)
    scores = -scales.astype(float)
    fast = sweep_layer(tapped, scores, fill=fill)
    slow = sweep_layer(tapped, scores, fill=fill, every_pair=True)
    assert fast.about["evaluation"] == "RunningSum"
    # Logits of the last K are near 1e-6, those of the first near 1e6.
    np.testing.assert_allclose(fast.cross_entropy, slow.cross_entropy, rtol=1e-4)
    np.testing.assert_array_equal(fast.predictions, slow.predictions)


@pytest.mark.parametrize("fill", ["zero", "mean", "drop"])
@pytest.mark.parametrize("dense", [True, False])
def test_losses_without_a_channel_of_any_scale_are_those_of_a_sweep(dense, fill):
    """Whatever went before, what is left is not rounded to the one that goes."""
    tapped, scales = of_any_scale(dense, criteria=["oracle"])
    order = np.argsort(-scales)
    slow = sweep_layer(tapped, -scales.astype(float), fill=fill, every_pair=True)
    resolved = resolve_fill(
        fill, layer="only", bias=np.zeros(37), mean=tapped.channel_means
    )
    losses = MaskLosses(tapped, resolved)
    assert type(losses._programs.way).__name__ == "_ByConsumer"
    for k in (0, 1, 8, 20, 34):
        kept = np.ones(37, bool)
        kept[order[:k]] = False
        found = losses(kept)
        np.testing.assert_allclose(found.before, slow.cross_entropy[k], rtol=1e-4)
        one_more = found.without[order[k]]
        np.testing.assert_allclose(one_more, slow.cross_entropy[k + 1], rtol=1e-4)
    kept = np.isin(np.arange(37), order[[0, *range(30, 37)]])
    without = losses(kept).without[order[0]]
    np.testing.assert_allclose(without, slow.cross_entropy[30], rtol=1e-4)
