"""Fine-tuning against the frameworks' own training, step by step; and its folder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune
from halved import halved
from jaxprune.compaction.network import as_compact
from jaxprune.training.loop import epoch_order
from random_data import random_split, random_variables

pytestmark = pytest.mark.usefixtures("standard_promotion")

SPLIT = random_split(n=40, shape=(5, 5, 2), seed=3)
X = np.asarray(SPLIT.images / 128 - 1, np.float32)
LABELS = SPLIT.labels
EPOCHS, SIZE, MOMENTUM = 2, 16, 0.7
RATE = 0.1


class Net(nn.Module):
    """A convolution that pads, BatchNorm, ReLU, and the same again."""

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(2):
            x = nn.Conv(6, (3, 3), use_bias=bool(i), name=f"conv{i}")(x)
            x = nn.BatchNorm(not train, momentum=MOMENTUM, name=f"bn{i}")(x)
            x = nn.relu(x)
        return nn.Dense(4, name="out")(x.mean((1, 2)))


@functools.cache
def linen_net():
    variables = random_variables(Net(), X[:1])
    # Every class is some image's.
    logits = np.asarray(Net().apply(variables, X))
    out = variables["params"]["out"]
    out["bias"] -= logits.mean(0)
    return jaxprune.from_linen(Net(), variables, X[:2], train=False)


def sgd(loss, params, others, batches):
    """The slow, obvious loop: `loss(params, others, x, y)` -> (loss, others)."""
    optimizer = optax.sgd(RATE, momentum=0.9)
    state = optimizer.init(params)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for x, y in batches:
        (_, others), gradients = step(params, others, x, y)
        updates, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, updates)
    return params, others


def entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def of_linen(whole, small, batches):
    """Its own `apply`, in training mode."""
    apply = small.apply
    others = dict(small.variables)
    params = others.pop("params")
    fixed = {name: others[name] for name in others if name != "batch_stats"}

    def loss(params, stats, x, y):
        variables = {"params": params, "batch_stats": stats, **fixed}
        logits, changed = apply(variables, x, train=True, mutable=["batch_stats"])
        return entropy(logits, y), changed["batch_stats"]

    params, stats = sgd(loss, params, others["batch_stats"], batches)
    return {"params": params, "batch_stats": stats, **fixed}


class Module(nnx.Module):
    """The same, and a scale that is no `Param`."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 6, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(6, momentum=MOMENTUM, rngs=rngs)
        self.scale = nnx.Variable(jnp.linspace(0.5, 1.5, 6))
        self.out = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn(self.conv(x))) * self.scale[...]
        return self.out(x.mean((1, 2)))


def nnx_net():
    return jaxprune.from_nnx(Module(nnx.Rngs(0)), X[:2])


def of_nnx(whole, small, batches):
    module = small.to_nnx()
    module.train()
    graph, params, others = nnx.split(module, nnx.Param, ...)

    def loss(params, others, x, y):
        module = nnx.merge(graph, params, others, copy=True)
        value = entropy(module(x), y)
        return value, nnx.split(module, nnx.Param, ...)[2]

    trained = nnx.merge(graph, *sgd(loss, params, others, batches))
    trained.eval()
    return jaxprune.from_nnx(trained, X[:2]).arrays


def plain(params, x, batch_statistics=False):
    """A function of no framework, in either mode of its BatchNorm."""
    bn, out = params["bn"], params["out"]
    x = x.reshape(len(x), -1) @ params["first"]["w"]
    mean, var = bn["mean"], bn["var"]
    if batch_statistics:
        mean, var = x.mean(0), x.var(0)
    y = bn["scale"] * (x - mean) / jnp.sqrt(var + 1e-3) + bn["offset"]
    logits = jax.nn.relu(y) @ out["w"] + out["b"]
    return (logits, (mean, var)) if batch_statistics else logits


def plain_net():
    rng = np.random.default_rng(0)
    params = {
        "first": {"w": rng.normal(0, 0.2, (50, 6))},
        "bn": {"mean": rng.normal(0, 1, 6), "var": rng.uniform(1, 2, 6),
               "scale": rng.uniform(1, 2, 6), "offset": rng.normal(0, 1, 6)},
        "out": {"w": rng.normal(0, 1, (6, 4)), "b": rng.normal(0, 1, 4)},
    }  # fmt: skip
    params = jax.tree.map(np.float32, params)
    return jaxprune.Network(plain, params, X[:2])


def of_plain(whole, small, batches):
    params = small.params
    stats = tuple(params["bn"].pop(name) for name in ("mean", "var"))

    def with_stats(params, stats):
        own = dict(zip(("mean", "var"), stats, strict=True))
        return {**params, "bn": {**params["bn"], **own}}

    def loss(params, stats, x, y):
        logits, now = plain(with_stats(params, stats), x, True)
        pairs = zip(stats, now, strict=True)
        return entropy(logits, y), tuple(
            MOMENTUM * before + (1 - MOMENTUM) * after for before, after in pairs
        )

    return with_stats(*sgd(loss, params, stats, batches))


def keras_net():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(6, 3, padding="same"),
            layers.BatchNormalization(momentum=MOMENTUM),
            layers.ReLU(),
            layers.Conv2D(6, 3, trainable=False),
            layers.BatchNormalization(momentum=MOMENTUM, trainable=False),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
        ]
    )
    return jaxprune.from_keras(model, X[:2])


def of_keras(whole, small, batches):
    model = small.to_keras()

    def loss(params, others, x, y):
        logits, others = model.stateless_call(params, others, x, training=True)
        return entropy(logits, y), others

    params = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    params, others = sgd(loss, params, others, batches)
    for variables, values in (
        (model.trainable_variables, params), (model.non_trainable_variables, others),
    ):  # fmt: skip
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    return jaxprune.from_keras(model, X[:2]).arrays


def equinox_net():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        conv: eqx.nn.Conv2d
        bn: eqx.nn.BatchNorm
        out: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(2, 6, 3, key=keys[0])
            self.bn = eqx.nn.BatchNorm(6, "batch", momentum=MOMENTUM, mode="batch")
            self.out = eqx.nn.Linear(6, 4, key=keys[1])

        def __call__(self, x, state):
            x, state = self.bn(self.conv(jnp.moveaxis(x, -1, 0)), state)
            return self.out(jax.nn.relu(x).mean((1, 2))), state

    model, state = eqx.nn.make_with_state(Model)(jax.random.key(0))
    # Its statistics are divided by what follows from how many batches they have seen.
    call = jax.vmap(model, (0, None), (0, None), axis_name="batch")
    for _ in range(3):
        _, state = call(X, state)
    return jaxprune.from_equinox(model, state, X[:2])


def of_equinox(whole, small, batches):
    import equinox as eqx

    model, state = small.to_equinox()
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, state, x, y):
        model = eqx.combine(params, rest)
        call = jax.vmap(model, (0, None), (0, None), axis_name="batch")
        logits, state = call(x, state)
        return entropy(logits, y), state

    params, state = sgd(loss, params, state, batches)
    return jaxprune.from_equinox(eqx.combine(params, rest), state, X[:2]).arrays


WAYS = {
    "linen": (linen_net, of_linen, "mean"),
    "NNX": (nnx_net, of_nnx, "drop"),
    "function": (plain_net, of_plain, "drop"),
    "Keras": (keras_net, of_keras, "drop"),
    "Equinox": (equinox_net, of_equinox, "drop"),
}


@pytest.mark.parametrize(
    "name",
    [n if n in ("linen", "Keras") else pytest.param(n, marks=pytest.mark.slow)
     for n in WAYS],
)  # fmt: skip
def test_as_the_framework_s_own_training_mode(name):
    """The same arrays after some steps, BatchNorm's and those that are not trained."""
    build, train, fill = WAYS[name]
    whole = build()
    small = halved(whole, X, fill)
    batches = [
        (X[index], LABELS[index])
        for epoch in range(EPOCHS)
        for index in epoch_order(0, epoch, len(X), SIZE)
    ]
    expected = train(whole, small, batches)
    tuned = jaxprune.finetune(
        small, None, X, LABELS, epochs=EPOCHS, batch_size=SIZE, momentum=MOMENTUM,
        optimizer=optax.sgd(RATE, momentum=0.9),
    )  # fmt: skip
    found = small.with_arrays(expected).arrays
    moved = [
        path for path in found if not np.array_equal(found[path], small.arrays[path])
    ]
    assert len(moved) >= 6
    for path, array in found.items():
        if name == "Equinox" and path.startswith("state/"):
            continue  # the count of batches stays, so statistics are other sums
        # Four steps of float32, a rounding error of 1e-7 each.
        np.testing.assert_allclose(
            tuned.arrays[path], array, rtol=1e-4, atol=2e-5, err_msg=path
        )
        if path not in moved and name != "Equinox":  # its bias moves by rounding
            np.testing.assert_array_equal(tuned.arrays[path], small.arrays[path])


def sides(n, seed):
    """Class = which plane is brighter, and in which half."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    images = rng.normal(0, 0.3, (n, 5, 5, 2)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        rows = slice(0, 3) if label < 2 else slice(2, 5)
        image[rows, :, label % 2] += 1
    return images, labels


def test_labels_teach_a_network_and_it_teaches_what_is_left_of_it():
    """The latter without labels: only BatchNorm and the maps at borders stay."""
    images, labels = sides(160, 0)
    test, truth = sides(80, 1)

    def accuracy(network):
        return float((np.asarray(network(test)).argmax(1) == truth).mean())

    options = {"epochs": 8, "batch_size": 16, "learning_rate": 3e-2}
    before = as_compact(linen_net())
    learnt = jaxprune.finetune(before, None, images, labels, **options)
    assert accuracy(before) < 0.5 and accuracy(learnt) > 0.95
    whole = learnt.network
    small = halved(whole, images[:32] * 3, "mean")
    pixels = np.uint8(np.clip(32 * images + 128, 0, 255))
    losses = []
    tuned = jaxprune.finetune(
        small, whole, pixels, **options,
        augment=lambda key, x: x / jnp.float32(32) - 4,
        on_epoch=lambda epoch: losses.append(epoch.loss),
    )  # fmt: skip
    assert losses[-1] < losses[0] / 2
    assert accuracy(small) < 0.8 and accuracy(tuned) > 0.95
    for path, array in tuned.arrays.items():
        stays = path.startswith(("batch_stats/", "offsets/"))
        assert np.array_equal(array, small.arrays[path]) == stays, path
    assert any(path.startswith("offsets/") for path in tuned.arrays)


class Killed(Exception):
    pass


def kill(*_):
    raise Killed


def tune(folder=None, small=None, **changes):
    whole = linen_net()
    given = {
        "weight": 0.5, "epochs": 3, "learning_rate": 1e-2, "batch_norm": "training",
        "batch_size": SIZE, "augment": noisy, "checkpoints": folder,
    } | changes  # fmt: skip
    return jaxprune.finetune(small or halved_once(), whole, X, LABELS, **given)


def noisy(key, x):
    return x + jax.random.normal(key, x.shape) / 8


def test_a_killed_fine_tuning_ends_with_the_same_arrays(tmp_path, monkeypatch):
    expected = tune()
    steps = []

    def in_the_third(metrics):
        steps.append(metrics)
        if len(steps) == len(X) // SIZE + 1:  # the first epoch was kept before
            raise Killed

    for callbacks in ({"on_epoch": kill}, {"on_step": in_the_third}):
        with pytest.raises(Killed):
            tune(tmp_path, **callbacks)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "__version__", "0.1")
            with pytest.raises(jaxprune.InputError, match=r"and this is 0\.1: go"):
                tune(tmp_path)
    epochs = []
    for count in (1, 0):  # the last call finds all epochs done
        tuned = tune(tmp_path, on_epoch=epochs.append)
        assert len(epochs) == 1 and count is not None
        monkeypatch.setattr(jax, "__version__", "0.1.2")  # what is done stays
        for path, array in expected.arrays.items():
            np.testing.assert_array_equal(tuned.arrays[path], array)
    with pytest.raises(jaxprune.InputError, match="with other weight: give another"):
        tune(tmp_path, weight=0.4)


def test_eight_devices_and_a_network_from_its_folder(tmp_path):
    """Loss, gradients and BatchNorm's statistics are those of the whole batch."""
    halved(linen_net(), X).save(tmp_path / "small")
    small = jaxprune.load_compact(tmp_path / "small", Net())
    optimizer = {"optimizer": optax.sgd(RATE), "learning_rate": None}
    one = tune(**optimizer)
    eight = tune(
        small=small, mesh=jaxprune.make_mesh(jax.local_devices()[:8]), **optimizer
    )
    for path, array in one.arrays.items():
        # Sums in another order.
        np.testing.assert_allclose(
            eight.arrays[path], array, rtol=1e-4, atol=1e-5, err_msg=path
        )
    with pytest.raises(jaxprune.InputError, match="16 does not divide among 3 dev"):
        tune(mesh=jaxprune.make_mesh(jax.local_devices()[:3]))
    with pytest.raises(jaxprune.InputError, match=r"load_compact\(path, model\)"):
        tune(small=jaxprune.load_compact(tmp_path / "small"))


BAD = {
    "labels are needed where": {"labels": None, "weight": 0.5},
    "labels must lie in 0 .. 3": {"labels": LABELS + 1},
    "is of a network to learn from": {"whole": None, "weight": 0.5},
    "fewer than one batch of 64": {"batch_size": 64},
    "the loss is nan at step 0": {"images": X * np.float32(np.nan)},
    "takes float32 .* got uint8 .*: augment": {"images": SPLIT.images},
    r"takes float32 \[16, 5, 5, 2\], got float32 \[16, 4": {"images": X[:, 1:]},
    "augment fails on images": {"augment": lambda key, x: x @ key},
    "a temperature is positive": {"temperature": 0.0},
    "weight must be a number in 0 .. 1": {"weight": 1.5},
    "momentum must be": {"momentum": -0.1},
    "learning rate or an optimizer": {"optimizer": optax.sgd(0.1)},
    "unknown batch_norm 'train'": {"batch_norm": "train"},
    "blend takes weight=1": {"blend": True, "weight": 0.5},
    "epochs must be": {"epochs": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    whole = linen_net()
    small = halved_once()
    given = {"small": small, "whole": whole, "images": X, "labels": LABELS, "epochs": 1,
             "batch_size": SIZE, "learning_rate": 1e-2}  # fmt: skip
    given |= BAD[message]
    network = given.pop("small"), given.pop("whole")
    with pytest.raises(jaxprune.InputError, match=message) as caught:
        jaxprune.finetune(*network, given.pop("images"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


@functools.cache
def halved_once():
    return halved(linen_net(), X)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_softmax_at_the_end_changes_nothing(labels):
    """Losses are of the logarithm of what it returns."""
    whole = linen_net()

    def softmax(params, x):
        return jax.nn.softmax(whole.function(params, x))

    found = []
    for function in (whole.function, softmax):
        network = jaxprune.Network(function, whole.params, X[:2])
        small = halved(network, X)
        teacher = network if labels is None else None
        tuned = jaxprune.finetune(
            small, teacher, X, labels, epochs=EPOCHS, batch_size=SIZE,
            optimizer=optax.sgd(10 * RATE),
        )  # fmt: skip
        found.append(tuned.arrays)
    before = small.arrays["params/conv0/kernel"]
    moved = np.abs(found[0]["params/conv0/kernel"] - before).max()
    assert moved > 1e-4
    for path, array in found[0].items():
        np.testing.assert_allclose(array, found[1][path], atol=1e-3 * moved)
