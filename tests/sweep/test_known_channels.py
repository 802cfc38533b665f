"""Criteria of a network whose channels are known: gathered, measured, ranked."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import consumers
import jaxprune
import reference
import toys
from jaxprune._base.mesh import make_mesh
from jaxprune.fills import leave_one_out
from jaxprune.fills.fill import ConstantFill, MeanFill
from jaxprune.fills.linear import Moments
from jaxprune.ranking.criteria import CRITERIA, Criterion
from jaxprune.ranking.statistics import Activations
from jaxprune.sweep import oracle, statistics, strategy
from masked import given_to, masked_logits, pruning_of
from random_data import random_split

DEAD, CONSTANT, FIRST, SECOND, DUPLICATE = range(5)


class Known(nn.Module):
    """Class = brighter colour plane, seen by FIRST and by SECOND and its DUPLICATE."""

    norm: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (1, 1), name="only")(x))
        if self.norm:
            x = nn.BatchNorm(True, epsilon=0.0, name="norm")(x)
        return nn.Dense(2, name="out")(x.mean((1, 2)))


SCALE = np.array([0.1, 0.2, -3, 1, 1], np.float32)
MEAN = np.array([0, 0.3, 0.1, 0.2, 0.2], np.float32)


def labelled(n, seed=0):
    split = random_split(n=n, shape=(2, 3, 2), classes=2, seed=seed)
    return replace(split, labels=split.images.sum((1, 2), dtype=np.int64).argmax(1))


def known(norm=True):
    kernel = np.zeros((1, 1, 2, 5), np.float32)
    kernel[0, 0, 0, FIRST] = 1
    kernel[0, 0, 1, [SECOND, DUPLICATE]] = 1
    out = np.array([[3, 3], [1, 0], [-4, 0], [0, 6], [0, 6]], np.float32)
    bias = np.array([-1, 0.1, -0.1, 0, 0], np.float32)
    variables = {
        "params": {
            "only": {"kernel": kernel, "bias": bias},
            "norm": {"scale": SCALE, "bias": np.full(5, 0.1, np.float32)},
            "out": {"kernel": out, "bias": np.array([0.3, -0.5], np.float32)},
        },
        "batch_stats": {"norm": {"mean": MEAN, "var": np.ones(5, np.float32)}},
    }
    split = labelled(21)

    def apply(variables, x, **kwargs):
        return Known(norm).apply(variables, x.astype(jnp.float32) / 255, **kwargs)

    return apply, variables, split


def maps_of(split, kind):
    """Feature maps in float64."""
    _, variables, _ = known()
    params = variables["params"]["only"]
    x = split.images[split.sources[:, 0]].astype(np.float64) / 255
    maps = x @ params["kernel"][0, 0].astype(np.float64) + params["bias"]
    return np.maximum(maps, 0) if kind == "relu" else maps


def losses_of(maps, labels):
    """Cross-entropy of each image from the feature maps on, in float64."""
    _, variables, _ = known()
    norm, out = variables["params"]["norm"], variables["params"]["out"]
    x = (np.maximum(maps, 0) - MEAN) * norm["scale"] + norm["bias"]
    logits = x.mean((1, 2)) @ out["kernel"].astype(np.float64) + out["bias"]
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def tap(split=None, tap="relu", criteria=tuple(CRITERIA), devices=1, **options):
    apply, variables, whole = known()
    mesh = make_mesh(jax.devices()[:devices])
    return jaxprune.tap_layer(
        apply, variables, split or whole, tap=tap, criteria=criteria, batch_size=8,
        mesh=mesh, **options,
    )  # fmt: skip


def linear_fill():
    apply, variables, split = known()
    return jaxprune.linear_fill(apply, variables, split.images, ridge=1e-3)


@functools.cache
def planted_scores():
    """By every criterion, pruned channels being their means."""
    tapped, fill = tap(), linear_fill()
    return {
        name: jaxprune.score(tapped, name, fill="mean", linear=fill)
        for name in CRITERIA
    }


# The lowest in any order, and the highest.
PLANTED = {
    "mean": ({DEAD}, None),
    "abs_mean": ({DEAD}, None),
    "std": ({DEAD, CONSTANT}, None),
    "apoz": ({DEAD}, None),
    "l1": ({DEAD, CONSTANT}, None),
    "l2": ({DEAD, CONSTANT}, None),
    "fpgm": (set(), None),
    "bn_scale": ({DEAD, CONSTANT}, FIRST),
    "taylor": ({DEAD}, FIRST),
    "fisher": ({DEAD}, FIRST),
    "wanda": ({DEAD, CONSTANT}, FIRST),
    "linear": ({DEAD, CONSTANT}, None),
    "residual_variance": ({DEAD, CONSTANT}, None),
    "oracle": (set(), FIRST),
    "abs_oracle": ({DEAD, CONSTANT}, FIRST),
    "greedy_oracle": (set(), FIRST),
    "random": (set(), None),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_planted_channels(name):
    scores = planted_scores()[name]
    lowest, highest = PLANTED[name]
    order = jaxprune.pruning_order(scores).tolist()
    assert set(order[: len(lowest)]) == lowest
    if highest is not None:
        assert order[-1] == highest
    if name in ("std", "l1", "l2", "wanda", "oracle", "abs_oracle"):
        # Exactly: a constant says nothing, and its mean is what it is.
        assert scores[DEAD] == scores[CONSTANT] == 0
    if name in ("apoz", "taylor", "fisher"):
        assert scores[DEAD] == 0 and scores[CONSTANT] > 0
    if name not in ("linear", "residual_variance", "greedy_oracle", "random"):
        assert scores[SECOND] == pytest.approx(scores[DUPLICATE], rel=1e-5)


def test_a_duplicate_costs_little_under_the_linear_fill():
    for name in ("linear", "residual_variance"):
        scores = planted_scores()[name]
        early, late = sorted((scores[SECOND], scores[DUPLICATE]))
        assert early < 0.01 * late
        assert jaxprune.pruning_order(scores)[2] in (SECOND, DUPLICATE)


@pytest.mark.parametrize(("kind", "devices"), [("relu", 1), ("conv", 2)])
def test_gathered_over_uneven_batches_and_devices(kind, devices):
    """Of the ranking images alone, with NumPy in float64."""
    ranking = labelled(19, seed=5)
    tapped = tap(
        tap=kind, criteria=["std", "apoz", "taylor", "wanda", "bn_scale", "l1"],
        rank_split=ranking, devices=devices,
    )  # fmt: skip
    maps = maps_of(ranking, kind)
    found = {name: jaxprune.score(tapped, name) for name in ("std", "apoz", "wanda")}
    # float32's digits.
    np.testing.assert_allclose(
        tapped.mean_feature_map, maps.mean(0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(found["std"], maps.std((0, 1, 2)), rtol=1e-5, atol=1e-6)
    read = (np.maximum(maps, 0) - MEAN) * SCALE + np.float32(0.1)
    rows = np.linalg.norm(known()[1]["params"]["out"]["kernel"], axis=1)
    # The consumer is given the mean over positions.
    np.testing.assert_allclose(
        found["wanda"], read.mean((1, 2)).std(0) * rows, rtol=1e-4, atol=1e-6
    )
    # Behind this ReLU comes a BatchNorm, so the consumers have no zeros.
    zero = (maps == 0).mean((0, 1, 2)) if kind == "relu" else np.zeros(5)
    np.testing.assert_allclose(found["apoz"], 1 - zero, rtol=1e-12)
    assert len(tapped.split) == 21


def test_zeros_at_the_consumers_where_the_tap_is_before_the_relu():
    class PreNorm(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (1, 1), name="only")(x)
            x = nn.relu(nn.BatchNorm(True, name="norm")(x))
            return nn.Dense(2, name="out")(x.reshape(len(x), -1))

    apply, variables = toys.network(PreNorm(), (2, 3, 2))
    split = random_split(n=21, shape=(2, 3, 2), classes=2)
    tapped = jaxprune.tap_layer(
        apply, variables, split, tap="conv", criteria=["apoz"], batch_size=8
    )
    given = given_to(apply, variables, split.images, ["out"])["out"]
    zeros = (np.asarray(given).reshape(21 * 6, 4) == 0).mean(0)
    assert 0 < zeros.min() < 1
    np.testing.assert_allclose(jaxprune.score(tapped, "apoz"), 1 - zeros, rtol=1e-12)


@pytest.mark.parametrize("kind", ["relu", "conv"])
def test_gradients_against_finite_differences(kind):
    """d/de of the loss with a channel times 1 + e is the sum of a dL/da."""
    tapped = tap(tap=kind, criteria=["taylor"])
    split, h = tapped.split, 1e-6
    maps, slopes = maps_of(split, kind), np.zeros((len(split), 5))
    for j in range(5):
        up, down = (maps * np.where(np.arange(5) == j, 1 + e, 1) for e in (h, -h))
        rise = losses_of(up, split.labels) - losses_of(down, split.labels)
        slopes[:, j] = rise / (2 * h)
    # Six positions; float32's gradients, and float64's differences to 1e-9.
    np.testing.assert_allclose(
        jaxprune.score(tapped, "taylor"), np.abs(slopes).mean(0) / 6,
        rtol=1e-4, atol=1e-8,
    )  # fmt: skip
    np.testing.assert_allclose(
        jaxprune.score(tapped, "fisher"), np.square(slopes).mean(0) / 2,
        rtol=1e-4, atol=1e-8,
    )  # fmt: skip


@pytest.mark.parametrize(("fill", "devices"), [("zero", 1), ("bias", 2)])
def test_oracle_against_weights_really_written(fill, devices):
    apply, variables, split = known()
    tapped = tap(criteria=["oracle"], devices=devices)
    rises = jaxprune.score(tapped, "oracle", fill=fill)
    images, labels = jnp.asarray(split.images), split.labels

    def loss(variables):
        logits = np.asarray(apply(variables, images), np.float64)
        return (np.log(np.exp(logits).sum(1)) - logits[np.arange(21), labels]).mean()

    expected = [
        loss(reference.prune(variables, "only", [j], fill)) - loss(variables)
        for j in range(5)
    ]
    assert max(expected) > 0.1
    np.testing.assert_allclose(rises, expected, rtol=1e-4, atol=1e-6)


def test_losses_of_some_ranking_images_evenly_spaced():
    ranking = labelled(19, seed=5)
    tapped = tap(criteria=["oracle"], rank_split=ranking, oracle_images=[7, 3])
    assert set(tapped.ranked) == {3, 7}
    chosen = [0, 2, 5, 8, 10, 13, 16]
    np.testing.assert_array_equal(tapped.ranked[7].split.labels, ranking.labels[chosen])
    fill = ConstantFill("values", np.full(5, 0.25, np.float32))
    found = jaxprune.sweep.score.mask_losses(tapped, fill)(np.ones(5, bool))
    maps = maps_of(ranking, "relu")[chosen]
    assert found.before == pytest.approx(
        losses_of(maps, ranking.labels[chosen]).mean(), rel=1e-5
    )
    for j in range(5):
        maps_without = np.where(np.arange(5) == j, 0.25, maps)
        expected = losses_of(maps_without, ranking.labels[chosen]).mean()
        assert found.without[j] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("fill", "by_consumer"),
    [
        ("mean", True),
        ("mean", False),
        ("drop", True),
        ("drop", False),
        ("linear", False),
        ("means", True),
        ("means", False),
    ],
)
def test_losses_with_several_pruned_are_those_of_the_mask(
    monkeypatch, fill, by_consumer
):
    """Each of the next channels, under every kind of fill, as `compact` prunes it."""
    if not by_consumer:
        monkeypatch.setattr(strategy, "find_consumer", lambda *arguments: None)
    apply, variables, split = known()
    resolved = linear_fill() if fill == "linear" else fill
    if fill == "means":  # at the consumer
        resolved = MeanFill(
            fill, means={"out": np.linspace(-1, 2, 5, dtype=np.float32)}
        )
    tapped = tap(criteria=["oracle"])
    losses = jaxprune.sweep.score.mask_losses(tapped, resolved)
    kept = np.array([True, False, True, True, True])
    assert type(losses._programs.way).__name__ == (
        "_ByConsumer" if by_consumer else "_ByMask"
    )
    found = losses(kept)
    assert found.without[1] == np.inf
    masks = {None: kept}
    masks |= {j: kept & (np.arange(5) != j) for j in np.flatnonzero(kept)}
    if fill == "mean":
        resolved = tapped.channel_means.astype(np.float32)
    for j, mask in masks.items():
        given = apply, variables, split.images
        pruning = pruning_of(*given, "only", mask, resolved)
        # The tap is behind the ReLU, and a mean of a ReLU's values passes it.
        logits = np.float64(masked_logits(*given, [pruning]))
        picked = logits[np.arange(21), split.labels]
        expected = (np.log(np.exp(logits).sum(1)) - picked).mean()
        value = found.before if j is None else found.without[j]
        assert value == pytest.approx(expected, rel=1e-5), j


@pytest.mark.parametrize("consumer", ["dense", "same"])
def test_losses_of_a_consumer_with_positions(monkeypatch, consumer):
    """A dense layer behind a flatten, and a convolution: as with the whole network."""
    _, apply, variables, split = consumers.read(consumer)
    tapped = jaxprune.tap_layer(
        apply, variables, split, layer="first", criteria=["oracle"], batch_size=8
    )
    kept = np.arange(tapped.channels) != 2
    fast = jaxprune.sweep.score.mask_losses(tapped, "bias")
    assert type(fast._programs.way).__name__ == "_ByConsumer"
    monkeypatch.setattr(strategy, "find_consumer", lambda *arguments: None)
    plain = jaxprune.sweep.score.mask_losses(tapped, "bias")
    for mask in (np.ones(tapped.channels, bool), kept):
        found, expected = fast(mask), plain(mask)
        assert found.before == pytest.approx(expected.before, rel=1e-5)
        # Sums in another order, in float32.
        np.testing.assert_allclose(found.without, expected.without, rtol=1e-5)


def test_one_more_left_out_is_a_regression_without_it():
    rng = np.random.default_rng(0)
    channels, held = 4, 3
    features = np.arange(channels * held)[None]
    rows = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))
    gram = np.eye(12)[None]
    moments = Moments(
        features, channels, rows.mean(0)[None], np.cov(rows.T, bias=True)[None], gram,
        0.01,
    )  # fmt: skip
    kept = np.array([True, True, False, True])
    one_more = leave_one_out.leave_out(moments, kept)
    x = jnp.asarray(rows[:5], jnp.float32)
    for gone in (None, 0, 3):
        keep = kept & (np.arange(4) != gone)
        expected = moments.regress(keep)(x, jnp.asarray(keep))
        found = one_more(x, jnp.asarray(keep))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_greedy_oracle_against_every_step_worked_out():
    scores = planted_scores()["greedy_oracle"]
    maps, labels = maps_of(known()[2], "relu"), known()[2].labels
    means, gone = maps.mean((0, 1, 2)), []
    for _ in range(4):
        left = [j for j in range(5) if j not in gone]
        losses = [
            losses_of(np.where(np.isin(np.arange(5), [*gone, j]), means, maps), labels)
            for j in left
        ]
        gone.append(left[int(np.argmin([x.mean() for x in losses]))])
    # Which of the duplicates goes first is a matter of rounding.
    order = jaxprune.pruning_order(scores).tolist()
    assert [min(j, SECOND) for j in order[:4]] == [min(j, SECOND) for j in gone]


def test_greedy_that_takes_too_long_is_refused_with_the_time(monkeypatch):
    tapped = tap(criteria=["greedy_oracle"])
    losses = jaxprune.sweep.score.mask_losses(tapped, "zero")
    monkeypatch.setattr(oracle.MaskLosses, "_sums", lambda *a: iter([0]))
    clock = iter([0.0, 50.0, 60.0, 62.5] * 2)
    monkeypatch.setattr(oracle.time, "perf_counter", lambda: next(clock))
    # 6 + 5 + 4 + 3 masks, in chunks of at most 5 that take 2.5 s; 3 batches.
    assert losses.greedy_masks == 18
    assert losses.check_greedy(1e6) == 2.5 * 3 * 18 / 5
    with pytest.raises(
        jaxprune.InputError,
        match=r"about 27 seconds: 18 masks of 21 images; 7 images take 9 seconds",
    ):
        losses.check_greedy(9.0)


def test_sums_of_several_processes(monkeypatch):
    values = [0, 0, 5], [0, 1, 2, 3, 4]
    parts = [Activations.of(np.array(v, np.float32)[:, None]) for v in values]

    def gathered(array):
        """Of two processes: the first's, and what the other has in its place."""
        mine = next(i for i, name in enumerate(vars(parts[0])) if np.array_equal(
            array[0], getattr(parts[0], name)))  # fmt: skip
        return [array, np.asarray([*vars(parts[1]).values()][mine])[None]]

    monkeypatch.setattr(statistics.processes, "gather", gathered)
    both = statistics._over_processes(parts[0])
    values = [*values[0], *values[1]]
    assert both.count == 8 and both.zeros.tolist() == [3]
    assert both.mean[0] == pytest.approx(np.mean(values))
    assert both.variance[0] == pytest.approx(np.var(values))


def test_a_criterion_of_ones_own():
    own = Criterion(
        lambda a, k: a.mean * np.abs(k).max((0, 1, 2)), ("activations", "kernel")
    )
    tapped = tap(criteria=[own])
    expected = maps_of(tapped.split, "relu").mean((0, 1, 2)) * [0, 0, 1, 1, 1]
    np.testing.assert_allclose(jaxprune.score(tapped, own), expected, rtol=1e-5)
    with pytest.raises(jaxprune.InputError, match="unknown need of a criterion 'maps'"):
        tap(criteria=[Criterion(np.mean, ("maps",))])
    bad = Criterion(lambda kernel: kernel, ("kernel",))
    with pytest.raises(jaxprune.InputError, match="not 5 finite ones"):
        jaxprune.score(tapped, bad)


def test_what_a_layer_cannot_have():
    apply, variables, split = known(norm=False)
    with pytest.raises(jaxprune.InputError, match=r"needs one BatchNorm .* found no"):
        jaxprune.tap_layer(apply, variables, split, criteria=["bn_scale"])
    with pytest.raises(jaxprune.InputError, match="did you mean 'taylor'"):
        jaxprune.tap_layer(apply, variables, split, criteria=["tailor"])
    tapped = tap(criteria=["l1"])
    for name, message in [
        ("taylor", "needs gradients, which was not gathered"),
        ("oracle", "needs losses, which was not gathered"),
        ("linear", "goes by the linear fill"),
    ]:
        with pytest.raises(jaxprune.InputError, match=message):
            jaxprune.score(tapped, name)
    with pytest.raises(jaxprune.InputError, match=r"1 \.\. 21 ranking images, got 22"):
        tap(criteria=["oracle"], oracle_images=[22])


def test_networks_without_gradients():
    _, _, split = known()

    class Whole(nn.Module):
        integer: bool

        @nn.compact
        def __call__(self, x):
            if self.integer:
                x = x.astype(jnp.int32)
                zeros = nn.initializers.zeros
                x = nn.Conv(
                    3, (1, 1), name="only", param_dtype=jnp.int32, kernel_init=zeros,
                    promote_dtype=lambda *arrays, **_: arrays,
                )(x)  # fmt: skip
            else:
                x = jnp.round(nn.Conv(3, (1, 1), name="only")(x.astype(jnp.float32)))
            x = x.sum((1, 2)).astype(jnp.float32)
            return nn.Dense(2, name="out")(x)

    for integer, message in [
        (True, "is int32, which has none"),
        (False, "none reaches"),
    ]:
        dtype = np.int32 if integer else np.float32
        kernel = np.arange(6).reshape(1, 1, 2, 3).astype(dtype)
        variables = {
            "params": {
                "only": {"kernel": kernel, "bias": np.zeros(3, dtype)},
                "out": {"kernel": np.eye(3, 2, dtype=np.float32),
                        "bias": np.zeros(2, np.float32)},
            }
        }  # fmt: skip
        with pytest.raises(jaxprune.InputError, match=message):
            jaxprune.tap_layer(
                Whole(integer).apply, variables, split, criteria=["taylor"]
            )
