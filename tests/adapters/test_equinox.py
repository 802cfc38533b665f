"""Equinox: modules read, pruned and handed back; they themselves are the truth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from selected import quick
from steps import Framework, walk

eqx = pytest.importorskip("equinox")
from jaxprune.adapters.equinox import WithOffset  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 16)


class Inverted(eqx.Module):
    """An inverted residual, with BatchNorm, GroupNorm and dropout."""

    expand: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    project: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    groups: eqx.nn.GroupNorm
    drop: eqx.nn.Dropout

    def __init__(self, channels, keys):
        wide = 4 * channels
        conv = eqx.nn.Conv2d
        self.expand = conv(channels, wide, 1, use_bias=False, key=keys[0])
        self.depthwise = conv(wide, wide, 3, padding=1, groups=wide, key=keys[1])
        self.project = conv(wide, channels, 3, padding=1, use_bias=False, key=keys[2])
        self.norm = eqx.nn.BatchNorm(wide, axis_name="batch", mode="ema")
        self.groups = eqx.nn.GroupNorm(8, wide)
        self.drop = eqx.nn.Dropout(0.3)

    def __call__(self, x, state, key=None):
        y, state = self.norm(self.expand(x), state)
        y = self.groups(self.depthwise(jax.nn.relu6(y)))
        return x + self.project(self.drop(jax.nn.relu(y), key=key)), state


class CNN(eqx.Module):
    first: eqx.nn.Conv2d
    stem: eqx.nn.Conv2d
    blocks: list
    out: eqx.nn.Linear

    def __init__(self):
        self.first = eqx.nn.Conv2d(3, 6, 3, padding=1, key=KEYS[14])
        self.stem = eqx.nn.Conv2d(6, 8, 3, padding=1, key=KEYS[0])
        self.blocks = [Inverted(8, KEYS[1:4]), Inverted(8, KEYS[4:7])]
        self.out = eqx.nn.Linear(8, 5, key=KEYS[7])

    def __call__(self, x, state, key=None):
        x = self.stem(jax.nn.relu(self.first(x)))
        for block in self.blocks:
            x, state = block(x, state, key)
        return self.out(x.mean((1, 2))), state


class ViT(eqx.Module):
    """With a convolution in front of its patches."""

    stem: eqx.nn.Conv2d
    patch: eqx.nn.Conv2d
    norms: list
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.Sequential
    out: eqx.nn.Linear

    def __init__(self):
        self.stem = eqx.nn.Conv2d(3, 6, 3, padding=1, key=KEYS[13])
        self.patch = eqx.nn.Conv2d(6, 16, 4, 4, key=KEYS[8])
        self.norms = [eqx.nn.LayerNorm(16) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(4, 16, key=KEYS[9])
        up, down = (
            eqx.nn.Linear(*ends, key=key)
            for ends, key in (((16, 32), KEYS[10]), ((32, 16), KEYS[11]))
        )
        self.mlp = eqx.nn.Sequential([up, eqx.nn.Lambda(jax.nn.gelu), down])
        self.out = eqx.nn.Linear(16, 5, key=KEYS[12])

    def __call__(self, x):
        x = self.patch(jax.nn.relu(self.stem(x))).reshape(16, -1).T
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.out(x.mean(0))


def stateful():
    """A module whose statistics are no identity, and its state."""
    model, state = eqx.nn.make_with_state(CNN)()

    def draw(array):
        floats = jnp.issubdtype(array.dtype, jnp.floating)
        return jnp.asarray(RNG.uniform(0.3, 1, array.shape)) if floats else array

    return model, jax.tree.map(draw, state)


def evaluated(model, images=IMAGES):
    """The outputs of a module, or of a module and its state."""
    model, state = model if isinstance(model, tuple) else (model, None)
    model = eqx.nn.inference_mode(model)
    if state is None:
        return np.asarray(jax.vmap(model)(jnp.asarray(images)))
    mapped = jax.vmap(model, in_axes=(0, None), axis_name="batch")
    return np.asarray(mapped(jnp.asarray(images), state)[0])


def replaced(model, reader, replace):
    """The same with another layer in a place."""
    if isinstance(model, tuple):
        return replaced(model[0], reader, replace), model[1]
    return eqx.tree_at(lambda m: getattr(m, reader), model, replace_fn=replace)


def zeroed(model, reader, gone):
    def with_zeros(layer):
        weight = layer.weight.at[:, gone].set(0)
        return eqx.tree_at(lambda layer: layer.weight, layer, weight)

    return replaced(model, reader, with_zeros)


class Edited(eqx.Module):
    layer: eqx.Module
    edit: Callable

    def __call__(self, x):
        return self.layer(jnp.asarray(self.edit(x)))


def edited(model, reader, edit, images):
    """Image by image, so that `edit` is given numbers."""
    model = replaced(model, reader, lambda layer: Edited(layer, edit))
    model, state = model if isinstance(model, tuple) else (model, None)
    model = eqx.nn.inference_mode(model)
    if state is None:
        return np.stack([model(jnp.asarray(x)) for x in images])
    return np.stack([model(jnp.asarray(x), state)[0] for x in images])


def reloaded(model, small, folder):
    eqx.tree_serialise_leaves(folder / "module.eqx", model)
    return eqx.tree_deserialise_leaves(folder / "module.eqx", small.to_equinox())


EQUINOX = Framework(
    evaluated, zeroed, edited, jaxprune.Compact.to_equinox, reloaded, axis=0
)
# A convolution, and the layer that alone reads its channels.
LAYERS = {"cnn": ("first", "stem"), "vit": ("stem", "patch")}


def build(name):
    if name == "vit":
        return (model := ViT()), jaxprune.from_equinox(model, example=IMAGES)
    return (model := stateful()), jaxprune.from_equinox(*model, IMAGES)


@pytest.mark.parametrize("name", quick(LAYERS, ()))
def test_step_by_step(name, tmp_path):
    model, network = build(name)
    keep = [n for n in network.groups.groups if n.startswith("attention")]
    smaller = walk(
        EQUINOX, model, network, IMAGES, *LAYERS[name], tmp_path, keep_whole=keep
    )
    module = smaller[0] if name == "cnn" else smaller
    assert type(module) is {"cnn": CNN, "vit": ViT}[name]
    assert name == "vit" or not module.blocks[0].drop.inference


def with_offsets(module):
    def is_one(node):
        return isinstance(node, WithOffset)

    return [node for node in jax.tree.leaves(module, is_leaf=is_one) if is_one(node)]


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["drop", "mean"])
def test_the_smaller_module_with_its_state(fill):
    model, state = stateful()
    network = jaxprune.from_equinox(model, state, IMAGES)
    np.testing.assert_allclose(network(IMAGES), evaluated((model, state)), atol=1e-5)
    small = halved(network, IMAGES, fill)
    module, smaller = small.to_equinox()
    assert bool(with_offsets(module)) == (fill == "mean")
    assert type(module) is CNN and not module.blocks[0].drop.inference
    np.testing.assert_allclose(evaluated((module, smaller)), small(IMAGES), atol=1e-5)
    first = module.blocks[0]
    assert first.depthwise.groups == first.expand.out_channels == 16
    assert first.groups.channels == 4 * first.groups.groups == first.expand.out_channels
    assert model.blocks[0].depthwise.groups == 32


@pytest.mark.slow
def test_attention_and_layers_in_sequences():
    model = ViT()
    network = jaxprune.from_equinox(model, example=IMAGES)
    np.testing.assert_allclose(network(IMAGES), evaluated(model), atol=1e-5)
    small = halved(network, IMAGES)
    module = small.to_equinox()
    np.testing.assert_allclose(evaluated(module), small(IMAGES), atol=1e-5)
    assert module.mlp.layers[0].out_features == module.mlp.layers[2].in_features == 16


@pytest.mark.slow
def test_it_is_trained_saved_and_loaded(tmp_path):
    model, state = stateful()
    network = jaxprune.from_equinox(model, state, IMAGES)
    small = halved(network, IMAGES, "mean")
    module, now = small.to_equinox()
    optimiser = optax.adam(1e-2)
    labels = jnp.asarray(np.arange(len(IMAGES)) % 5)
    held = optimiser.init(eqx.filter(module, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(module, state, held, key):
        @eqx.filter_value_and_grad(has_aux=True)
        def loss(module):
            keys = jax.random.split(key, len(IMAGES))
            mapped = jax.vmap(
                module, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch"
            )
            logits, new = mapped(jnp.asarray(IMAGES), state, keys)
            cross = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return cross.mean(), new

        (value, state), gradients = loss(module)
        updates, held = optimiser.update(gradients, held)
        return eqx.apply_updates(module, updates), state, held, value

    before, losses = jax.tree.leaves(now), []
    maps = [added.rows for added in with_offsets(module)]
    assert maps
    with jax.numpy_dtype_promotion("standard"):  # of the optimiser's
        for key in jax.random.split(jax.random.key(1), 20):
            module, now, held, value = step(module, now, held, key)
            losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]
    pairs = zip(before, jax.tree.leaves(now), strict=True)
    moved = [np.abs(np.asarray(a, float) - np.asarray(b)).max() for a, b in pairs]
    assert max(moved) > 1e-3  # of the statistics
    for added, rows in zip(with_offsets(module), maps, strict=True):
        np.testing.assert_array_equal(added.rows, rows)
    again = reloaded((module, now), small, tmp_path)
    np.testing.assert_array_equal(evaluated(again), evaluated((module, now)))


def test_other_objects_are_refused_in_one_line():
    with pytest.raises(InputError, match="model must be an Equinox module, got int"):
        jaxprune.from_equinox(3)
    model = ViT()
    with pytest.raises(InputError, match=r"jaxprune\.from_equinox\(model\)"):
        jaxprune.find_groups(model, IMAGES)
