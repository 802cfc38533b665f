"""Networks that are functions: what they answer, and what is said of bad ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune import InputError, Network

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(size=(3, 8, 8, 2)), jnp.float32)
PARAMS = {
    "first": {"w": RNG.normal(size=(3, 3, 2, 6)).astype(np.float32)},
    "second": {"w": RNG.normal(size=(3, 3, 6, 5)).astype(np.float32)},
    "out": {"w": RNG.normal(size=(5, 4)).astype(np.float32)},
}


def conv(x, w):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)


def plain(params, x):
    x = jax.nn.relu(conv(x, params["first"]["w"]))
    x = jax.nn.relu(conv(x, params["second"]["w"]))
    return x.mean((1, 2)) @ params["out"]["w"]


def jitted(params, x):
    return jax.jit(plain)(params, x)


@pytest.mark.parametrize("function", [plain, jitted, jax.jit(plain)])
def test_a_function_is_a_network(function):
    network = Network(function, PARAMS, X)
    assert list(network.layers) == ["first", "second", "out"]
    units = {name: group.units for name, group in network.groups.groups.items()}
    assert units == {"first": 6, "second": 5}
    small = jaxprune.compact(network, "second", [True, False, True, True, False])
    second = PARAMS["second"]["w"].copy()
    second[..., [1, 4]] = 0
    expected = plain({**PARAMS, "second": {"w": second}}, X)
    np.testing.assert_allclose(small(X), expected, atol=1e-5)
    assert small.params["second"]["w"].shape == (3, 3, 6, 3)
    assert small.params["out"]["w"].shape == (3, 4)


def sorted_by_a_library(params, x):
    x = jnp.sort(jax.nn.relu(conv(x, params["first"]["w"])), axis=-1)
    x = jax.nn.relu(conv(x, params["second"]["w"]))
    return x.mean((1, 2)) @ params["out"]["w"]


def transformed(params, x):
    x = jax.nn.relu(conv(x, params["first"]["w"]))
    x = jnp.abs(jnp.fft.fft2(x, axes=(1, 2)))
    x = jax.nn.relu(conv(x, params["second"]["w"]))
    return x.mean((1, 2)) @ params["out"]["w"]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (sorted_by_a_library, r"'sort' \(test_network.py:\d+\) joins them"),
        (transformed, r"'fft' \(test_network.py:\d+\) is not understood"),
    ],
)
def test_what_cannot_go_is_named_by_the_users_line_and_the_rest_goes(function, reason):
    network = Network(function, PARAMS, X)
    assert re.fullmatch(reason, network.groups.whole["first"])
    keep = np.array([True, False, True, True, False])
    small = jaxprune.compact_groups(network, {"second": (keep, "drop")})
    second = PARAMS["second"]["w"] * np.float32(keep)
    expected = function({**PARAMS, "second": {"w": second}}, X)
    np.testing.assert_allclose(small(X), expected, rtol=1e-5, atol=1e-5)


def test_what_is_printed_is_a_line_each():
    network = Network(plain, PARAMS, X)
    assert str(list(network.layers.values())) == (
        "[Layer(first, conv, 2 -> 6), Layer(second, conv, 6 -> 5), "
        "Layer(out, dense, 5 -> 4)]"
    )
    group = network.groups.groups["first"]
    assert repr(group) == "PruningGroup(6 units, first -> second)"
    fill = jaxprune.linear_fill(network, X, layer="second", ridge=1.0)
    assert repr(fill) == "LinearFill(name='linear', facts={'images': 3, 'ridge': 1.0})"


def by_value(params, x):
    return plain(params, x) if x.sum() > 0 else -plain(params, x)


def in_numpy(params, x):
    return np.maximum(plain(params, np.asarray(x)), 0)


def by_batch(params, x):
    if len(x) == 7:
        raise ValueError("seven is too many\nby far")
    return plain(params, x)


BAD = {
    "value": (by_value, PARAMS, X, "its control flow depends on values"),
    "numpy": (in_numpy, PARAMS, X, "does not run on the example"),
    "no arrays": (plain, {}, X, "hold no floating-point array"),
    "integers": (plain, {"w": np.arange(3)}, X, "hold no floating-point array"),
    "words": (plain, {"w": "kernel"}, X, "real numbers"),
    "other keys": (plain, {"w": PARAMS["out"]["w"]}, X, "does not run on the example"),
    "axes": (plain, PARAMS, X[0], "does not run on the example"),
    "channels": (plain, PARAMS, X[..., :1], "does not run on the example"),
    "no example": (plain, PARAMS, None, "give the network an example"),
    "a number": (plain, PARAMS, 3.0, "got a number"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_network_is_told_so_in_one_line(kind):
    function, params, example, message = BAD[kind]
    with pytest.raises(InputError, match=message) as error:
        jaxprune.find_groups(Network(function, params, example))
    assert "\n" not in str(error.value)


def test_a_batch_that_the_function_refuses():
    network = Network(by_batch, PARAMS, X)
    small = jaxprune.compact(network, "second", [True, False, True, True, False])
    for call in (network.graph, small):
        with pytest.raises(InputError, match="seven is too many") as error:
            call(jnp.zeros((7, 8, 8, 2)))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"inputs of shape \[N, 8, 8, 2\]"):
        small(jnp.zeros((1, 4, 4, 2)))
