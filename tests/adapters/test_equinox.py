"""Equinox: modules read, pruned and handed back; they themselves are the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from selected import quick

eqx = pytest.importorskip("equinox")
from jaxprune.adapters.equinox import WithOffset  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 3, 12, 12)).astype(np.float32)
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
    stem: eqx.nn.Conv2d
    blocks: list
    out: eqx.nn.Linear

    def __init__(self):
        self.stem = eqx.nn.Conv2d(3, 8, 3, padding=1, key=KEYS[0])
        self.blocks = [Inverted(8, KEYS[1:4]), Inverted(8, KEYS[4:7])]
        self.out = eqx.nn.Linear(8, 5, key=KEYS[7])

    def __call__(self, x, state, key=None):
        x = self.stem(x)
        for block in self.blocks:
            x, state = block(x, state, key)
        return self.out(x.mean((1, 2))), state


class ViT(eqx.Module):
    patch: eqx.nn.Conv2d
    norms: list
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.Sequential
    out: eqx.nn.Linear

    def __init__(self):
        self.patch = eqx.nn.Conv2d(3, 16, 4, 4, key=KEYS[8])
        self.norms = [eqx.nn.LayerNorm(16) for _ in range(2)]
        self.attention = eqx.nn.MultiheadAttention(4, 16, key=KEYS[9])
        up, down = (
            eqx.nn.Linear(*ends, key=key)
            for ends, key in (((16, 32), KEYS[10]), ((32, 16), KEYS[11]))
        )
        self.mlp = eqx.nn.Sequential([up, eqx.nn.Lambda(jax.nn.gelu), down])
        self.out = eqx.nn.Linear(16, 5, key=KEYS[12])

    def __call__(self, x):
        x = self.patch(x).reshape(16, -1).T
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


def evaluated(model, state=None):
    model = eqx.nn.inference_mode(model)
    if state is None:
        return np.asarray(jax.vmap(model)(jnp.asarray(IMAGES)))
    mapped = jax.vmap(model, in_axes=(0, None), axis_name="batch")
    return np.asarray(mapped(jnp.asarray(IMAGES), state)[0])


def with_offsets(module):
    def is_one(node):
        return isinstance(node, WithOffset)

    return [node for node in jax.tree.leaves(module, is_leaf=is_one) if is_one(node)]


@pytest.mark.parametrize("fill", quick(["drop", "mean"], ("mean",)))
def test_the_smaller_module_with_its_state(fill):
    model, state = stateful()
    network = jaxprune.from_equinox(model, state, IMAGES)
    np.testing.assert_allclose(network(IMAGES), evaluated(model, state), atol=1e-5)
    small = halved(network, IMAGES, fill)
    module, smaller = small.to_equinox()
    assert bool(with_offsets(module)) == (fill == "mean")
    assert type(module) is CNN and not module.blocks[0].drop.inference
    np.testing.assert_allclose(evaluated(module, smaller), small(IMAGES), atol=1e-5)
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
def test_weights_really_zeroed_in_the_module():
    model, state = stateful()
    gone = np.arange(8) % 3 == 0
    network = jaxprune.from_equinox(model, state, IMAGES)
    name = next(n for n in network.groups.groups if n.startswith("blocks/1"))
    units = network.groups.groups[name].units
    gone = np.arange(units) % 3 == 0
    small = jaxprune.compact_groups(network, {name: (~gone, "drop")})
    # A unit is what GroupNorm joins: four channels of 32.
    channels = np.repeat(gone, 32 // units)
    weight = np.array(model.blocks[1].project.weight)
    weight[:, channels] = 0
    zeroed = eqx.tree_at(
        lambda m: m.blocks[1].project.weight, model, jnp.asarray(weight)
    )
    expected = evaluated(zeroed, state)
    np.testing.assert_allclose(evaluated(*small.to_equinox()), expected, atol=1e-5)


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
    eqx.tree_serialise_leaves(tmp_path / "module.eqx", (module, now))
    again = eqx.tree_deserialise_leaves(tmp_path / "module.eqx", small.to_equinox())
    np.testing.assert_array_equal(evaluated(*again), evaluated(module, now))


def test_other_objects_are_refused_in_one_line():
    with pytest.raises(InputError, match="model must be an Equinox module, got int"):
        jaxprune.from_equinox(3)
    model = ViT()
    with pytest.raises(InputError, match=r"jaxprune\.from_equinox\(model\)"):
        jaxprune.find_groups(model, IMAGES)
