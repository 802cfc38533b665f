"""Networks whose input reaches their end around the swept layer too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import reference
from jaxprune._base.mesh import make_mesh
from jaxprune.evaluation.head import make_head
from jaxprune.ranking import criteria
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from jaxprune.sweep.taps import run_from_map
from masked import network_of
from random_data import random_split
from toys import network, run_sweep

# Shapes of what goes around the layer, for images of 8 x 8 x 3.
AROUND = {
    "nothing": [],
    "sum": [(8, 8, 6)],
    "concatenation": [(8, 8, 6)],
    "two sums": [(8, 8, 6), (8, 8, 6)],
    "input": [(8, 8, 3)],
    "images not first": [(8, 8, 3)],
    "place in the batch": [(8, 8, 3)],
}


class Block(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        image = x
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        y = nn.relu(nn.Conv(6, (3, 3), name="second")(x))
        if self.kind == "sum":
            y = x + y
        elif self.kind == "concatenation":
            y = jnp.concatenate([x, y], axis=-1)
        elif self.kind == "two sums":
            y = nn.relu(x + y) * jnp.tanh(x)
        elif self.kind == "input":
            y = jnp.concatenate([image, y], axis=-1)
        elif self.kind == "images not first":
            y = (x.swapaxes(0, 1) + y.swapaxes(0, 1)).swapaxes(0, 1)
        elif self.kind == "place in the batch":
            row = jnp.argmax(x.sum((2, 3)), axis=1)
            y = y[jnp.arange(len(y)), row][:, None]
        return nn.Dense(4, name="out")(y.mean((1, 2)))


@pytest.mark.parametrize("kind", AROUND)
def test_what_goes_around_the_layer(kind):
    apply, variables = network(Block(kind), (8, 8, 3))
    images = jnp.asarray(random_split().images)

    net = network_of(apply, variables, images)
    head = make_head(net, images, lambda graph: graph.layer("second").output)
    shapes = head.shapes_around(5)
    assert head.apart == (kind not in ("images not first", "place in the batch"))
    assert shapes == [(5, *shape) for shape in AROUND[kind]]
    feature_map = np.random.default_rng(0).normal(size=(23, 8, 8, 6))
    feature_map, kept = jnp.float32(feature_map), jnp.arange(6) % 2 == 0
    masked = jnp.where(kept, feature_map, 0.0)
    got = head.results(net.arrays, head.around(net.arrays, images), masked)
    whole = run_from_map(net, net.arrays, images, "second", masked)
    np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize(
    ("kind", "fill"),
    [("sum", "mean"), *((kind, "zero") for kind in AROUND if AROUND[kind])],
)
def test_predictions_equal_those_of_written_weights(kind, fill):
    apply, variables = network(Block(kind), (8, 8, 3))
    split = random_split()
    layer = "second"
    variables["params"][layer]["bias"][1] = -9  # dead on every image
    fast = run_sweep(apply, variables, split, layer, fill=fill, mask_chunk=4)
    dense = run_sweep(apply, variables, split, layer, fill=fill, every_pair=True)
    mean = fast.mean_feature_map.mean((0, 1))
    logits = [
        apply(
            reference.prune(variables, layer, fast.order[:k], fill, mean), split.images
        )
        for k in fast.ks
    ]
    reference.check_predictions(fast.predictions, np.stack(logits))
    reference.check_predictions(dense.predictions, np.stack(logits))
    if fill == "zero":
        # A sum is read by what reads its other side, too.
        summed = ("sum", "two sums", "images not first")
        way = "ChangedPairs" if kind in summed else "RunningSum"
        assert fast.about["evaluation"] == way
        assert fast.about["pairs_evaluated"] < fast.about["pairs"]


def test_dropping_channels_beside_a_concatenation():
    """After ReLU and a mean, reading 0 is what a channel that is 0 gives."""
    apply, variables = network(Block("concatenation"), (8, 8, 3))
    split = random_split()
    dropped, zeroed = (
        run_sweep(apply, variables, split, "second", fill=fill)
        for fill in ("drop", "zero")
    )
    np.testing.assert_array_equal(dropped.predictions, zeroed.predictions)
    assert len({tuple(row) for row in zeroed.predictions.tolist()}) > 1


@pytest.mark.parametrize("every_pair", [True, False])
def test_devices_change_nothing(every_pair):
    apply, variables = network(Block("sum"), (8, 8, 3))
    one, eight = (
        run_sweep(
            apply, variables, random_split(), "second", every_pair=every_pair,
            mesh=make_mesh(jax.local_devices()[:devices]),
        )
        for devices in (1, 8)
    )  # fmt: skip
    np.testing.assert_array_equal(eight.predictions, one.predictions)


@pytest.mark.parametrize("every_pair", [True, False])
def test_the_way_around_is_worked_out_once_for_every_batch(every_pair):
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            like = jax.ShapeDtypeStruct(x.shape, x.dtype)
            x = jax.pure_callback(count, like, x)
            x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
            y = nn.relu(nn.Conv(6, (3, 3), name="second")(x))
            return nn.Dense(4, name="out")((x + y).mean((1, 2)))

    def count(x):
        calls.append(len(x))
        return np.asarray(x)

    apply, variables = network(Counted(), (8, 8, 3))
    tapped = tap_layer(
        apply, variables, random_split(), layer="second", tap="relu", batch_size=8,
        mesh=make_mesh(jax.local_devices()[:1]),
    )  # fmt: skip
    calls.clear()
    scores = criteria.mean(tapped.mean_feature_map)
    sweep_layer(tapped, scores, mask_chunk=1, every_pair=every_pair)
    assert calls == [16, 16, 8, 8, 8]  # tried on examples, then every batch
