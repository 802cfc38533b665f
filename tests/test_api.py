"""Whatever is asked of the API, it answers in one line, at the entry."""

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprune
from toys import Planted, planted

HERE = Path(__file__).parent


def test_copies_pickles_and_hashes():
    apply, variables, split = planted()
    x = split.images[:4]
    network = jaxprune.Network(apply, variables, x)
    layer = network.layers["only"]
    tapped = jaxprune.tap_layer(network, split, tap="relu")
    result = jaxprune.sweep_layer(tapped, np.arange(4.0))
    small = jaxprune.compact(network, "only", np.arange(4) > 1)
    for value in (network, layer, tapped, result, small):
        for other in (copy.copy(value), copy.deepcopy(value)):
            assert repr(other) == repr(value) and len(repr(value)) < 80
        assert len({value, value, other}) == 2
    again = jaxprune.sweep_layer(copy.deepcopy(tapped), np.arange(4.0))
    np.testing.assert_array_equal(again.predictions, result.predictions)
    np.testing.assert_array_equal(jax.jit(small)(x), small(x))
    read = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(read.predictions, result.predictions)
    for value, message in (
        (small, r"small\.save\(path\)"),
        (tapped, "pickle what sweep_layer returns"),
        (layer, "pickle the network"),
    ):
        with pytest.raises(jaxprune.InputError, match=message):
            pickle.dumps(value)
    network = jaxprune.from_linen(Planted(), variables, np.float32(x) / 255)
    logits = network(network.example)
    assert network.layers  # traced, which nobody pickles
    read = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(read(read.example), logits)


OPTIONS = {
    "disable_jit": jax.disable_jit,
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "transfer_guard": lambda: jax.transfer_guard("disallow_explicit"),
    "debug_nans": jax.debug_nans,
    "set_mesh": lambda: jax.set_mesh(jax.make_mesh((2,), ("x",))),
}


@pytest.fixture(scope="module")
def as_usual(tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        return steps(tmp_path_factory.mktemp("usual"))


def steps(folder):
    """Numbers of a call of everything that computes some."""
    _, variables, split = planted()
    network = jaxprune.from_linen(Planted(), variables, np.float32(split.images[:4]))
    linear = jaxprune.linear_fill(network, split.images.astype(np.float32))
    split = replace(split, images=split.images.astype(np.float32))
    tapped = jaxprune.tap_layer(network, split, tap="relu", criteria=["taylor"])
    scores = jaxprune.score(tapped, "taylor")
    apply = network.function
    numbers = [scores, jaxprune.predict(apply, variables, split, batch_size=8)]
    for fill in ("zero", "drop", linear):
        orders = {"up": scores, "down": -scores}
        for _, result in jaxprune.sweep_orders(tapped, orders, fill=fill):
            numbers.append(result.cross_entropy)
    keep = np.arange(4) != 1
    small = jaxprune.compact(network, "only", keep, fill=linear)
    small.save(folder / "small")
    small = jaxprune.load_compact(folder / "small", Planted())
    small = jaxprune.finetune(
        small, network, split, epochs=1, batch_size=8, learning_rate=1e-3
    )
    x = network.example
    numbers += [small(x), jaxprune.capture(Planted().apply, variables, x, "only")]
    numbers.append(jaxprune.run_from(network, x, "only", np.ones((4, 3, 3, 4))))
    return [np.asarray(jax.device_get(array)) for array in numbers]


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_caller_change_nothing(option, as_usual, tmp_path):
    with jax.numpy_dtype_promotion("standard"), OPTIONS[option]():
        found = steps(tmp_path)
    for array, expected in zip(found, as_usual, strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_calls_that_make_no_sense(record_property):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "api_calls.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, right = json.loads(done.stdout.splitlines()[-1])
    other = {
        name: (kind, message[:200])
        for name, (kind, message) in refused.items()
        if kind != "InputError" or not message or "\n" in message
    }
    other |= {name: found for name, found in right.items() if found[0] != "right"}
    counts = {"equal": len(right), "refused": len(refused)}
    if not other:
        record_property("campaign", json.dumps(["calls of the API", counts]))
    assert not other
    assert len(refused) + len(right) > 200
