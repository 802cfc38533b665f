"""Files that Keras writes: a recipe's network, or refused by the layer that differs.

The recipe is a small PairCNN. Each file is also read as a network of its own, and one
with fewer channels of it compared with the same Keras model, weights really zeroed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.recipes.keras_import import import_keras
from jaxprune.recipes.models import PairCNN
from random_data import random_variables
from selected import quick

keras = pytest.importorskip("keras")
layers = keras.layers

SHAPE = (8, 8, 2)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, *SHAPE)).astype(np.float32)
MODEL = PairCNN(widths=(4, 4, 4), dense=(4, 3))
RECIPE = jaxprune.from_linen(
    MODEL, random_variables(MODEL, IMAGES), IMAGES, train=False
)
GONE = np.array([True, False, True, False])


class Pair:
    """The recipe's network in Keras; subclasses change something.

    Attributes:
      names: whether its layers have the recipe's names.
      softmax: whether it ends with one.
    """

    names = True
    softmax = False

    def build(self):
        image = keras.Input(SHAPE)
        x = self.first(image)
        for i in (1, 2, 3):
            x = self.pool(self.block(x, i))
        x = layers.Dense(4, activation="relu", **self.name("dense1"))(self.flat(x))
        return keras.Model(image, self.last(layers.Dense(3, **self.name("dense2"))(x)))

    def name(self, name):
        return {"name": name} if self.names else {}

    def first(self, x):
        return x

    def block(self, x, i):
        return self.activation(self.norm(self.conv(x, i), i))

    def conv(self, x, i):
        return layers.Conv2D(4, 3, padding="same", **self.name(f"conv{i}"))(x)

    def norm(self, x, i):
        return layers.BatchNormalization(epsilon=1e-5, **self.name(f"bn{i}"))(x)

    def activation(self, x):
        return layers.ReLU()(x)

    def pool(self, x):
        return layers.MaxPooling2D()(x)

    def flat(self, x):
        return layers.Flatten()(x)

    def last(self, x):
        return layers.Softmax()(x) if self.softmax else x


def pair(**changes):
    """The network with other methods."""
    return type("Changed", (Pair,), changes)().build


def activation(layer):
    return pair(activation=lambda self, x: layer()(x))


def at_2(method, other):
    """The network with another second layer of a kind."""
    plain = getattr(Pair, method)
    changed = lambda self, x, i: other(self, x) if i == 2 else plain(self, x, i)  # noqa: E731
    return pair(**{method: changed})


def conv(**options):
    return at_2("conv", lambda self, x: layers.Conv2D(
        **{"filters": 4, "kernel_size": 3, "padding": "same", "name": "conv2"} | options
    )(x))  # fmt: skip


def padded(self, x, i):
    x = layers.ZeroPadding2D(1)(x)
    return layers.Conv2D(4, 3, **self.name(f"conv{i}"))(x)


def nested(self, x, i):
    """Each block a model of its own, of layers whose names are the same in each."""
    y = inner = keras.Input(x.shape[1:])
    y = layers.Conv2D(4, 3, padding="same", name="conv")(y)
    y = layers.BatchNormalization(epsilon=1e-5, name="bn")(y)
    return keras.Model(inner, layers.ReLU()(y), name=f"block{i}")(x)


def swapped(self, name):
    """Two layers of one shape have each other's names."""
    return {"name": {"conv2": "conv3", "conv3": "conv2"}.get(name, name)}


def branches(self, x):
    """Two equal convolutions beside one another."""
    pair = [layers.Conv2D(4, 3, padding="same", name=n)(x) for n in ("conv2", "conv4")]
    return layers.Add()(pair)


EQUAL = {
    "as it is": pair(),
    "softmax": pair(softmax=True),
    "softmax as an activation": pair(last=lambda self, x: keras.activations.softmax(x)),
    "names that Keras gives": pair(names=False),
    "nested": pair(names=False, block=nested),
    "padding as a layer": pair(conv=padded),
    "relu as an activation": activation(lambda: layers.Activation("relu")),
    "dropout and noise": pair(
        flat=lambda self, x: layers.Dropout(0.5)(layers.Flatten()(x)),
        first=lambda self, x: layers.GaussianNoise(0.3)(layers.RandomFlip()(x)),
        pool=lambda self, x: layers.SpatialDropout2D(0.2)(layers.MaxPooling2D()(x)),
    ),
    "mean of one position": pair(
        flat=lambda self, x: layers.GlobalAveragePooling2D()(x)
    ),
}
# With what is said of them.
OTHERS = {
    "names exchanged": (pair(name=swapped), "'conv2' .'conv2' here. is given, by"),
    "epsilon": (
        pair(norm=lambda self, x, i: layers.BatchNormalization(name=f"bn{i}")(x)),
        "'conv2' .'conv2' here. is given, by way of bn1, .* differs by 0.0",
    ),
    "layer norm": (
        at_2("norm", lambda self, x: layers.LayerNormalization(name="bn2")(x)),
        "layer 'bn2' does not fit 'bn2': it has bias",
    ),
    "group norm": (
        at_2("norm", lambda self, x: layers.GroupNormalization(2)(x)), "does not fit",
    ),
    "norm without a shift": (
        at_2("norm", lambda self, x: layers.BatchNormalization(center=False)(x)),
        "does not fit 'bn2'",
    ),
    "norm behind relu": (
        pair(block=lambda self, x, i: self.norm(self.activation(self.conv(x, i)), i)),
        "'conv2' .'conv2' here. is given, by way of re_lu",
    ),
    "rescaling": (
        pair(first=lambda self, x: layers.Rescaling(1 / 255)(x)),
        "'conv1' .'conv1' here. is given, by way of rescaling",
    ),
    "normalization": (
        pair(first=lambda self, x: layers.Normalization(mean=0.3, variance=2.0)(x)),
        "'conv1' .'conv1' here. is given, by way of normalization",
    ),
    "leaky relu": (activation(layers.LeakyReLU), "by way of .*leaky_re_lu"),
    "tanh": (activation(lambda: layers.Activation("tanh")), "'conv2' .* is given"),
    "a ceiling": (activation(lambda: layers.ReLU(0.5)), "'conv2' .* is given"),
    "prelu": (activation(layers.PReLU), "has a weight 'alpha', which no Conv2D"),
    "average pool": (
        pair(pool=lambda self, x: layers.AveragePooling2D(2)(x)), "average_pooling2d",
    ),
    "strides for a pool": (
        pair(conv=lambda self, x, i: layers.Conv2D(4, 3, 2, "same", name=f"conv{i}")(x),
             pool=lambda self, x: x), "'conv1' .'conv1' here. returns is of another",
    ),
    "one more padding": (
        pair(first=lambda self, x: layers.ZeroPadding2D(1)(x)),
        "'conv1' .* is given, by way of zero_padding2d, is of another shape",
    ),
    "padding on one side": (
        at_2("conv", lambda self, x: layers.Conv2D(4, 3, name="conv2")(
            layers.ZeroPadding2D(((2, 0), (0, 2)))(x))), "'conv2' .* (given|returns)",
    ),
    "unit normalization": (
        pair(flat=lambda self, x: layers.UnitNormalization()(layers.Flatten()(x))),
        "'dense1' .* is given, by way of .*unit_normalization",
    ),
    "channels first": (
        pair(pool=lambda self, x: x if x.shape[1] == 4 else layers.MaxPooling2D()(x),
             flat=lambda self, x: layers.Flatten()(layers.Permute((3, 1, 2))(x))),
        "layer 'dense1' does not fit",
    ),
    "a transposed image": (
        pair(first=lambda self, x: layers.Permute((2, 1, 3))(x)), "by way of permute",
    ),
    "channels in another order": (
        at_2("norm", lambda self, x: Pair.norm(self, x[..., ::-1], 2)), "is given",
    ),
    "transposed convolution": (
        at_2("conv", lambda self, x: layers.Conv2DTranspose(
            4, 3, padding="same", name="conv2")(x)), "'conv2' .'conv2' here. returns",
    ),
    "depthwise convolution": (
        at_2("conv", lambda self, x: layers.DepthwiseConv2D(
            3, padding="same", name="conv2")(x)), "layer 'conv2' does not fit 'conv2'",
    ),
    "separable convolution": (
        at_2("conv", lambda self, x: layers.SeparableConv2D(
            4, 3, padding="same", name="conv2")(x)), "has a weight '\\w+_kernel'",
    ),
    "a convolution in groups": (conv(groups=2), "layer 'conv2' does not fit 'conv2'"),
    "dilation": (conv(dilation_rate=2), "'conv2' .'conv2' here. returns differs"),
    "no bias": (conv(use_bias=False), "layer 'conv2' does not fit 'conv2'"),
    "another width": (conv(filters=5), "'conv2' does not fit 'conv2'.*bias .5,."),
    "an activation more": (conv(activation="relu"), "'conv3' .* is given, by way of"),
    "two branches": (at_2("conv", branches), "has 4 convolutions, the network has 3"),
    "sigmoid": (
        pair(last=lambda self, x: layers.Activation("sigmoid")(x)), "output becomes",
    ),
    "temperature": (
        pair(last=lambda self, x: layers.Softmax()(layers.Rescaling(0.5)(x))),
        "what its last layer's output becomes, by way of rescaling, softmax",
    ),
    "two results": (
        pair(last=lambda self, x: [x, layers.Softmax()(x)]), "does not return logits",
    ),
}  # fmt: skip
QUICK = ("softmax", "names that Keras gives", "epsilon", "transposed convolution")


def saved(build, path):
    """The model with weights drawn, saved; read by Keras alone."""
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    model = build()
    rng = np.random.default_rng(3)
    for variable in model.weights:
        if variable.dtype == "float32":
            low = 0.2 if variable.name in ("gamma", "moving_variance") else -1
            variable.assign(rng.uniform(low, 1, variable.shape))
    model.save(path)
    return keras.models.load_model(path, compile=False)


def evaluated(model):
    return jax.tree.map(np.asarray, model(IMAGES, training=False))


@pytest.mark.parametrize("name", quick(EQUAL, [n for n in QUICK if n in EQUAL]))
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_the_recipe_s_network(name, suffix, tmp_path):
    model = saved(EQUAL[name], path := tmp_path / f"model.{suffix}")
    variables = import_keras(path, RECIPE, IMAGES[:4])
    found = MODEL.apply(variables, jnp.asarray(IMAGES), train=False)
    expected = evaluated(model)
    if name.startswith("softmax"):
        found = jax.nn.softmax(found)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", quick(OTHERS, [n for n in QUICK if n in OTHERS]))
def test_another_network_is_refused_by_the_layer_that_differs(name, tmp_path):
    build, message = OTHERS[name]
    saved(build, path := tmp_path / "model.keras")
    with pytest.raises(InputError, match=message) as refused:
        import_keras(path, RECIPE, IMAGES[:4])
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


ALL = {**EQUAL, **{name: build for name, (build, _) in OTHERS.items()}}
# The second convolution's channels cannot go, or not by halves.
WHOLE = ("layer norm", "group norm", "a convolution in groups")


@pytest.mark.parametrize("name", quick(ALL, QUICK))
def test_any_of_them_is_a_network_of_its_own(name, tmp_path):
    """Half of the second convolution's channels are dropped, or predicted."""
    model = saved(ALL[name], path := tmp_path / "model.keras")
    network = jaxprune.from_keras(path, IMAGES)
    for own, theirs in zip(
        jax.tree.leaves(network(IMAGES)), jax.tree.leaves(evaluated(model)), strict=True
    ):
        np.testing.assert_allclose(own, theirs, atol=1e-5)
    layer = [n for n, found in network.layers.items() if found.kind == "conv"][1]
    if name in WHOLE:
        with pytest.raises(InputError) as refused:
            jaxprune.compact(network, layer, np.arange(4) > 1, fill="drop")
        assert "\n" not in str(refused.value)
        return
    group = network.graph().channels_of(layer)
    keep = np.arange(group.units) % 2 == 1
    small = jaxprune.compact(network, layer, keep, fill="drop")
    # Keras's own code on the same arrays, zero for each channel that has gone.
    arrays = {path: np.array(array) for path, array in network.arrays.items()}
    for (path, axis), owner in group.leaves.items():
        gone = (owner >= 0) & ~keep[owner]
        np.moveaxis(arrays[path], axis, 0)[gone] = 0
    masked = network.with_params(network.tree(arrays))(IMAGES)
    for own, theirs in zip(
        jax.tree.leaves(small(IMAGES)), jax.tree.leaves(masked), strict=True
    ):
        np.testing.assert_allclose(own, theirs, atol=2e-5)
    fill = jaxprune.linear_fill(network, IMAGES, layer=layer, ridge=1e-2)
    small = jaxprune.compact(network, layer, keep, fill=fill)
    for own, theirs in zip(
        jax.tree.leaves(small(IMAGES)), jax.tree.leaves(evaluated(small.to_keras())),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(own, theirs, atol=2e-5)
