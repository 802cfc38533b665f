"""ONNX models of compact networks, run by onnxruntime alone, at any batch size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import jaxprune
from halved import halved
from jaxprune._base.errors import InputError
from jaxprune.compaction import artefact
from jaxprune.compaction import onnx as conversion
from jaxprune.compaction.pixels import check_pixels
from random_data import random_split, random_variables

reason = "pip install -e '.[onnx]'"
onnx = pytest.importorskip("onnx", reason=reason)
onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
pytest.importorskip("jax2onnx", reason=reason)

MEAN, STD = (100.0, 90.0, 80.0), (50.0, 60.0, 70.0)
PIXELS = random_split(n=9, shape=(12, 12, 3)).images
IMAGES = ((PIXELS - np.array(MEAN)) / np.array(STD)).astype(np.float32)
# Float32 products added up in another order, over a few layers.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def run(folder, pixels):
    """What the model returns, by onnxruntime alone; for all images and for one."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found = session.run(None, {"images": pixels})
    for whole, alone in zip(
        found, session.run(None, {"images": pixels[:1]}), strict=True
    ):
        np.testing.assert_allclose(alone, whole[:1], **CLOSE)
    return found


def facts(folder):
    model = onnx.load(folder / "model.onnx")
    return {entry.key: entry.value for entry in model.metadata_props}


class Net(nn.Module):
    """Every operation that jax2onnx is given in another term, and BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (0, 1)))
        x = nn.relu(nn.Conv(6, (3, 3), name="second")(x))
        x = x + nn.max_pool(x, (2, 1), (1, 1), "SAME")
        with jax.numpy_dtype_promotion("standard"):  # which divides by an integer
            x = nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)
        x = jnp.pad(x, ((0, 0), (0, 1), (1, 0), (0, 0)), constant_values=0.5)
        x = nn.gelu(nn.Dense(8, name="wide")(x.reshape(len(x), -1)))
        return nn.Dense(4, name="out")(x)


def linen(fill):
    network = jaxprune.from_linen(Net(), random_variables(Net(), IMAGES), IMAGES)
    return halved(network, IMAGES, fill)


@pytest.fixture(scope="module")
def small():
    return linen("linear")


def test_a_linen_network_with_a_map_at_the_border(small, tmp_path):
    assert "offsets/second/rows" in small.arrays
    small.save(
        tmp_path / "a", pixel_mean=MEAN, pixel_std=STD, class_names=list("abcd"),
        onnx=True,
    )  # fmt: skip
    (logits,) = run(tmp_path / "a", PIXELS)
    np.testing.assert_allclose(logits, small(IMAGES), **CLOSE)
    said = facts(tmp_path / "a")
    assert said["layout"] == "N H W C"
    assert json.loads(said["mean"]) == list(MEAN)
    assert json.loads(said["class_names"]) == list("abcd")
    assert "part of the model" in said["input"]
    spec = json.loads((tmp_path / "a" / artefact.SPEC).read_text())
    assert spec["preprocessing"]["layout"] == "N H W C"
    assert set(spec["files"]) == {
        artefact.EXAMPLE, artefact.FUNCTION, artefact.WEIGHTS, artefact.ONNX
    }  # fmt: skip
    (tmp_path / "a" / artefact.ONNX).write_bytes(b"another")
    with pytest.raises(InputError, match=r"model.onnx does not match its sha256"):
        jaxprune.load_compact(tmp_path / "a")


def test_its_pools_are_poolings(small, tmp_path):
    """As other runtimes know them, and nothing is left to compute of weights alone."""
    small.save(tmp_path / "a", onnx=True)
    model = onnx.load(tmp_path / "a" / "model.onnx")
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    assert [len(node.attribute[1].ints) for node in pools] == [2, 2]
    assert not {"Sqrt", "Einsum"} & {node.op_type for node in model.graph.node}


class Module(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.silu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return {"logits": self.out(x.mean((1, 2))), "maps": [x]}


def test_an_nnx_module_that_returns_a_tree(tmp_path):
    network = jaxprune.from_nnx(Module(nnx.Rngs(0)), IMAGES)
    keep = np.arange(8) % 3 > 0
    with pytest.raises(InputError, match="output"):  # so are the maps
        jaxprune.compact(network, "conv", keep, fill="drop")
    small = jaxprune.compaction.network.as_compact(network)
    small.save(tmp_path / "a", pixel_std=(255.0,), onnx=True)
    logits, maps = run(tmp_path / "a", PIXELS)
    expected = Module(nnx.Rngs(0))
    expected.eval()
    expected = expected(jnp.asarray(PIXELS, jnp.float32) / 255)
    np.testing.assert_allclose(logits, expected["logits"], **CLOSE)
    np.testing.assert_allclose(maps, expected["maps"][0], **CLOSE)
    model = onnx.load(tmp_path / "a" / "model.onnx")
    names = [output.name for output in model.graph.output]
    assert names == ["output['logits']", "output['maps'][0]"]


def test_an_equinox_module_with_channels_first(tmp_path):
    eqx = pytest.importorskip("equinox", reason="pip install -e '.[equinox]'")
    keys = jax.random.split(jax.random.key(0), 3)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 6, 3, padding=1, key=keys[1]),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(54, 4, key=keys[2]),
        ]
    )
    first = IMAGES.transpose(0, 3, 1, 2)
    small = halved(jaxprune.from_equinox(module, example=first), first, "linear")
    small.save(tmp_path / "a", pixel_mean=MEAN, pixel_std=STD, onnx=True)
    (logits,) = run(tmp_path / "a", PIXELS.transpose(0, 3, 1, 2))
    expected = jax.jit(jax.vmap(small.to_equinox()))(first)
    np.testing.assert_allclose(logits, expected, **CLOSE)
    assert facts(tmp_path / "a")["layout"] == "N C H W"


def test_a_keras_model(tmp_path):
    keras = pytest.importorskip("keras", reason="pip install -e '.[keras]'")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.DepthwiseConv2D(3, padding="same", activation="swish"),
            layers.AveragePooling2D(padding="same", pool_size=4),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    small = halved(jaxprune.from_keras(model, IMAGES), IMAGES, "linear")
    small.save(tmp_path / "a", pixel_mean=MEAN, pixel_std=STD, onnx=True)
    (found,) = run(tmp_path / "a", PIXELS)
    expected = small.to_keras().predict(IMAGES, verbose=0)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize("change", ["weight", "pixel"])
def test_a_model_that_returns_something_else_is_refused(
    small, tmp_path, monkeypatch, change
):
    made = conversion._made

    def damaged(*arguments):
        model = onnx.load_from_string(made(*arguments))
        arrays = [onnx.numpy_helper.to_array(x) for x in model.graph.initializer]
        size = 64 if change == "weight" else 3
        number = next(i for i, a in enumerate(arrays) if a.size >= size
                      and a.dtype == np.float32)  # fmt: skip
        array = arrays[number].copy()
        array.flat[1] += 0.01
        name = model.graph.initializer[number].name
        tensor = onnx.numpy_helper.from_array(array, name)
        model.graph.initializer[number].CopyFrom(tensor)
        return model.SerializeToString()

    monkeypatch.setattr(conversion, "_made", damaged)
    with pytest.raises(InputError, match="something else than JAX does"):
        small.save(tmp_path / "a", pixel_mean=MEAN, onnx=True)
    assert not (tmp_path / "a").exists()


OUT = {"out": np.ones((3, 2), np.float32)}


def test_an_operation_that_is_unknown(tmp_path):
    def function(params, x):
        x = x * jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum())(x)
        return x.mean((1, 2)) @ params["out"]

    small = jaxprune.compaction.network.as_compact(
        jaxprune.Network(function, OUT, IMAGES)
    )
    with pytest.raises(InputError, match="'select_and_scatter_add'") as error:
        small.save(tmp_path / "a", onnx=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_code_that_needs_two_images():
    def function(params, x):
        parts = lax.slice_in_dim(x, 0, 2), lax.slice_in_dim(x, 2, len(x))
        return jnp.concatenate(parts).mean((1, 2)) @ params["out"]

    network = jaxprune.Network(function, OUT, IMAGES)
    pixels = check_pixels(np.uint8, (0.0,), (1.0,), network)
    with pytest.raises(InputError, match="needs to know the batch size") as error:
        conversion.to_onnx(network, pixels, [])
    assert "\n" not in str(error.value)


def test_what_was_loaded_without_its_model(small, tmp_path):
    small.save(tmp_path / "a")
    alone = jaxprune.load_compact(tmp_path / "a")
    with pytest.raises(InputError, match="without its model"):
        alone.save(tmp_path / "b", onnx=True)
    jaxprune.load_compact(tmp_path / "a", Net()).save(tmp_path / "b", onnx=True)
    (logits,) = run(tmp_path / "b", PIXELS)
    np.testing.assert_allclose(logits, small(PIXELS.astype(np.float32)), rtol=1e-4)


def test_two_models_are_equal(small, tmp_path):
    for name in "ab":
        small.save(tmp_path / name, onnx=True)
    one, other = ((tmp_path / name / "model.onnx").read_bytes() for name in "ab")
    assert one == other


def test_several_inputs_have_the_names_of_their_paths(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"first": (3, 6), "time": (2, 6), "second": (6, 4)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in sizes.items()}
    batch = {
        "image": rng.normal(size=(3, 5, 3)).astype(np.float32),
        "other": (rng.normal(size=(3, 2)).astype(np.float32), np.arange(3)),
    }

    def function(params, batch):
        h = batch["image"] @ params["first"]
        time, scale = batch["other"]
        h = jax.nn.relu(h + (time @ params["time"])[:, None])
        return {"y": (h * scale[:, None, None].astype(np.float32)) @ params["second"]}

    small = halved(jaxprune.Network(function, params, batch), batch)
    small.save(tmp_path / "a", onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "a" / "model.onnx")
    names = ["image", "other/0", "other/1"]
    assert [given.name for given in session.get_inputs()] == names
    for count in (3, 1):
        few = jax.tree.map(lambda a, n=count: a[:n], batch)
        given = dict(zip(names, jax.tree.leaves(few), strict=True))
        types = [g.type for g in session.get_inputs()]
        given = {
            n: np.asarray(a, np.float32 if t == "tensor(float)" else np.int32)
            for (n, a), t in zip(given.items(), types, strict=True)
        }
        (found,) = session.run(None, given)
        np.testing.assert_allclose(found, small(few)["y"], **CLOSE)
    assert facts(tmp_path / "a")["input"].startswith("several inputs")
