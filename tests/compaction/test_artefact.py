"""What is saved: loads as it was, runs with jax alone, and refuses what was changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune.compaction import artefact
from jaxprune.compaction.compact import as_compact
from jaxprune.compaction.network import OWN
from jaxprune.errors import InputError
from jaxprune.networks.models import CifarResNet, CifarVGG, PairCNN
from programs import run_program
from random_data import random_split, random_variables
from run_directories import reseal

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
    assert loaded.model.widths == (3, 3, 7)
    assert loaded.layers["conv2"].kept == (1, 2, 4)
    assert loaded.layers["conv2"].channels == 5
    assert loaded.proof == small.proof
    x = jnp.asarray(images, jnp.float32) / 255
    np.testing.assert_array_equal(loaded(x), small(x))
    assert sorted(p.name for p in saved.iterdir()) == [artefact.SPEC, artefact.WEIGHTS]
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("name", OWN)
def test_each_of_its_own_networks_is_read_again(name, tmp_path):
    """With all that an artefact says of it, rates of dropout too."""
    model = {
        "CifarVGG": CifarVGG(widths=(3,) * 13, dense=(4, 4, 3, 5)),
        "CifarResNet": CifarResNet(8, (3, 4, 5), 4),
        "PairCNN": PAIR,
    }[name]
    x = jnp.ones((1, *((14, 14, 2) if model is PAIR else (32, 32, 3))))
    whole = as_compact(model, random_variables(model, x), x, {"train": False})
    whole.save(tmp_path / "whole")
    loaded = jaxprune.load_compact(tmp_path / "whole")
    assert loaded.model == model
    np.testing.assert_array_equal(loaded(x), whole(x))


def test_program_runs_with_jax_alone(pair, tmp_path):
    small, images = pair
    small.save(tmp_path / "a", pixel_std=(255.0,), stablehlo=True)
    expected = small(jnp.asarray(images, jnp.float32) / 255)
    logits = run_program(tmp_path / "a", images)
    # The same float32 operations, fused in another way.
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


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
        (lambda s: s["model"].pop("class"), "'model.class' field required"),
        (lambda s: s["model"].update({"class": "Net"}), "of the class Net"),
        (lambda s: s["model"]["fields"].update(widths=[-1, 2, 3]), "does not run"),
        (lambda s: s["model"]["fields"].update(widths="abc"), "'model.fields.widths"),
        (lambda s: s["model"]["fields"].update(parent=1), "has no parent"),
        (lambda s: s["model"].update(dtype="text"), "describes no PairCNN"),
        (lambda s: s.update(call=[1]), "'call'"),
        (lambda s: s.update(call={"training": 1}), "does not run"),
        (lambda s: s.update(input_shape=[14, 14]), "does not run"),
        (lambda s: s.update(input_shape=[14, -14, 2]), r"'input_shape\[1\]'"),
        (lambda s: s["layers"]["conv2"].update(kept=["1"]), "kept"),
        (lambda s: s["layers"]["conv2"].update(kept=[1, 9, 2]), "kept"),
        (lambda s: s.update(layers=[]), "'layers'"),
        (lambda s: s.update(proof={"images": 1}), "proof"),
        (lambda s: s.update(tensors={}), "other arrays"),
        (lambda s: s["tensors"].update(x=1), "'tensors.x'"),
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
    variables, spec = artefact.read(saved)
    variables["params"]["conv3"]["kernel"] = np.zeros((3, 3, 4, 7), np.float32)
    artefact.write(saved, variables, {k: v for k, v in spec.items() if k != "sha256"})
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
    with pytest.raises(InputError, match=r"Tiny: give it as load_compact"):
        jaxprune.load_compact(tmp_path / "tiny")
    with pytest.raises(InputError, match="not PairCNN"):
        jaxprune.load_compact(tmp_path / "tiny", PAIR)
    loaded = jaxprune.load_compact(tmp_path / "tiny", model)
    np.testing.assert_array_equal(loaded(x), small(x))
