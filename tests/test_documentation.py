"""The Python of README and the documentation runs as it stands; commands exist."""

import functools
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxprune
from jaxprune.__main__ import COMMANDS
from jaxprune.cli import process
from random_data import random_split

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


class Somebodys(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3))(x / 255.0))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(4)(x.mean((1, 2)))


def blocks(page):
    """Python of a page, block by block."""
    return [
        block.split("```")[0] for block in page.read_text().split("```python\n")[1:]
    ]


def given(dtype=np.uint8):
    """What the documentation takes for granted: a model, images."""
    split = random_split(n=40)
    model, images = Somebodys(), np.asarray(split.images, dtype)
    variables = model.init(jax.random.key(0), jnp.asarray(images[:1]), train=False)
    return {
        "model": model, "variables": variables, "images": images,
        "labels": split.labels, "class_names": split.class_names,
        "calibration_images": images[::2], "layer": "Conv_0",
    }  # fmt: skip


@functools.cache
def after_readme():
    """What README's sweep and compact network leave."""
    names = given()
    for block in blocks(README)[:2]:
        exec(block, names)
    return names


@pytest.fixture(autouse=True)
def anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # the model divides integers by 255.0
        yield


def test_the_reference_names_what_exists():
    pages = "\n".join(page.read_text() for page in PAGES)
    names = re.findall(r"^::: (\S+)", pages, re.MULTILINE)
    assert names
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize(
    "dtype", [np.uint8, pytest.param(np.float32, marks=pytest.mark.slow)]
)
def test_readme(dtype, capsys):
    names = given(dtype)
    sweep, compact, shrink, function, *_ = blocks(README)
    assert len([line for line in sweep.splitlines() if line]) <= 10
    exec(sweep, names)
    assert names["tapped"].name == "Conv_0"
    result = names["result"]
    assert result.predictions.shape == (8, 40)
    assert capsys.readouterr().out
    exec(compact, names)
    k = result.largest_safe_k(0.01)
    assert len(names["small"].layers["Conv_0"].kept) == 8 - k
    predictions = result.predictions[result.ks.index(k)]
    np.testing.assert_array_equal(names["logits"].argmax(-1), predictions)
    exec(shrink, names)
    assert names["fast"](names["images"][:4]).shape == (4, 4)
    assert len(names["fast"].layers["Conv_0"].kept) <= 4
    names |= {"f": names["apply"], "params": names["variables"]}
    exec(function, names)
    assert len(names["smaller"].layers["Conv_0"].kept) <= 4


def nnx_module(images, labels):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(images.shape[-1], 8, (3, 3), rngs=rngs)
            self.out = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.conv(x / 255.0)).mean((1, 2)))

    graph, params = nnx.split(Net(nnx.Rngs(0)))
    params = trained(lambda p, x: nnx.merge(graph, p)(x), params, images, labels)
    return {"module": nnx.merge(graph, params)}


def equinox_module(images, labels):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        out: eqx.nn.Linear

        def __init__(self):
            keys = jax.random.split(jax.random.key(0))
            self.conv = eqx.nn.Conv2d(images.shape[-1], 8, 3, key=keys[0])
            self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="ema")
            self.out = eqx.nn.Linear(8, 4, key=keys[1])

        def __call__(self, x, state):
            y, state = self.norm(self.conv(x / 255.0), state)
            return self.out(jax.nn.relu(y).mean((1, 2))), state

    model, state = eqx.nn.make_with_state(Net)()
    state = jax.tree.map(jnp.ones_like, state)  # variances are 0 at first
    params, rest = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    images = images.transpose(0, 3, 1, 2)

    def function(params, x):
        return jax.vmap(lambda x: eqx.combine(params, rest)(x, state)[0])(x)

    module = eqx.combine(trained(function, params, images, labels), rest)
    return {
        "module": module, "state": state, "images": images,
        "calibration_images": images[::2],
    }  # fmt: skip


def keras_file(images, labels):
    pytest.importorskip("keras")
    from jaxprune.adapters.keras import keras

    layers = [
        keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4),
    ]  # fmt: skip
    model = keras.Sequential([keras.Input(images.shape[1:]), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(np.asarray(images, np.float32), labels, epochs=2, verbose=0)
    model.save("model.keras")
    return {}


def haiku_function(images, labels):
    hk = pytest.importorskip("haiku")

    def forward(x):
        x = jax.nn.relu(hk.Conv2D(8, 3)(x / 255.0))
        return hk.Linear(4)(x.mean((1, 2)))

    function = hk.without_apply_rng(hk.transform(forward))
    params = function.init(jax.random.key(0), images)
    params = trained(function.apply, params, images, labels)
    return {"hk": hk, "forward": forward, "params": params}


def trained(function, params, images, labels):
    """Parameters after a few steps of gradient descent, which lower the loss."""

    def loss(params):
        logits = function(params, jnp.asarray(images))
        chosen = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        return -chosen.mean()

    descend = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(5):
        value, gradients = descend(params)
        losses.append(value)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    assert losses[-1] < losses[0]
    return params


@pytest.mark.parametrize(
    "block, make",
    [
        pytest.param(number, make, marks=pytest.mark.slow, id=make.__name__)
        for number, make in enumerate(
            (nnx_module, equinox_module, keras_file, haiku_function), 4
        )
    ],
)
def test_readmes_lines_on_a_frameworks_trained_network(block, make):
    names = {"jaxprune": jaxprune, **given(np.float32)}
    names |= make(names["images"], names["labels"])
    exec(blocks(README)[block], names)
    (layer,) = names["small"].layers.values()
    assert 0 < len(layer.kept) <= 4
    if make is nnx_module:
        assert names["module"].conv.out_features == len(layer.kept)
    if make is equinox_module:
        assert names["module"].conv.out_channels == len(layer.kept)
    if make is keras_file:
        assert Path("small.keras").stat().st_size


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if blocks(p)],
    ids=lambda page: page.relative_to(ROOT / "docs").as_posix(),
)
def test_a_page(page):
    names = dict(after_readme())
    for block in blocks(page):
        if "onnx" in block:
            pytest.importorskip("jax2onnx", reason="pip install -e '.[onnx]'")
        exec(block, names)


def test_there_are_pages_for_all_public_names():
    text = "".join(p.read_text() for p in PAGES if p.parent.name == "reference")
    documented = set(re.findall(r"(?m)^::: \S*?(\w+)$", text))
    assert documented == set(jaxprune.__all__)


def test_names_that_are_written_out_exist():
    """In a process that has imported nothing but the package."""
    pages = [README, *(p for p in PAGES if p.parent.name != "reference")]
    pages += (ROOT / "notebooks").glob("*.ipynb")
    text = "".join(page.read_text() for page in pages)
    names = sorted(set(re.findall(r"(?<![\w/])jaxprune((?:\.[A-Za-z_]+)+)\b", text)))
    assert len(names) > 20
    code = "import jaxprune\n" + "\n".join(f"jaxprune{name}" for name in names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def commands():
    """Command lines of the documentation: a name and its flags."""
    for page in [README, *PAGES, *(ROOT / "notebooks").glob("*.ipynb")]:
        text = page.read_text().replace("\\\n", " ")
        for name, rest in re.findall(
            r"(?:jaxprune |experiments\.)(\w+)((?: +--[^\s`]+)+)", text
        ):
            if name in COMMANDS:
                yield page.name, name, tuple(rest.split())


def test_every_command_is_parsed(capsys):
    found = list(commands())
    assert len(found) > 30
    for page, name, given in found:
        command = importlib.import_module(f"jaxprune.cli.commands.{name}")
        try:
            process.parse(command.Settings, [name, *given])
        except SystemExit:
            pytest.fail(f"{page}: {name} {' '.join(given)}: {capsys.readouterr().err}")


def test_its_two_commands_are_lines_of_their_own():
    lines = [
        x.strip() for x in README.read_text().splitlines() if "python3 -m venv" in x
    ]
    assert len(lines) == 2 and lines[1].endswith("pytest")


def test_readme_is_short():
    assert len(README.read_text().split()) < 700


def test_its_links_lead_somewhere_and_pictures_are_small():
    for page in [README, ROOT / "CONTRIBUTING.md", ROOT / "BUILD_NOTES.md", *PAGES]:
        linked = (part.split(")")[0] for part in page.read_text().split("](")[1:])
        for name in linked:
            if "://" in name or name.startswith("#"):
                continue
            size = (page.parent / name.split("#")[0]).stat().st_size
            assert 0 < size < 2**20, (page, name)
    pictures = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    assert {name for name in pictures if name not in gallery} == set()
