"""Whatever is asked of the API, it answers in one line, at the entry."""

import copy
import json
import os
import pickle
import subprocess
import sys
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
