import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import reference
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.data.splits import image_split
from jaxprune.evaluation.masks import evaluate_masks
from jaxprune.fills.masked import fill_channels
from jaxprune.ranking import criteria
from jaxprune.ranking.order import pruning_order
from jaxprune.recipes.models import CifarVGG, PairCNN
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from random_data import random_split, random_variables
from toys import network, planted

EXPERIMENTS = {
    "cifar_vgg": (
        CifarVGG(widths=(3, 4, 4, 5, 5, 4, 6, 6, 7, 6, 6, 8, 9), dense=(12, 10, 8, 4)),
        (32, 32, 3), reference.cifar_vgg, "conv2d_12", "relu", criteria.mean,
    ),
    "pair": (
        PairCNN(widths=(3, 5, 9), dense=(10, 4)),
        (14, 14, 2), reference.pair_cnn, "conv3", "conv", criteria.abs_mean,
    ),
}  # fmt: skip


def run_sweep(apply, variables, split, criterion, *, fill="zero", ks=None,
              mask_chunk=None, **options):  # fmt: skip
    tapped = tap_layer(apply, variables, split, **options)
    scores = criterion(tapped.mean_feature_map)
    return sweep_layer(tapped, scores, fill=fill, ks=ks, mask_chunk=mask_chunk)


# How images and masks are divided has nothing to do with the fill.
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize(
    ("fill", "batch_size", "mask_chunk"),
    [("zero", 23, None), ("mean", 7, 4),
     *(pytest.param(*how, marks=pytest.mark.slow) for how in (
         ("bias", 23, None), ("mean", 23, None), ("zero", 7, 4), ("bias", 7, 4)))],
)  # fmt: skip
def test_predictions_equal_those_of_written_weights(
    experiment, fill, batch_size, mask_chunk
):
    model, shape, forward, layer, tap, criterion = EXPERIMENTS[experiment]
    apply, variables = network(model, shape)
    split = random_split(shape=shape)
    result = run_sweep(
        apply, variables, split, criterion, fill=fill, tap=tap,
        batch_size=batch_size, mask_chunk=mask_chunk,
    )  # fmt: skip
    assert result.about["layer"] == layer
    assert result.ks == tuple(range(9))
    mean = result.mean_feature_map.mean((0, 1))
    logits = np.stack(
        [
            forward(
                reference.prune(variables, layer, result.order[:k], fill, mean),
                split.images,
            )
            for k in result.ks
        ]
    )
    reference.check_predictions(result.predictions, logits)
    assert len({tuple(row) for row in result.predictions.tolist()}) > 1
    np.testing.assert_allclose(
        result.cross_entropy,
        reference.cross_entropy(logits, split.labels),
        rtol=1e-4,  # float32 logits against float64
    )
    np.testing.assert_allclose(
        result.cross_entropy_std,
        reference.losses(logits, split.labels).std(-1),
        rtol=1e-3,
    )
    correct = (logits.argmax(-1) == split.labels).mean(1)
    np.testing.assert_allclose(result.accuracy, correct, atol=1.01 / len(split))


@pytest.mark.parametrize(
    "ks", [(0, 1, 4, 8), pytest.param(range(9), marks=pytest.mark.slow)]
)
def test_ranking_again_after_prunes_changes_nothing_behind_relu(ks):
    """Experiment A: a pruned channel scores 0, and no score depends on another."""
    model, shape, _, layer, tap, _ = EXPERIMENTS["cifar_vgg"]
    apply, variables = network(model, shape)
    split = random_split(shape=shape)
    order = run_sweep(apply, variables, split, criteria.mean, tap=tap).order
    assert len(order) == 9
    for k in ks:
        pruned = order[:k]
        current = reference.prune(variables, layer, pruned, "zero")
        tapped = tap_layer(apply, current, split, layer=layer, tap=tap)
        scores = criteria.mean(tapped.mean_feature_map)
        assert (scores[pruned] == 0).all()
        scores[pruned] = -1
        assert pruning_order(scores)[k] == order[k]


def test_ranking_again_after_a_prune_can_differ_where_activations_are_signed():
    """Before ReLU the lowest mean is negative, and 0 once its channel is zeroed."""
    model, shape, _, layer, _, _ = EXPERIMENTS["pair"]
    apply, variables = network(model, shape)
    split = random_split(shape=shape)
    first = run_sweep(apply, variables, split, criteria.mean, ks=[0])
    assert first.scores[first.order[0]] < 0
    pruned = reference.prune(variables, layer, first.order[:1], "zero")
    second = run_sweep(apply, pruned, split, criteria.mean, ks=[0])
    assert second.order[0] == first.order[1]


def test_planted_channels_cost_what_they_must():
    apply, variables, split = planted()
    result = run_sweep(apply, variables, split, criteria.mean, tap="relu")
    assert result.order[:2].tolist() == [0, 1]
    assert result.accuracy[0] == result.accuracy[1] == result.accuracy[2] == 1
    # With one of the two deciding channels gone, one class is predicted throughout.
    assert result.balanced_accuracy[3] == 0.5
    assert result.largest_k_within(0.01) == 2


@pytest.mark.parametrize("every_pair", [True, False])
def test_no_more_traces_for_more_images_or_masks(every_pair):
    """The network is traced once for each shape, whatever N and K are."""
    apply, variables, split = planted()
    counts = []
    for n, ks in [(40, range(4)), (40, [1]), (13, range(4))]:
        traces = []

        def counted(variables, x, traces=traces, **kwargs):
            traces.append(x.shape)
            return apply(variables, x, **kwargs)

        some = split.select(np.arange(n))
        tapped = tap_layer(counted, variables, some, batch_size=6)
        scores = criteria.mean(tapped.mean_feature_map)
        sweep_layer(tapped, scores, mask_chunk=3, ks=list(ks), every_pair=every_pair)
        counts.append(len(traces))
        # Once more where it is compared with itself.
        assert len(traces) <= 1 + len(set(traces)) <= 6
    assert counts[0] == counts[1]


def test_ranking_on_another_split():
    model, shape, _, _, tap, criterion = EXPERIMENTS["pair"]
    apply, variables = network(model, shape)
    split, other = random_split(shape=shape), random_split(n=11, shape=shape, seed=9)
    result = run_sweep(
        apply, variables, split, criterion, tap=tap, rank_split=other, batch_size=8
    )
    alone = run_sweep(apply, variables, other, criterion, tap=tap)
    np.testing.assert_allclose(result.scores, alone.scores, rtol=1e-5)
    own = run_sweep(apply, variables, split, criterion, tap=tap)
    np.testing.assert_array_equal(result.predictions[0], own.predictions[0])
    assert result.predictions.shape == (9, 23)


def test_chosen_ks_are_rows_of_the_whole_sweep():
    model, shape, _, _, tap, criterion = EXPERIMENTS["pair"]
    apply, variables = network(model, shape)
    split = random_split(shape=shape)
    whole = run_sweep(apply, variables, split, criterion, tap=tap)
    some = run_sweep(apply, variables, split, criterion, tap=tap, ks=[1, 4, 8])
    np.testing.assert_array_equal(some.predictions, whole.predictions[[1, 4, 8]])
    np.testing.assert_allclose(
        some.cross_entropy, whole.cross_entropy[[1, 4, 8]], rtol=1e-5
    )


def test_evaluate_masks_on_a_plain_function():
    rng = np.random.default_rng(3)
    fm = rng.normal(size=(6, 2, 2, 5)).astype(np.float32)
    weights = rng.normal(size=(20, 3)).astype(np.float32)
    masks = rng.integers(0, 2, (11, 5)).astype(bool)
    fill = rng.normal(size=5).astype(np.float32)

    def logits(weights, fm, mask):
        x = fill_channels(fm, mask, fill)
        return x.reshape(len(x), -1) @ weights

    for devices in (1, 2, 8):
        mesh = make_mesh(jax.devices()[:devices])
        got = evaluate_masks(logits, weights, (fm,), masks, mesh=mesh, mask_chunk=4)
        for row, mask in zip(got, masks, strict=True):
            masked = fm.copy()
            masked[..., ~mask] = fill[~mask]
            expected = (masked.reshape(len(fm), -1) @ weights).argmax(-1)
            np.testing.assert_array_equal(row, expected)


def test_weights_that_are_not_finite_are_refused():
    model, shape, *_ = EXPERIMENTS["pair"]
    apply, variables = network(model, shape)
    split, last = random_split(shape=shape), variables["params"]["dense2"]
    last["kernel"][:] = 3e38  # its products with more than one overflow
    with pytest.raises(InputError, match="the network's logits are not finite"):
        tap_layer(apply, variables, split)
    last["bias"][0] = np.nan
    with pytest.raises(InputError, match=r"dense2/bias must be finite, got nan at \[0"):
        tap_layer(apply, variables, split)


@jax.numpy_dtype_promotion("standard")  # flax's BatchNorm mixes types
def test_bfloat16_equals_the_masked_network_in_bfloat16():
    model = PairCNN(widths=(3, 5, 9), dense=(10, 4), dtype=jnp.bfloat16)
    apply, variables = network(model, (14, 14, 2))
    split = random_split(shape=(14, 14, 2))
    result = run_sweep(apply, variables, split, criteria.abs_mean, fill="bias")
    pruned = reference.prune(variables, "conv3", result.order[:4], "bias")
    logits = np.asarray(jax.jit(apply)(pruned, split.images), np.float32)
    top = np.sort(logits, axis=-1)
    clear = top[:, -1] - top[:, -2] > 0.02 * np.abs(logits).max()  # bfloat16: 8 bits
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(
        result.predictions[4][clear], logits.argmax(-1)[clear]
    )


class Odd(nn.Module):
    """A network that cannot be swept as it is, in one of several ways."""

    kind: str

    @nn.compact
    def __call__(self, x):
        kernel = self.param("template", nn.initializers.ones, (1, 8, 8, 3))
        x = kernel if self.kind == "no batch" else x
        x = nn.relu(nn.Conv(6, (3, 3), name="conv")(x))
        if self.kind == "batch":
            x = x - x.mean(0)
        x = nn.Dense(4, name="out")(x.mean((1, 2)) ** 2)
        return {"pair": (x, x), "classes": x[:, :3]}.get(self.kind, x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no batch", "no convolution, of what it is given"),
        ("batch", "depend on the other images"),
        ("pair", r"must return logits \[N, 4\]"),
        ("classes", r"must return logits \[N, 4\]"),
    ],
)
def test_networks_that_do_not_treat_images_one_by_one(kind, message):
    model = Odd(kind)
    variables = random_variables(model, jnp.ones((2, 8, 8, 3)))

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    with pytest.raises(InputError, match=message):
        tap_layer(apply, variables, random_split())


def test_unusable_arguments():
    apply, variables, split = planted()
    with pytest.raises(InputError, match="batch_size"):
        tap_layer(apply, variables, split, batch_size=0)
    tapped = tap_layer(apply, variables, split)
    scores = np.arange(4.0)
    for options, message in (
        ({"mask_chunk": 0}, "mask_chunk must be an integer of at least 1"),
        ({"ks": [4]}, "must lie in 0 .. 3"),
    ):
        with pytest.raises(InputError, match=message):
            sweep_layer(tapped, scores, **options)
    with pytest.raises(InputError, match="scores must be 4 numbers"):
        sweep_layer(tapped, np.arange(3.0))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((0, 4, 4, 1)), [], "N at least 1"),
        (np.zeros((2, 4, 4, 1)), [0, 2], "must lie in 0 .. 1"),
    ],
)
def test_unusable_images(images, labels, message):
    with pytest.raises(InputError, match=message):
        image_split(images, np.array(labels, int), ("a", "b"))
