import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base.errors import InputError
from jaxprune.recipes.keras_import import import_keras
from jaxprune.recipes.models import CifarVGG, PairCNN
from keras_files import LAYERS, write_keras
from random_data import random_variables

MODEL = PairCNN(widths=(2, 3, 4), dense=(5, 2))
X = jnp.zeros((1, 8, 8, 2))
VGG = CifarVGG(widths=range(2, 15), dense=(6, 5, 4, 3))
VGG_X = jnp.zeros((1, 32, 32, 3))


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("optimizer", [False, True])
def test_keras_files_of_both_versions(tmp_path, version, optimizer):
    theirs = random_variables(VGG, VGG_X, seed=1)
    path = tmp_path / "model.h5"
    write_keras(path, theirs, LAYERS, version=version, optimizer=optimizer)
    ours = import_keras(path, VGG.apply, random_variables(VGG, VGG_X), VGG_X)
    assert_equal(ours, theirs)


def import_into(model, x, path):
    return import_keras(path, model.apply, random_variables(model, x), x)


def test_the_first_layer_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "model.h5"
    widths = [*range(2, 15)]
    widths[5] = 9
    other = CifarVGG(widths=widths, dense=(6, 5, 4, 3))
    write_keras(path, random_variables(other, VGG_X), LAYERS)
    with pytest.raises(InputError, match=r"'conv2d_5' does not fit 'conv2d_5'.*9\)"):
        import_into(VGG, VGG_X, path)


def test_a_file_with_fewer_layers(tmp_path):
    path = tmp_path / "model.h5"
    write_keras(path, random_variables(VGG, VGG_X), LAYERS[:-1])
    with pytest.raises(InputError, match="27 layers with weights, the network has 28"):
        import_into(VGG, VGG_X, path)


def test_a_layer_of_an_unknown_kind(tmp_path):
    path = tmp_path / "model.h5"
    write_keras(path, random_variables(VGG, VGG_X), LAYERS, extra="conv2d_3")
    with pytest.raises(InputError, match="'conv2d_3' has a weight 'alpha'"):
        import_into(VGG, VGG_X, path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"text", "kernel of layer 'conv2d' must be real numbers"),
        (1j, "kernel of layer 'conv2d' must be real numbers, got complex"),
        (np.nan, "kernel of layer 'conv2d' must be finite"),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, value, message):
    path = tmp_path / "model.h5"
    write_keras(path, random_variables(VGG, VGG_X), LAYERS)
    with h5py.File(path, "r+") as file:
        name = "model_weights/conv2d/sequential/conv2d/kernel"
        shape = file[name].shape
        del file[name]
        file[name] = np.full(shape, value)
    with pytest.raises(InputError, match=message):
        import_into(VGG, VGG_X, path)


def test_layers_whose_names_cannot_be_read(tmp_path):
    path = tmp_path / "model.h5"
    write_keras(path, random_variables(VGG, VGG_X), LAYERS)
    with h5py.File(path, "r+") as file:
        file["model_weights"].attrs["layer_names"] = np.array([b"\xff\xfe"] * 3)
    with pytest.raises(InputError, match=r"damaged or no \.h5 file"):
        import_into(VGG, VGG_X, path)


@pytest.mark.parametrize("content", [b"", b"no hdf5", None, "truncated", "foreign"])
def test_files_that_are_no_keras_files(tmp_path, content):
    path = tmp_path / "model.h5"
    if content == "truncated":
        write_keras(path, random_variables(VGG, VGG_X), LAYERS)
        path.write_bytes(path.read_bytes()[:3000])
    elif content == "foreign":
        with h5py.File(path, "w") as file:
            file["x"] = np.zeros(3)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged or no \.h5 file|there is no file"):
        import_into(VGG, VGG_X, path)
