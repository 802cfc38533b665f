"""Keras: models read, pruned and handed back; Keras itself is the truth."""

import numpy as np
import pytest

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from selected import quick

pytest.importorskip("keras")
from jaxprune.adapters.keras import keras

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 16, 16, 3)).astype(np.float32)
layers = keras.layers


def functional():
    """Two branches, scaling inside, norms, separable and depthwise convolutions."""
    image = keras.Input((16, 16, 3))
    x = layers.Rescaling(0.5)(image)
    x = layers.Conv2D(8, 3, padding="same", name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    y = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1)(x)])
    x = layers.Conv2D(16, 3, padding="same", activation="tanh", name="second")(x)
    x = layers.Dropout(0.3)(layers.DepthwiseConv2D(3)(x))
    x = layers.GroupNormalization(4)(layers.Conv2D(12, 3, groups=2)(x))
    x = layers.Dense(20, activation="elu", use_bias=False)(layers.Flatten()(x))
    return keras.Model(image, layers.Dense(5)(x))


def sequential():
    """Sequentials inside a Sequential, with layers of one name."""

    def inner(shape, name):
        conv = layers.Conv2D(8, 3, padding="same", name="conv")
        parts = [keras.Input(shape), conv, layers.LeakyReLU(), layers.MaxPool2D()]
        return keras.Sequential(parts, name=name)

    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.ZeroPadding2D(1),
            layers.Conv2D(8, 3, activation="relu"),
            inner((16, 16, 8), "one"),
            inner((8, 8, 8), "two"),
            layers.Conv2DTranspose(6, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )


def shared():
    """A model that is called twice inside another, and operations on arrays."""
    x = keras.Input((8, 8, 8))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(x)
    block = keras.Model(x, layers.Add()([x, y]), name="block")
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(image)
    x = keras.ops.tanh(block(block(x))) * 1.5
    x = layers.Conv2D(8, 3, activation="relu", name="last")(x)
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def transformer():
    image = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 4, 4)(image))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(y, y)])
    y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(16)(y)])
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


ALL = {f.__name__: f for f in (functional, sequential, shared, transformer)}


def build(name):
    """A model in which no normalisation is the identity and no bias is zero."""
    keras.utils.set_random_seed(0)
    model = ALL[name]()
    for variable in model.variables:
        if len(variable.shape) == 1 and variable.dtype == "float32":
            variable.assign(RNG.uniform(0.2, 1, variable.shape))
    return model, jaxprune.from_keras(model, IMAGES)


def evaluated(model):
    return np.asarray(model(IMAGES, training=False))


@pytest.mark.parametrize("name", quick(ALL, ("functional",)))
@pytest.mark.parametrize("fill", ["drop", "mean"])
def test_the_smaller_model_is_the_smaller_network(name, fill, tmp_path):
    model, network = build(name)
    np.testing.assert_allclose(network(IMAGES), evaluated(model), atol=1e-5)
    if (name, fill) == ("transformer", "mean"):
        return  # products of two values take 'drop' alone
    small = halved(network, IMAGES, fill)
    if (name, fill) == ("shared", "mean"):
        with pytest.raises(InputError, match="kernel is read 2 times"):
            small.to_keras()
        return
    back = small.to_keras()
    np.testing.assert_allclose(evaluated(back), small(IMAGES), atol=2e-5)
    if fill == "drop":
        assert len(back.variables) == len(model.variables)
    if fill == "drop":  # else there are maps
        assert back.count_params() < model.count_params()
    # In Keras alone, without code of ours.
    back.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras", safe_mode=True)
    np.testing.assert_array_equal(evaluated(again), evaluated(back))


def test_weights_really_zeroed_in_the_model():
    model, network = build("sequential")
    gone = np.arange(8) % 3 == 0
    small = jaxprune.compact(network, "one/conv", ~gone, fill="drop")
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    reader = twin.get_layer("two").get_layer("conv")
    kernel, bias = reader.get_weights()
    kernel[:, :, gone] = 0
    reader.set_weights([kernel, bias])
    np.testing.assert_allclose(small(IMAGES), evaluated(twin), atol=2e-5)


def test_it_is_trained_and_loaded(tmp_path):
    _, network = build("functional")
    back = halved(network, IMAGES, "mean").to_keras()
    norm = next(x for x in back.layers if isinstance(x, layers.BatchNormalization))
    before = np.array(norm.moving_mean)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    back.compile(keras.optimizers.Adam(3e-3), loss)
    labels = np.arange(len(IMAGES)) % 5
    history = back.fit(IMAGES, labels, batch_size=32, epochs=20, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert np.abs(np.array(norm.moving_mean) - before).max() > 1e-3
    back.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(evaluated(again), evaluated(back))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_model_is_read_from_its_file(suffix, tmp_path):
    model, _ = build("functional")
    model.save(path := tmp_path / f"model.{suffix}")
    network = jaxprune.from_keras(path, IMAGES)
    np.testing.assert_allclose(network(IMAGES), evaluated(model), atol=1e-6)
    assert jaxprune.from_keras(str(path)).layers.keys() == network.layers.keys()


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    (damaged := tmp_path / "model.keras").write_bytes(b"PK")
    model, network = build("functional")
    model.save_weights(weights := tmp_path / "model.weights.h5")
    counted = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3),
            layers.Lambda(lambda x: x * 2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    counted.save(code := tmp_path / "code.keras")
    for given, message in (
        (3, "must be a Keras model or its file, got int"),
        (tmp_path / "none.h5", "there is no file"),
        (damaged, "Keras cannot read"),
        (weights, "holds weights alone"),
        (code, "Keras cannot read"),
        (keras.Sequential([layers.Dense(3)]), "is not built"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            jaxprune.from_keras(given)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"jaxprune\.from_keras\(model\)"):
        jaxprune.find_groups(model, IMAGES)
    with pytest.raises(InputError, match="was no NNX module"):
        halved(network, IMAGES).to_nnx()


def test_an_architecture_that_keeps_a_width_is_not_handed_back():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(image)
    x = layers.Reshape((64, 8))(x)  # says how many channels there are
    model = keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))
    small = halved(jaxprune.from_keras(model, IMAGES), IMAGES)
    with pytest.raises(InputError, match="cannot be made again"):
        small.to_keras()
