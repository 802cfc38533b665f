"""Keras: models read, pruned and handed back; Keras itself is the truth."""

from functools import partial

import numpy as np
import pytest

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from jaxprune.adapters.hdf5 import check_heaps
from selected import quick
from steps import Framework, walk

pytest.importorskip("keras")
from jaxprune.adapters.keras import keras

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 8, 8, 3)).astype(np.float32)
layers = keras.layers


def functional():
    """Two branches, scaling inside, norms, separable and depthwise convolutions."""
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(0.5)(image)
    x = layers.Conv2D(8, 3, padding="same", name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False)(x))
    y = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1)(x)])
    x = layers.Conv2D(16, 3, padding="same", activation="tanh", name="second")(x)
    x = layers.Dropout(0.3)(layers.DepthwiseConv2D(3)(x))
    x = layers.GroupNormalization(4)(layers.Conv2D(12, 3, groups=2)(x))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="third")(x)
    x = layers.Conv2D(8, 3, padding="same", name="fourth", use_bias=False)(x)
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
            keras.Input((8, 8, 3)),
            layers.ZeroPadding2D(3),
            layers.Conv2D(8, 3, activation="relu"),
            inner((12, 12, 8), "one"),
            inner((6, 6, 8), "two"),
            layers.Conv2DTranspose(6, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )


def shared():
    """A model that is called twice inside another, and operations on arrays."""
    x = keras.Input((4, 4, 8))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(x)
    block = keras.Model(x, layers.Add()([x, y]), name="block")
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(x)
    x = keras.ops.tanh(block(block(x))) * 1.5
    x = layers.Conv2D(8, 3, activation="relu", name="last")(x)
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def flattened():
    """Channels in front of positions, flattened so; norms over the channels."""
    conv = partial(layers.Conv2D, data_format="channels_first", activation="relu")
    return keras.Sequential(
        [
            keras.Input((3, 8, 8)),
            conv(8, 3, padding="same", name="first"),
            layers.BatchNormalization(axis=1),
            conv(8, 3, padding="same", use_bias=False, name="second"),
            layers.MaxPool2D(data_format="channels_first"),
            conv(6, 3, name="third"),
            layers.Flatten(),
            layers.Dense(5),
        ],
        name="flat",
    )


def mixed():
    """Computed in bfloat16, its parameters and logits in float32."""
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        conv = partial(layers.Conv2D, padding="same", activation="relu")
        parts = [
            keras.Input((8, 8, 3)), conv(8, 3, name="first"),
            layers.BatchNormalization(), conv(8, 3, name="second"),
            layers.GlobalAveragePooling2D(), layers.Dense(5, dtype="float32"),
        ]  # fmt: skip
        return keras.Sequential(parts, name="mixed")
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def transformer():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.Reshape((16, 16))(layers.Conv2D(16, 2, 2, name="patch")(x))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(y, y)])
    y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(16)(y)])
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


# A model; a convolution, and the way to the layer that alone reads its channels.
ALL = {
    "functional": (functional, "third", ("fourth",)),
    "sequential": (sequential, "one/conv", ("two", "conv")),
    "shared": (shared, "first", ("conv",)),
    "transformer": (transformer, "stem", ("patch",)),
    "flattened": (flattened, "flat/first", ("second",)),
    "mixed": (mixed, "mixed/first", ("second",)),
}


def images_for(model):
    return IMAGES.transpose(0, 3, 1, 2) if model.input_shape[1] == 3 else IMAGES


def build(name):
    """A model in which no normalisation is the identity and no bias is zero."""
    keras.utils.set_random_seed(0)
    model = ALL[name][0]()
    for variable in model.variables:
        if len(variable.shape) == 1 and variable.dtype == "float32":
            variable.assign(RNG.uniform(0.2, 1, variable.shape))
    return model, jaxprune.from_keras(model, images_for(model))


def evaluated(model, images=None):
    return np.asarray(model(images_for(model) if images is None else images))


def twin(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def at(model, way):
    for name in way:
        model = model.get_layer(name)
    return model


def zeroed(model, reader, gone):
    model = twin(model)
    kernel = at(model, reader).kernel
    array = np.array(kernel)
    array[:, :, gone] = 0
    kernel.assign(array)
    return model


def edited(model, reader, edit, images):
    model = twin(model)
    layer = at(model, reader)
    call = layer.call
    layer.call = lambda x: call(keras.ops.cast(edit(x), x.dtype))
    return evaluated(model, images)


def reloaded(model, small, folder):
    """In Keras alone, without code of ours."""
    model.save(folder / "small.keras")
    return keras.models.load_model(folder / "small.keras", safe_mode=True)


FIRST, LAST = (
    Framework(evaluated, zeroed, edited, jaxprune.Compact.to_keras, reloaded, axis)
    for axis in (1, -1)
)


@pytest.mark.parametrize("name", quick(ALL, ("sequential",)))
def test_step_by_step(name, tmp_path):
    model, network = build(name)
    keep = [n for n in network.groups.groups if n.startswith("multi_head_attention")]
    walk(
        FIRST if name == "flattened" else LAST, model, network, images_for(model),
        ALL[name][1], ALL[name][2], tmp_path, keep_whole=keep,
        tolerance=2e-2 if name == "mixed" else 2e-5,  # bfloat16 has 8 bits
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["functional", "shared", "transformer", "flattened"])
def test_half_of_every_group(name, tmp_path):
    """Whole heads of attention, groups of GroupNorm, a layer that is called twice."""
    model, network = build(name)
    small = halved(network, IMAGES)
    back = small.to_keras()
    expected = small(images_for(model))
    np.testing.assert_allclose(evaluated(back), expected, atol=2e-5)
    assert len(back.variables) == len(model.variables)
    assert back.count_params() < model.count_params()


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


def free_space(data):
    """Where the free space of each heap begins: an object without a number."""
    start = -1
    while (start := data.find(b"GCOL\x01\0\0\0", start + 1)) >= 0:
        end = start + int.from_bytes(data[start + 8 : start + 16], "little")
        at = start + 16
        while at + 16 <= end and data[at : at + 2] != b"\0\0":
            at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
        if at + 16 <= end:
            yield at


def test_a_hole_in_a_heap_is_not_read_for_ever(tmp_path, monkeypatch):
    """The HDF5 library goes on by what is free: of size 0, it would not end."""
    model, _ = build("functional")
    model.save(path := tmp_path / "model.h5")
    whole = path.read_bytes()
    check_heaps(path)
    places = [*free_space(whole)]
    assert places
    monkeypatch.setattr(keras.models, "load_model", lambda *a, **k: pytest.fail("read"))
    for at in places:
        path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
        with pytest.raises(InputError, match=r"model\.h5 is damaged: its heap at byte"):
            jaxprune.from_keras(path)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    (damaged := tmp_path / "model.keras").write_bytes(b"PK")
    model, network = build("functional")
    model.save_weights(weights := tmp_path / "model.weights.h5")
    counted = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
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
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(image)
    x = layers.Reshape((16, 8))(x)  # says how many channels there are
    model = keras.Model(image, layers.Dense(5)(layers.Flatten()(x)))
    small = halved(jaxprune.from_keras(model, IMAGES), IMAGES)
    with pytest.raises(InputError, match="cannot be made again"):
        small.to_keras()


class Subclassed(keras.Model):
    """Read as any other; made again by nobody, as its call is code."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(8, 3, activation="relu")
        self.pool, self.out = layers.GlobalAveragePooling2D(), layers.Dense(5)

    def call(self, x):
        return self.out(self.pool(self.conv(x)))


def in_layers(*middle):
    """A model around some layers, which are given 8 channels."""
    conv = layers.Conv2D(8, 3, strides=2, activation="relu", name="conv")
    pool = layers.GlobalAveragePooling2D()
    parts = [keras.Input((8, 8, 3)), conv, *middle, pool, layers.Dense(5)]
    return keras.Sequential(parts)


def test_a_subclassed_model_is_read():
    (model := Subclassed())(IMAGES)
    network = jaxprune.from_keras(model, IMAGES)
    np.testing.assert_allclose(network(IMAGES), evaluated(model, IMAGES), atol=1e-5)
    with pytest.raises(InputError, match="cannot be made again"):
        halved(network, IMAGES).to_keras()


@pytest.mark.slow
def test_layers_that_follow_from_their_arrays():
    """Several outputs of an `EinsumDense`; a GroupNorm without a scale."""
    model = in_layers(
        layers.EinsumDense("bxyc,chd->bxyhd", (None, None, 2, 6), bias_axes="hd"),
        layers.EinsumDense("bxyhd,hdc->bxyc", (None, None, 8)),
        layers.GroupNormalization(4, scale=False),
        layers.Conv2D(4, 1),
    )
    network = jaxprune.from_keras(model, IMAGES)
    small = halved(network, IMAGES)
    back = small.to_keras()
    np.testing.assert_allclose(evaluated(back), small(IMAGES), atol=2e-5)
    assert back.layers[1].get_config()["output_shape"] != (None, None, 2, 6)
    assert back.layers[3].groups == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer, message",
    [
        (lambda: layers.TimeDistributed(layers.Dense(6)), "a TimeDistributed, has"),
        (lambda: layers.SpectralNormalization(layers.Conv2D(8, 1)), "back: "),
        (lambda: layers.GroupNormalization(4, scale=False, center=False), "back: "),
    ],
)
def test_what_no_configuration_says_is_refused_in_one_line(layer, message):
    network = jaxprune.from_keras(in_layers(layer()), IMAGES)
    with pytest.raises(InputError, match=message) as refused:
        halved(network, IMAGES).to_keras()
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_layer_that_is_called_twice_takes_no_map():
    _, network = build("shared")
    with pytest.raises(InputError, match="kernel is read 2 times"):
        halved(network, IMAGES, "mean").to_keras()
