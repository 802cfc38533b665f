"""What is saved: loads as it was, runs with jax alone, and refuses what was changed."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file

import jaxprune
from architectures import ARCHITECTURES
from halved import halved
from jaxprune._base.errors import InputError
from jaxprune.compaction import artefact
from jaxprune.compaction.network import as_compact
from jaxprune.recipes.models import PairCNN
from programs import run_program
from random_data import random_split, random_variables
from run_directories import reseal
from selected import quick

PAIR = PairCNN(widths=(3, 5, 7), dense=(10, 4))
KEEP = np.array([False, True, True, False, True])


@pytest.fixture(scope="module")
def pair():
    """(compact network with an offset map, uint8 images)"""
    images = random_split(n=6, shape=(14, 14, 2)).images
    x = jnp.asarray(images, jnp.float32) / 255
    variables = random_variables(PAIR, x)
    return jaxprune.compact(PAIR, variables, "conv2", KEEP, example=x), images


@pytest.fixture
def saved(pair, tmp_path):
    pair[0].save(tmp_path / "small", pixel_std=(255.0,), class_names=list("abcd"))
    return tmp_path / "small"


def test_loads_as_it_was(pair, saved):
    small, images = pair
    loaded = jaxprune.load_compact(saved)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, small.variables)
    assert loaded.layers["conv2"].kept == (1, 2, 4)
    assert loaded.layers["conv2"].channels == 5
    assert loaded.proof == small.proof
    x = jnp.asarray(images, jnp.float32) / 255
    # The same float32 operations, fused in another way.
    np.testing.assert_allclose(loaded(x), small(x), atol=1e-5)
    assert sorted(path.name for path in saved.iterdir()) == [
        artefact.EXAMPLE, artefact.FUNCTION, artefact.SPEC, artefact.WEIGHTS
    ]  # fmt: skip
    assert list(saved.parent.iterdir()) == [saved]


def test_what_was_loaded_can_be_trained_and_its_gradient_is_the_networks(pair, saved):
    small, images = pair
    loaded = jaxprune.load_compact(saved, PAIR)
    x = jnp.asarray(images, jnp.float32) / 255

    def loss(array, network, path):
        arrays = jax.tree.map(jnp.asarray, dict(network.arrays))
        return jnp.square(network.function({**arrays, path: array}, x)).sum()

    for path in ("params/conv1/kernel", "offsets/conv3/rows"):
        slopes = [
            jax.grad(loss)(jnp.asarray(network.arrays[path]), network, path)
            for network in (small, loaded)
        ]
        np.testing.assert_allclose(*slopes, rtol=1e-4)
        assert np.abs(slopes[0]).max() > 0
    logits, moved = loaded.apply(
        loaded.variables, x, train=True, mutable=["batch_stats"]
    )
    assert logits.shape == (6, 4)
    mean = moved["batch_stats"]["bn2"]["mean"]
    assert mean.shape == (3,) and (mean != small.arrays["batch_stats/bn2/mean"]).all()


def test_nothing_removed_is_saved_too(tmp_path):
    x = jnp.ones((1, 14, 14, 2))
    network = jaxprune.from_linen(PAIR, random_variables(PAIR, x), x, train=False)
    whole = as_compact(network)
    whole.save(tmp_path / "whole")
    loaded = jaxprune.load_compact(tmp_path / "whole", PAIR)
    np.testing.assert_allclose(loaded(x), whole(x), atol=1e-5)


def test_program_runs_with_jax_alone(pair, tmp_path):
    small, images = pair
    small.save(tmp_path / "a", pixel_std=(255.0,), stablehlo=True)
    expected = small(jnp.asarray(images, jnp.float32) / 255)
    logits = run_program(tmp_path / "a", images)
    # The same float32 operations, fused in another way.
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


MEAN, STD = (100.0, 90.0, 80.0), (50.0, 60.0, 70.0)
PIXELS = random_split(n=5, shape=(8, 8, 3)).images
SCALED = ((PIXELS - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.convs = nnx.List([nnx.Conv(3, 8, (3, 3), rngs=rngs)])
            self.out = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.convs[0](x)).mean((1, 2)))

    network = jaxprune.from_nnx(Net(nnx.Rngs(0)), SCALED)
    return network, PIXELS, {
        "convs/0/kernel", "convs/0/bias", "out/kernel", "out/bias"
    }  # fmt: skip


def of_equinox():
    """Channels first."""
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        convs: list
        out: eqx.nn.Linear

        def __call__(self, x):
            return self.out(jax.nn.relu(self.convs[0](x)).mean((1, 2)))

    conv = eqx.nn.Conv2d(3, 8, 3, padding=1, key=jax.random.key(0))
    module = Net([conv], eqx.nn.Linear(8, 4, key=jax.random.key(1)))
    network = jaxprune.from_equinox(module, example=SCALED.transpose(0, 3, 1, 2))
    paths = {"convs/0/weight", "convs/0/bias", "out/weight", "out/bias"}
    return network, PIXELS.transpose(0, 3, 1, 2), paths


def of_keras():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    conv = layers.Conv2D(8, 3, activation="relu", name="conv")
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), conv, layers.GlobalAveragePooling2D(),
         layers.Dense(4, name="out")],
        name="net",
    )  # fmt: skip
    paths = {f"net/{path}" for path in
             ("conv/kernel", "conv/bias", "out/kernel", "out/bias")}  # fmt: skip
    return jaxprune.from_keras(model, SCALED), PIXELS, paths


def of_function():
    """Channels first."""
    rng = np.random.default_rng(0)
    params = {
        "convs": [rng.normal(size=(8, 3, 3, 3)).astype(np.float32)],
        "out": {"w": rng.normal(size=(8, 4)).astype(np.float32)},
    }

    def function(params, x):
        x = jax.lax.conv_general_dilated(x, params["convs"][0], (1, 1), "SAME")
        return jax.nn.relu(x).mean((2, 3)) @ params["out"]["w"]

    images = PIXELS.transpose(0, 3, 1, 2)
    example = SCALED.transpose(0, 3, 1, 2)
    network = jaxprune.Network(function, params, example)
    return network, images, {"convs/0", "out/w"}


@pytest.mark.parametrize("make", [of_nnx, of_equinox, of_keras, of_function])
def test_networks_of_every_framework(make, tmp_path):
    network, pixels, paths = make()
    small = halved(network, network.example)
    small.save(tmp_path / "a", pixel_mean=MEAN, pixel_std=STD, stablehlo=True)
    assert set(load_file(tmp_path / "a" / artefact.WEIGHTS)) == paths
    expected = small(network.example)
    # The same float32 operations, fused in another way.
    alone = jaxprune.load_compact(tmp_path / "a")(network.example)
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    logits = run_program(tmp_path / "a", pixels)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    spec = json.loads((tmp_path / "a" / artefact.SPEC).read_text())
    layout = "N C H W" if pixels.shape[1] == 3 else "N H W C"
    assert spec["preprocessing"]["layout"] == layout


@pytest.mark.parametrize(
    ("shape", "mean", "axes", "layout"),
    [
        ((3, 8, 8), (1.0, 2.0, 3.0), "NCHW", "N C H W"),
        ((8, 8, 3), (1.0, 2.0, 3.0), "NHWC", "N H W C"),
        ((3, 8, 3), (1.0, 2.0, 3.0), "NHWC", "N H W C"),  # of both, the last
        ((8, 8, 3), (1.0,), "NCHW", "N C H W"),  # as its convolution reads them
        ((8, 8, 3), (1.0,), "NHWC", "N H W C"),
        ((8, 3), (1.0,), None, "N 8 3"),  # which has no convolution
        ((6,), (1.0,), None, "N 6"),
    ],
)
def test_the_layout_of_the_input(shape, mean, axes, layout, tmp_path):
    def function(params, x):
        if axes:
            sides = (axes, "OIHW", axes)
            kernel = params["kernel"]
            x = jax.lax.conv_general_dilated(
                jnp.tanh(x), kernel, (1, 1), "SAME", dimension_numbers=sides
            )
        return x * params["scale"]

    channels = shape[0 if axes == "NCHW" else -1]
    params = {"kernel": np.ones((4, channels, 1, 1), np.float32)} if axes else {}
    params["scale"] = np.ones(1, np.float32)
    example = np.ones((2, *shape), np.float32)
    small = as_compact(jaxprune.Network(function, params, example))
    small.save(tmp_path / "a", pixel_mean=mean)
    spec = json.loads((tmp_path / "a" / artefact.SPEC).read_text())
    assert spec["preprocessing"]["layout"] == layout


def test_numbers_for_channels_that_are_on_no_axis(pair, tmp_path):
    with pytest.raises(InputError, match="take 1 or 2 or 14 numbers"):
        pair[0].save(tmp_path / "a", pixel_mean=(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="take 1 or 2 or 14 numbers"):
        pair[0].save(tmp_path / "a", pixel_mean=(1.0, 2.0), pixel_std=(1.0,) * 14)


def test_more_files(pair, tmp_path):
    pair[0].save(tmp_path / "a", files={"notes.txt": b"of mine"})
    assert (tmp_path / "a" / "notes.txt").read_bytes() == b"of mine"
    (tmp_path / "a" / "notes.txt").write_bytes(b"of another")
    with pytest.raises(InputError, match=r"notes.txt does not match its sha256"):
        jaxprune.load_compact(tmp_path / "a")
    for name in ("../b", artefact.SPEC):
        with pytest.raises(InputError, match=f"not so '{name}'"):
            pair[0].save(tmp_path / "b", files={name: b""})


def test_without_the_packages_for_onnx(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(InputError, match=r"pip install 'jaxprune\[onnx\]'"):
        pair[0].save(tmp_path / "a", onnx=True)
    assert not (tmp_path / "a").exists()


def test_copies(pair):
    small, images = pair
    x = jnp.asarray(images, jnp.float32) / 255
    other = copy.deepcopy(small)
    name = "params/conv1/kernel"
    other.arrays[name][:] = 0
    assert np.abs(small.arrays[name]).max() > 0
    assert np.abs(other(x) - small(x)).max() > 1e-3
    np.testing.assert_array_equal(copy.copy(small)(x), small(x))
    with pytest.raises(InputError, match=r"small\.save\(path\)"):
        pickle.dumps(small)


def test_apply_is_first_used_inside_a_step(pair):
    small, images = pair
    fresh, x = copy.copy(small), jnp.asarray(images, jnp.float32) / 255
    logits = jax.jit(lambda variables: fresh.apply(variables, x))(small.variables)
    np.testing.assert_allclose(logits, small(x), atol=1e-5)
    with pytest.raises(InputError, match="before a step is traced"):
        jax.jit(lambda network: network.apply(network.variables, x))(fresh)


BUILD = """
import os, sys
sys.path[:0] = sys.argv[2:]
from test_artefact import build
build(sys.argv[1])
"""


def build(folder):
    x = jnp.asarray(random_split(n=6, shape=(8, 8, 2)).images, jnp.float32)
    model = PairCNN(widths=(2, 3, 2), dense=(3, 4))
    keep = np.array([True, False, True])
    small = jaxprune.compact(
        model, random_variables(model, x), "conv2", keep, example=x
    )
    small.save(folder, stablehlo=True)


@pytest.mark.slow
def test_two_builds_are_equal_and_say_nothing_of_where(tmp_path):
    """By processes that read this package from two places."""
    tests = Path(__file__).parents[1]
    for name in "ab":
        (tmp_path / name).mkdir()
        for package in ("jaxprune", "tests"):
            (tmp_path / name / package).symlink_to(tests.parent / package)
        places = [tmp_path / name, *(tmp_path / name / "tests" / d
                                     for d in ("", "compaction"))]  # fmt: skip
        command = [sys.executable, "-c", BUILD, str(tmp_path / name / "out")]
        environment = {**os.environ, "PYTHONHASHSEED": str(ord(name))}
        environment["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "10"  # JAX's default
        subprocess.run([*command, *map(str, places)], check=True, env=environment)
    for path in (tmp_path / "a" / "out").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "b" / "out" / path.name).read_bytes(), path
        assert str(tmp_path).encode() not in content and b".py" not in content


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(format=1), "'format'"),
        (lambda s: s.update(model=None), "'model'"),
        (lambda s: s.update(call=[1]), "'call'"),
        (lambda s: s.update(input_shape=[14, 14]), "holds no inputs"),
        (lambda s: s.update(kept={"x": 1}), "'kept.x'"),
        (lambda s: s.update(kept={"x": {"0": {"size": 3}}}), "mask"),
        (lambda s: s.update(input_shape=[14, -14, 2]), r"'input_shape\[1\]'"),
        (lambda s: s["layers"]["conv2"].update(kept=["1"]), "kept"),
        (lambda s: s["layers"]["conv2"].update(kept=[1, 9, 2]), "kept"),
        (lambda s: s.update(layers=[]), "'layers'"),
        (lambda s: s.update(proof={"images": 1}), "proof"),
        (lambda s: s.update(tensors={}), "other arrays"),
        (lambda s: s["tensors"].update(x=1), "'tensors.x'"),
        (lambda s: s.update(versions="0"), "'versions'"),
        (lambda s: s["versions"].update(jax=1), "'versions.jax'"),
    ],
)
def test_a_crafted_description_is_refused(saved, change, message):
    """However its sums agree."""
    reseal(saved, change, artefact.SPEC)
    with pytest.raises(InputError, match=message) as error:
        jaxprune.load_compact(saved)
    assert "\n" not in str(error.value)


def edit(path):
    spec = json.loads((path / artefact.SPEC).read_text())
    spec["layers"]["conv2"]["kept"][0] = 0
    (path / artefact.SPEC).write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: flip(p / artefact.WEIGHTS), "does not match its sha256"),
        (lambda p: (p / artefact.WEIGHTS).unlink(), "is missing"),
        (lambda p: (p / artefact.WEIGHTS).write_bytes(b""), "does not match"),
        (edit, "does not match its own sha256"),
        (lambda p: (p / artefact.SPEC).write_text("{"), "is damaged"),
        (lambda p: (p / artefact.SPEC).write_text("[]"), "is damaged"),
        (lambda p: (p / artefact.SPEC).unlink(), "holds no compact network"),
    ],
)
def test_damaged_or_changed(saved, damage, message):
    damage(saved)
    with pytest.raises(InputError, match=message) as error:
        jaxprune.load_compact(saved)
    assert "\n" not in str(error.value)


def test_shapes_are_checked_even_where_hashes_agree(saved):
    arrays, spec, _, example = artefact.read(saved)
    arrays["params/conv3/kernel"] = np.zeros((3, 3, 4, 7), np.float32)
    programs = {artefact.FUNCTION: (saved / artefact.FUNCTION).read_bytes()}
    facts = {k: v for k, v in spec.items() if k != "sha256"}
    artefact.write(saved, arrays, facts, programs, example)
    with pytest.raises(InputError, match="does not run"):
        jaxprune.load_compact(saved)


def test_another_folder_is_not_overwritten(pair, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no compact network"):
        pair[0].save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(4, (3, 3), name="first")(x))
        x = nn.Conv(3, (3, 3), name="second")(x)
        return nn.Dense(2, name="out")(x.reshape(x.shape[0], -1))


def test_a_users_model(tmp_path):
    model, x = Tiny(), jnp.asarray(random_split(n=4).images, jnp.float32) / 255
    keep = np.array([True, False, True, True])
    fill = np.full(4, 0.3, np.float32)
    variables = random_variables(model, x)
    small = jaxprune.compact(model, variables, "first", keep, fill=fill, example=x)
    small.save(tmp_path / "tiny", stablehlo=True)
    alone = jaxprune.load_compact(tmp_path / "tiny")
    np.testing.assert_allclose(alone(x), small(x), atol=1e-5)
    with pytest.raises(InputError, match="loaded without its model"):
        alone.apply  # noqa: B018
    with pytest.raises(InputError, match=r"of another model|does not run"):
        jaxprune.load_compact(tmp_path / "tiny", PAIR)
    loaded = jaxprune.load_compact(tmp_path / "tiny", model)
    np.testing.assert_array_equal(loaded(x), small(x))
    again = jaxprune.compact(
        loaded, loaded.variables, "second", np.array([True, False, True]), example=x
    )
    assert again.layers["first"].kept == (0, 2, 3)


class Softer(Tiny):
    """With the same arrays, another function."""

    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        x = nn.Conv(3, (3, 3), name="second")(x)
        return nn.Dense(2, name="out")(x.reshape(x.shape[0], -1))


Softer.__name__ = "Tiny"


def test_a_model_of_the_same_name_that_computes_something_else_is_refused(tmp_path):
    model, x = Tiny(), jnp.asarray(random_split(n=4).images, jnp.float32) / 255
    keep = np.array([True, False, True, True])
    variables = random_variables(model, x)
    small = jaxprune.compact(model, variables, "first", keep, fill="drop", example=x)
    small.save(tmp_path / "tiny")
    with pytest.raises(InputError, match="of another model than this: it differs"):
        jaxprune.load_compact(tmp_path / "tiny", Softer())


class Called(nn.Module):
    @nn.compact
    def __call__(self, x, scale, shift=0.0):
        x = jnp.tanh(nn.Conv(4, (3, 3), name="first")(x * scale + shift))
        return nn.Dense(2, name="out")(x.mean((1, 2)))


def test_arguments_of_the_call_that_no_file_keeps(tmp_path):
    model, x = Called(), jnp.asarray(random_split(n=4).images, jnp.float32) / 255
    call = {"scale": np.array([1.0, 2.0, 3.0], np.float32), "shift": 0.5}
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, **call))
    variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
    keep = np.array([True, False, True, True])
    small = jaxprune.compact(
        model, variables, "first", keep, fill="drop", example=x, call=call
    )
    small.save(tmp_path / "called")
    np.testing.assert_allclose(jaxprune.load_compact(tmp_path / "called")(x), small(x))
    with pytest.raises(InputError, match=r"\(scale\): give load_compact"):
        jaxprune.load_compact(tmp_path / "called", model)
    loaded = jaxprune.load_compact(tmp_path / "called", model, call=call)
    np.testing.assert_array_equal(loaded(x), small(x))


TREES = ("diffusion", "siamese", "detr", "ssd")


@pytest.mark.parametrize("name", quick(TREES, ("diffusion",)))
def test_batches_and_outputs_that_are_trees(name, tmp_path):
    network = ARCHITECTURES[name].network()
    small = halved(network, network.example)
    expected = small(network.example)
    small.save(tmp_path / "a")
    for loaded in (
        jaxprune.load_compact(tmp_path / "a"),
        jaxprune.load_compact(tmp_path / "a", network),
    ):
        jax.tree.map(np.testing.assert_array_equal, loaded.example, small.example)
        found = loaded(jax.tree.map(lambda a: a[:1], network.example))
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        # The same float32 operations, fused in another way.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b[:1], atol=1e-5),
            found, expected,
        )  # fmt: skip
    spec = json.loads((tmp_path / "a" / artefact.SPEC).read_text())
    assert spec["preprocessing"] is None or name in ("detr", "ssd")


@flax.struct.dataclass
class Found:
    """An output of a class of its own, with levels by number."""

    scores: Any
    levels: Any
    nothing: Any = None


def of_levels(params, batch):
    images, (numbers, _) = batch
    x = jax.nn.relu(images["image"] @ params["first"]) + numbers[:, None, None]
    y = x @ params["second"]
    return Found(scores=y.mean(1), levels={3: y + 1, 10: (y.argmax(-1), y)})


def levels_network():
    rng = np.random.default_rng(0)
    params = {"first": rng.normal(size=(3, 6)), "second": rng.normal(size=(6, 4))}
    batch = ({"image": rng.normal(size=(3, 5, 3))}, [rng.normal(size=3), np.arange(3)])
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, batch))
    return jaxprune.Network(of_levels, *single)


def test_outputs_of_other_classes_are_dictionaries_in_a_file(tmp_path):
    network = levels_network()
    small = halved(network, network.example)
    found = small(network.example)
    assert isinstance(found, Found) and found.levels[10][0].dtype == jnp.int32
    small.save(tmp_path / "a")
    alone = jaxprune.load_compact(tmp_path / "a")(network.example)
    assert alone.keys() == {"scores", "levels", "nothing"}
    assert alone["nothing"] is None and alone["levels"].keys() == {"3", "10"}
    np.testing.assert_allclose(alone["scores"], found.scores, atol=1e-5)
    again = jaxprune.load_compact(tmp_path / "a", network)(network.example)
    assert isinstance(again, Found)


def test_the_program_of_several_inputs_takes_them_as_they_are(tmp_path):
    network = levels_network()
    small = halved(network, network.example)
    small.save(tmp_path / "a", stablehlo=True)
    data = (tmp_path / "a" / artefact.PROGRAM).read_bytes()
    program = jax.export.deserialize(data)
    for count in (3, 1):
        batch = jax.tree.map(lambda a, n=count: a[:n], network.example)
        found, expected = program.call(batch), small(batch)
        np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)
        for level in (3, 10):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                found["levels"][str(level)], expected.levels[level],
            )  # fmt: skip


BAD_TREES = {
    "one array": (lambda s, b: s(b[0]["image"]), "takes 0/image, 1/0, 1/1, got"),
    "other sizes": (
        lambda s, b: s(({"image": b[0]["image"][:, :, :2]}, b[1])),
        r"inputs of shape \[N, 5, 3\], got \[3, 5, 2\]",
    ),
    "another number of images": (
        lambda s, b: jaxprune.compact_groups(
            s.network, {"first": (HALF, "drop")}, example=(b[0], [b[1][0][:2], b[1][1]])
        ),
        r"batch of inputs \[N, ...\], N at least 1, got",
    ),
    "numbers alone": (
        lambda s, b: jaxprune.compact_groups(
            s.network, {"first": (HALF, "drop")}, example={"x": 1.0}
        ),
        "example must be",
    ),
    "pixels": (lambda s, b: s.save("a", pixel_mean=(1.0,)), "for networks of images"),
}  # fmt: skip
HALF = np.arange(3) < 2


@pytest.mark.parametrize("kind", BAD_TREES)
def test_trees_that_do_not_fit_are_refused_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = levels_network()
    small = halved(network, network.example)
    call, message = BAD_TREES[kind]
    with pytest.raises(InputError, match=message) as error:
        call(small, network.example)
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


def test_an_output_without_images_is_not_exported(tmp_path):
    def function(params, x):
        x = jax.nn.relu(x @ params["first"])
        return x @ params["second"], params["first"]

    rng = np.random.default_rng(0)
    sizes = {"first": (3, 6), "second": (6, 4)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in sizes.items()}
    small = as_compact(jaxprune.Network(function, params, np.ones((2, 3), np.float32)))
    with pytest.raises(
        InputError, match=r"no images on its first axis, it is \[3, 6\]"
    ):
        small.save(tmp_path / "a")
    assert not [*tmp_path.iterdir()]
