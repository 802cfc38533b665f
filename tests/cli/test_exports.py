"""Other forms of a smaller network: run on all images, and compared with it."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.cli import exports
from jaxprune.cli.baseline import Baseline
from jaxprune.cli.settings import SmallerSettings
from jaxprune.tasks.classes import classification
from random_data import random_split

keras = pytest.importorskip("keras", reason="pip install -e '.[keras]'")
SPLIT = random_split(n=23)


def scale(images):
    return images.astype(jnp.float32) / 255


class OfNetwork(Baseline):
    """Some network over the split."""

    def __init__(self, network):
        config = SimpleNamespace(
            model="net.keras", pixel_mean=(0.0,), pixel_std=(255.0,)
        )
        self.run = SimpleNamespace(
            scale=scale, mesh=make_mesh(), config=config, channels_first=False
        )
        self.network, self.batch_size = network, 16
        self.keeps_predictions = False
        self.split = self.own = SPLIT
        self.task = classification()
        self.example = network.example


@pytest.fixture(scope="module")
def whole():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4, name="out"),
        ]
    )
    example = np.asarray(scale(jnp.asarray(SPLIT.images[:8])))
    return OfNetwork(jaxprune.from_keras(model, example))


def settings(*names):
    return SmallerSettings(export=names, latency_batches=("1", "3"), repeats=2)


@pytest.fixture(scope="module")
def small(whole):
    """With other arrays than it was cut with, as after fine-tuning."""
    small = halved(whole.network, whole.example, "linear")
    arrays = {path: array * np.float32(1.1) for path, array in small.arrays.items()}
    return small.with_arrays(arrays)


def accuracy(small):
    logits = np.asarray(small(scale(jnp.asarray(SPLIT.images))))
    return float((logits.argmax(-1) == SPLIT.labels).mean())


def test_a_keras_file(whole, small, tmp_path, capsys):
    files, figures = exports.Exports(settings("keras"), whole).of(small)
    assert set(files) == {"model.keras"}
    expected = {"different_predictions": 0, "accuracy": accuracy(small)}
    assert figures == {"exports": {"keras": expected}}
    said = "23 images: 0 predictions differ from the compact network's"
    assert said in capsys.readouterr().out
    (tmp_path / "model.keras").write_bytes(files["model.keras"])
    model = keras.models.load_model(tmp_path / "model.keras")
    x = np.asarray(scale(jnp.asarray(SPLIT.images)))
    # Float32 operations, fused in another way.
    np.testing.assert_allclose(model.predict(x, verbose=0), small(x), atol=1e-5)


def test_predictions_that_differ_are_counted(whole, small, monkeypatch, capsys):
    expected = np.asarray(small(scale(jnp.asarray(SPLIT.images)))).argmax(-1)
    rare = np.bincount(expected, minlength=4).argmin()
    made = exports._keras_file

    def damaged(small):
        data, model = made(small)
        model.get_layer("out").bias.assign(1e3 * (np.arange(4) == rare))
        return data, model

    monkeypatch.setattr(exports, "_keras_file", damaged)
    _, figures = exports.Exports(settings("keras"), whole).of(small)
    differ = int((expected != rare).sum())
    assert differ > 0
    assert figures["exports"]["keras"]["different_predictions"] == differ
    assert f"{differ} predictions differ" in capsys.readouterr().out


def test_an_onnx_model(whole, small, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[onnx]'")
    pytest.importorskip("jax2onnx", reason="pip install -e '.[onnx]'")
    files, figures = exports.Exports(settings("onnx"), whole).of(small)
    found = figures["exports"]["onnx"]
    assert found["different_predictions"] == 0
    assert found["accuracy"] == accuracy(small)
    times = found["latency"]["3"]
    assert times["speedup"] == times["before"]["median"] / times["after"]["median"]
    session = onnxruntime.InferenceSession(files["model.onnx"])
    (logits,) = session.run(None, {"images": SPLIT.images})
    expected = small(scale(jnp.asarray(SPLIT.images)))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_program_alone_is_not_run(whole, small):
    assert exports.Exports(settings("stablehlo"), whole).of(small) == ({}, {})


def test_what_is_no_keras_model(whole):
    plain = jaxprune.Network(whole.network.function, whole.network.params)
    other = OfNetwork(plain.with_example(whole.example))
    with pytest.raises(InputError, match=r"net.keras is no Keras model"):
        exports.Exports(settings("keras"), other)


def test_flags():
    exports.check_flags(settings("stablehlo", "keras"))
    with pytest.raises(InputError, match="unknown export 'tflite'"):
        exports.check_flags(settings("stablehlo", "tflite"))
