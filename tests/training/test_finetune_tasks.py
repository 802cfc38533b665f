"""Fine-tuning of networks whose outputs are no classes, or that take several inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune
from halved import halved
from jaxprune.training.augmentation import blend
from jaxprune.training.loop import epoch_order

pytestmark = pytest.mark.usefixtures("standard_promotion")

RNG = np.random.default_rng(0)
N, EPOCHS, SIZE, RATE = 40, 2, 16, 0.05
X = {
    "image": RNG.normal(size=(N, 6, 6, 2)).astype(np.float32),
    "time": RNG.normal(size=(N, 3)).astype(np.float32),
}
MAP = RNG.integers(0, 3, (N, 6, 6)).astype(np.int32)
NUMBERS = RNG.normal(size=(N, 2)).astype(np.float32)


def convolved(x, layer):
    axes = ("NHWC", "HWIO", "NHWC")
    found = lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=axes
    )
    return found + layer["bias"]


def net(params, batch):
    """A map of three classes, and two numbers, of an image and a time."""
    h = jax.nn.relu(convolved(batch["image"], params["first"]))
    h = h + (batch["time"] @ params["time"])[:, None, None]
    h = jax.nn.relu(convolved(h, params["second"]))
    return {
        "map": convolved(h, params["map"]),
        "numbers": h.mean((1, 2)) @ params["numbers"],
    }


@functools.cache
def whole():
    def layer(*shape):
        kernel = RNG.normal(0, 0.3, shape).astype(np.float32)
        return {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}

    params = {
        "first": layer(3, 3, 2, 6),
        "time": RNG.normal(size=(3, 6)).astype(np.float32),
        "second": layer(3, 3, 6, 8),
        "map": layer(1, 1, 8, 3),
        "numbers": RNG.normal(size=(8, 2)).astype(np.float32),
    }
    return jaxprune.Network(net, params, jax.tree.map(lambda a: a[:2], X))


@functools.cache
def small():
    return halved(whole(), X, "drop")


def relative(outputs, others):
    """The mean over both arrays of |a - b|^2 / |b|^2, and over images."""
    errors = [
        jnp.square(outputs[key] - others[key]).reshape(SIZE, -1).sum(1)
        / jnp.square(others[key]).reshape(SIZE, -1).sum(1)
        for key in outputs
    ]
    return jnp.stack(errors).mean()


def entropy(logits, labels):
    each = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return each.mean()


def divergence(logits, others, temperature):
    target, found = (jax.nn.log_softmax(x / temperature) for x in (others, logits))
    each = (jnp.exp(target) * (target - found)).sum(-1)
    return temperature**2 * each.mean()


def of_map(outputs, taught, targets):
    return 0.25 * divergence(outputs["map"], taught["map"], 3.0) + 0.75 * entropy(
        outputs["map"], targets
    )


# Task, targets, the teacher's weight, and the loss (outputs, whole's, targets).
WAYS = {
    "the whole network's outputs": (
        None, None, 1.0, lambda outputs, taught, _: relative(outputs, taught),
    ),
    "targets alone": (
        jaxprune.regression(output="numbers"), NUMBERS, 0.0,
        lambda outputs, _, y: jnp.square(outputs["numbers"] - y).mean(),
    ),
    "both, of a map": (jaxprune.segmentation(output="map"), MAP, 0.25, of_map),
    "both, of numbers": (
        jaxprune.regression(output="numbers"), NUMBERS, 0.5,
        lambda outputs, taught, y: 0.5 * relative(
            {"numbers": outputs["numbers"]}, {"numbers": taught["numbers"]}
        ) + 0.5 * jnp.square(outputs["numbers"] - y).mean(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("as_split", [False, True])
def test_as_the_obvious_loop(way, as_split):
    task, targets, weight, loss = WAYS[way]
    if as_split and targets is None:
        pytest.skip("a split has targets")
    arrays = {path: jnp.asarray(array) for path, array in small().arrays.items()}
    optimizer = optax.sgd(RATE)
    state = optimizer.init(arrays)

    @jax.value_and_grad
    def step(arrays, x, y):
        return loss(small().function(arrays, x), net(whole().params, x), y)

    losses = []
    for epoch in range(EPOCHS):
        for index in epoch_order(0, epoch, N, SIZE):
            batch = {key: array[index] for key, array in X.items()}
            y = None if targets is None else targets[index]
            found, gradients = step(arrays, batch, y)
            losses.append(float(found))
            updates, state = optimizer.update(gradients, state)
            arrays = optax.apply_updates(arrays, updates)
    given = (X, targets)
    if as_split:
        given = (jaxprune.image_split(X, targets=targets),)
    seen = []
    tuned = jaxprune.finetune(
        small(), whole() if weight else None, *given, task=task, epochs=EPOCHS,
        batch_size=SIZE, optimizer=optax.sgd(RATE), weight=weight, temperature=3.0,
        blend=False, on_step=lambda metrics: seen.append(metrics),
    )  # fmt: skip
    np.testing.assert_allclose([float(m.loss) for m in seen], losses, rtol=1e-4)
    assert all(np.isnan(m.accuracy) for m in seen)
    moved = 0
    for path, array in arrays.items():
        np.testing.assert_allclose(tuned.arrays[path], array, rtol=1e-4, atol=1e-6)
        moved += not np.array_equal(tuned.arrays[path], small().arrays[path])
    assert moved >= 5


def test_it_goes_on_with_the_same_targets_alone(tmp_path):
    class Stop(Exception):
        pass

    def tune(targets=MAP, **options):
        return jaxprune.finetune(
            small(), None, X, targets, task=jaxprune.segmentation(output="map"),
            epochs=3, batch_size=SIZE, learning_rate=1e-2, **options,
        )  # fmt: skip

    def stop(epoch):
        if epoch.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        tune(checkpoints=tmp_path / "tuning", on_epoch=stop)
    with pytest.raises(jaxprune.InputError, match="with other targets"):
        tune(2 - MAP, checkpoints=tmp_path / "tuning")
    expected, resumed = tune(), tune(checkpoints=tmp_path / "tuning")
    for path, array in expected.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[path], array)


def test_inputs_of_an_image_are_blended_alike():
    time = X["image"][:, 0, 0, :1] * np.ones(3, np.float32)
    both = {"image": jnp.asarray(X["image"]), "time": jnp.asarray(time)}
    mixed = blend(jax.random.key(1), both)
    first = mixed["image"][:, 0, 0, :1]
    np.testing.assert_allclose(mixed["time"], np.broadcast_to(first, (N, 3)), rtol=1e-6)
    assert not np.allclose(mixed["time"], time)


BAD = {
    "say what its outputs are for": {"labels": MAP[:, 0, 0], "whole": None},
    "targets must be 40, one for each image": {
        "labels": MAP[:-1], "task": jaxprune.segmentation(output="map"),
    },
    "does not fit|must be of one shape": {
        "labels": MAP, "task": jaxprune.regression(output="numbers"),
    },
    "has no part 'nothing'": {
        "labels": MAP, "task": jaxprune.segmentation(output="nothing"),
    },
    "all inputs must be of as many images": {"images": {**X, "time": X["time"][:-1]}},
    r"takes image float32 \[16, 6, 6, 2\]": {"images": {"image": X["image"]}},
    "labels are needed where": {"weight": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    given = {
        "whole": whole(),
        "images": X,
        "labels": None,
        "task": None,
        **BAD[message],
    }
    with pytest.raises(jaxprune.InputError, match=message) as caught:
        jaxprune.finetune(
            small(), given.pop("whole"), given.pop("images"), given.pop("labels"),
            epochs=1, batch_size=SIZE, **given,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
