"""Flax NNX: modules read, pruned and handed back; they themselves are the truth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from selected import quick
from steps import Framework, walk

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 8, 8, 3)).astype(np.float32)


class VGG(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.second = nnx.Conv(8, 12, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.hidden = nnx.Linear(12 * 4, 20, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(20, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.max_pool(nnx.relu(self.second(x)), (4, 4), strides=(4, 4))
        x = self.drop(x.reshape(len(x), -1))
        return self.out(nnx.relu(self.hidden(x)))


class Block(nnx.Module):
    """A residual block, squeeze and excitation inside it."""

    def __init__(self, given, features, stride, rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(given, features, (3, 3), strides=stride)
        self.norm1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = conv(features, features, (3, 3))
        self.norm2 = nnx.BatchNorm(features, rngs=rngs)
        self.squeeze = nnx.Linear(features, features // 2, rngs=rngs)
        self.excite = nnx.Linear(features // 2, features, rngs=rngs)
        self.project = None if stride == 1 else conv(given, features, (1, 1), stride)

    def __call__(self, x):
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(y.mean((1, 2))))))
        x = x if self.project is None else self.project(x)
        return nnx.relu(x + y * gate[:, None, None])


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(8, 8, 1, rngs), Block(8, 12, 2, rngs)])
        self.out = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))


class Mobile(nnx.Module):
    """Depthwise, grouped and transposed convolutions, and GroupNorm."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
        self.norm = nnx.GroupNorm(16, num_groups=8, use_scale=False, rngs=rngs)
        self.up = nnx.ConvTranspose(16, 12, (2, 2), strides=(2, 2), rngs=rngs)
        self.grouped = nnx.Conv(12, 12, (3, 3), feature_group_count=3, rngs=rngs)
        self.mix = nnx.Conv(12, 8, (1, 1), rngs=rngs)
        self.last = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.out = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.depthwise(nnx.relu(self.stem(x)))))
        x = nnx.relu(self.grouped(nnx.relu(self.up(x))))
        x = nnx.relu(self.last(nnx.relu(self.mix(x))))
        return self.out(x.mean((1, 2)))


class ViT(nnx.Module):
    """With a convolution in front of its patches."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.patch = nnx.Conv(6, 16, (2, 2), strides=2, rngs=rngs)
        self.place = nnx.Param(jax.random.normal(rngs.params(), (1, 16, 16)))
        self.norms = nnx.List([nnx.LayerNorm(16, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)
        self.out = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        x = self.patch(nnx.relu(self.stem(x))).reshape(len(x), 16, -1)
        x = x + self.place[...]
        x = x + self.attention(self.norms[0](x))
        x = x + self.down(nnx.gelu(self.up(self.norms[1](x))))
        return self.out(x.mean(1))


# A module; a convolution, and the layer that alone reads its channels.
ALL = {
    "vgg": (VGG, "first", ("second",)),
    "resnet": (ResNet, "blocks/0/conv1", ("blocks", 0, "conv2")),
    "mobile": (Mobile, "mix", ("last",)),
    "vit": (ViT, "stem", ("patch",)),
}


def build(name):
    """A module in which no normalisation is the identity and no bias is zero."""
    model = ALL[name][0](nnx.Rngs(0))
    state = nnx.state(model, nnx.Not(nnx.RngState))

    def draw(array):
        if array.ndim == 1:
            return jnp.asarray(RNG.uniform(0.2, 1, array.shape), array.dtype)
        return array

    nnx.update(model, jax.tree.map(draw, state))
    return model, jaxprune.from_nnx(model, IMAGES)


def evaluated(model, images=IMAGES):
    """The output of a module in evaluation mode, whose caller keeps its own."""
    model = nnx.clone(model)
    model.eval()
    return np.asarray(model(jnp.asarray(images)))


def at(node, way):
    for key in way:
        node = getattr(node, key) if isinstance(key, str) else node[key]
    return node


def zeroed(model, reader, gone):
    model = nnx.clone(model)
    kernel = at(model, reader).kernel
    kernel[...] = kernel[...].at[:, :, gone].set(0)
    return model


class Edited(nnx.Module):
    def __init__(self, module, edit):
        self.module, self.edit = module, edit

    def __call__(self, x):
        return self.module(jnp.asarray(self.edit(x)))


def edited(model, reader, edit, images):
    model = nnx.clone(model)
    setattr(at(model, reader[:-1]), reader[-1], Edited(at(model, reader), edit))
    return evaluated(model, images)


def reloaded(module, small, folder):
    """By Orbax, into another module of the same shapes."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
        checkpointer.save(folder / "module", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder / "module", state)
    again = small.to_nnx()
    state = nnx.state(again, nnx.Not(nnx.RngState))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(again, state)
    return again


FLAX = Framework(evaluated, zeroed, edited, jaxprune.Compact.to_nnx, reloaded)


@pytest.mark.parametrize("name", quick(ALL, ("vgg",)))
def test_step_by_step(name, tmp_path):
    model, network = build(name)
    kind, layer, reader = ALL[name]
    keep = [n for n in network.groups.groups if n.startswith("attention")]
    if name == "mobile":  # no map can be added to what a transposed convolution returns
        keep = ["depthwise"]
    smaller = walk(
        FLAX, model, network, IMAGES, layer, reader, tmp_path, keep_whole=keep
    )
    assert type(smaller) is kind and type(smaller.out.kernel) is nnx.Param
    sizes = [
        sum(x.size for x in jax.tree.leaves(nnx.state(m))) for m in (model, smaller)
    ]
    assert sizes[1] < sizes[0]
    # The caller's module is as it was, in training mode.
    assert name != "vgg" or not (model.drop.deterministic or smaller.drop.deterministic)


@pytest.mark.parametrize("fill", ["drop", pytest.param("mean", marks=pytest.mark.slow)])
def test_half_of_every_group(fill):
    """Whole heads of attention, groups of GroupNorm; and maps of means."""
    _, network = build("vit" if fill == "drop" else "vgg")
    small = halved(network, IMAGES, fill)
    assert fill == "drop" or "offsets/" in "".join(small.arrays)
    np.testing.assert_allclose(evaluated(small.to_nnx()), small(IMAGES), atol=2e-5)


@pytest.mark.slow
def test_numbers_beside_the_arrays_are_set():
    _, network = build("mobile")
    module = halved(network, IMAGES).to_nnx()
    assert module.depthwise.feature_group_count == module.depthwise.in_features == 8
    assert module.norm.num_groups == 4 and module.norm.bias.shape == (8,)
    assert (
        module.up.in_features == 8
        and module.up.out_features == module.grouped.in_features
    )


@pytest.mark.slow
def test_it_is_trained_saved_and_loaded(tmp_path):
    _, network = build("vgg")
    small = jaxprune.shrink(network, IMAGES, speedup=1.5)
    assert any(path.startswith("offsets/") for path in small.arrays)
    module = small.to_nnx()
    module.train()
    before = np.array(module.norm.mean[...])
    optimizer = nnx.Optimizer(module, optax.adam(3e-3), wrt=nnx.Param)
    labels = jnp.asarray(np.arange(len(IMAGES)) % 5)

    @nnx.jit
    def step(module, optimizer):
        def loss(module):
            logits = module(jnp.asarray(IMAGES))
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    with jax.numpy_dtype_promotion("standard"):  # of the optimiser's
        losses = [float(step(module, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]
    assert np.abs(module.norm.mean[...] - before).max() > 1e-3  # statistics move
    random = [np.asarray(module(jnp.asarray(IMAGES))) for _ in range(2)]
    assert np.abs(random[0] - random[1]).max() > 1e-3  # Dropout draws

    again = reloaded(module, small, tmp_path)
    np.testing.assert_array_equal(evaluated(again), evaluated(module))


def test_code_that_keeps_a_number_of_channels_is_not_handed_back():
    class Counted(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.out = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.conv(x)).sum((1, 2)) / self.out.in_features)

    class Split(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.out = nnx.Linear(4, 5, rngs=rngs)

        def __call__(self, x):
            x = self.conv(x).mean((1, 2))
            return self.out(x[:, :4] * nnx.sigmoid(x[:, 4:]))

    for kind in (Counted, Split):
        network = jaxprune.from_nnx(kind(nnx.Rngs(0)), IMAGES)
        small = halved(network, IMAGES)
        with pytest.raises(InputError, match="cannot be handed back: its own code"):
            small.to_nnx()


@pytest.mark.slow
def test_what_no_module_can_be_is_refused_in_one_line():
    class Plain(nnx.Module):
        """GroupNorm without a scale or a bias, whose channels no array has."""

        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.GroupNorm(8, 4, use_scale=False, use_bias=False, rngs=rngs)
            self.out = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    network = jaxprune.from_nnx(Plain(nnx.Rngs(0)), IMAGES)
    with pytest.raises(InputError, match="computes something else with fewer chann"):
        halved(network, IMAGES).to_nnx()
    _, network = build("mobile")
    group = network.groups.find("depthwise")
    fills = jaxprune.mean_fills(network, IMAGES, [group])
    keep = np.arange(group.units) > 0
    small = jaxprune.compact_groups(network, {group.name: (keep, fills[group.name])})
    with pytest.raises(InputError, match="'up/kernel' cannot be handed back: a map is"):
        small.to_nnx()
    _, network = build("vit")
    values = network.groups.find("attention/value")
    assert values.units == 4  # numbers of each head
    small = jaxprune.compact_groups(
        network, {"attention/value": (np.arange(4) > 0, "drop")}
    )
    with pytest.raises(InputError, match="4 numbers are left of each head's queries"):
        small.to_nnx()


def test_other_objects_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"model must be a flax\.nnx Module, got int"):
        jaxprune.from_nnx(3)
    model, network = build("vgg")
    small = jaxprune.compact(network, "first", np.arange(8) < 5)
    with pytest.raises(InputError, match="was no Keras model"):
        small.to_keras()
    for call in (
        lambda: jaxprune.find_groups(model, IMAGES),
        lambda: jaxprune.Network(model, network.params),
    ):
        with pytest.raises(InputError, match=r"Module.*: jaxprune\.from_nnx\(model\)"):
            call()
