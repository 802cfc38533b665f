"""Versions of Python and JAX: what is selected, what is said, what is exchanged."""

import configparser
import os
import platform
import re
from pathlib import Path

import jax
import numpy as np

import jaxprune
import versions
from toys import Planted, planted

ROOT = Path(__file__).parents[1]
# To be the same for several versions, each of which runs this twice: all write, all
# read.
FOLDER = "JAXPRUNE_TEST_ARTEFACTS"


def test_every_room_has_a_test_that_there_is():
    rooms = {path.name for path in (ROOT / "jaxprune").iterdir() if path.is_dir()}
    rooms = {name for name in rooms if (ROOT / "tests" / name).is_dir()}
    assert rooms <= {name.split("/")[0] for name in versions.SELECTED}
    for name in versions.SELECTED:
        file, function = name.split("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in text, name


def test_the_versions_that_are_said():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    said = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    assert said == ["3.11", "3.12", "3.13"]
    assert config["options"]["python_requires"] == f">={said[0]}"


def _is_newer(path):
    """Whether a version of JAX that has written an artefact is newer than this."""
    numbers = [
        re.findall(r"\d+", v) for v in (path.name.split("jax")[1], jax.__version__)
    ]
    return [int(n) for n in numbers[0]] > [int(n) for n in numbers[1]]


def test_artefacts_of_all_versions_are_read(tmp_path):
    folder = Path(os.environ.get(FOLDER, tmp_path))
    _, variables, split = planted()
    x = np.float32(split.images[:4]) / 255
    network = jaxprune.from_linen(Planted(), variables, x)
    small = jaxprune.compact(network, "only", np.arange(4) != 1, fill="bias")
    own = folder / f"python{platform.python_version()}-jax{jax.__version__}"
    small.save(own)
    result = jaxprune.sweep_layer(
        jaxprune.tap_layer(network, jaxprune.image_split(
            np.float32(split.images), split.labels, split.class_names)),
        np.arange(4.0),
    )  # fmt: skip
    result.save(own.with_name(f"{own.name}.sweep"))
    for path in folder.glob("python*"):
        if path.suffix == ".sweep":
            saved = jaxprune.SweepResult.load(path)
            np.testing.assert_array_equal(saved.predictions, result.predictions)
            continue
        for model in (None, Planted()):
            try:
                read = jaxprune.load_compact(path, model)
            except jaxprune.InputError as error:  # of a JAX that is newer
                assert "was written under JAX" in str(error) and _is_newer(path)
                continue
            np.testing.assert_allclose(read(x), small(x), rtol=1e-5, atol=1e-6)
