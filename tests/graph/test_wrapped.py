"""Wrappers of Flax, odd layers and odd axes: what can go, and what is left then."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxprune
from jaxprune.adapters import linen
from jaxprune.compaction.compact import compact_groups
from jaxprune.fills.masked import make_pruning
from masked import zeroed
from random_data import random_split, random_variables
from selected import quick
from wrapped import WRAPPED
from zoo import EXAMPLE_SHAPE, ZOO

# Between them: computed kernels, loops, boxes, odd axes, ties.
SOME = (
    "weight norm", "scan", "partitioned", "tied", "transposed", "channels first",
    "glu", "pixel shuffle",
)  # fmt: skip
# Where a kernel is divided by a norm of more than is left, no zero is written in it.
FIRST = ("params/first/kernel", "params/first/bias")
WRITTEN = {
    ("weight norm", "first"): FIRST,
    ("standardised", "first"): FIRST,
    ("spectral norm", "first"): FIRST,
    ("spectral norm", "inner"): ("params/last/kernel",),
}


def images(n=3):
    found = random_split(n=n, shape=EXAMPLE_SHAPE, classes=2).images
    return jnp.asarray(found, jnp.float32) / 255


@pytest.mark.parametrize("name", WRAPPED)
def test_groups_and_reasons_are_those_worked_out_by_hand(name):
    model, variables = WRAPPED[name].build()
    found = jaxprune.find_groups(model, variables, images())
    units = {group.name: group.units for group in found.groups.values()}
    assert units == WRAPPED[name].groups
    expected = {**WRAPPED[name].whole, "out": "they are the network's output"}
    assert found.whole.keys() == expected.keys()
    for layer, reason in expected.items():
        assert re.search(reason, found.whole[layer])


@pytest.mark.parametrize("name", quick(WRAPPED, SOME))
def test_the_smaller_network_is_the_one_in_which_zeros_are_written(name):
    """The model's own code on its own variables is what decides."""
    model, variables = WRAPPED[name].build()
    x, rng = images(), np.random.default_rng(0)
    network = jaxprune.from_linen(model, variables, x)
    for group in network.groups.groups.values():
        keep = rng.permutation(group.units) < rng.integers(1, group.units)
        paths = WRITTEN.get((name, group.name))
        zeros = zeroed(
            network,
            [make_pruning(network, group, keep, "drop")],
            lambda path, _, paths=paths: paths is None or path in paths,
        )
        expected = model.apply(zeros, x)
        small = compact_groups(network, {group.name: (keep, "drop")})
        np.testing.assert_allclose(small(x), expected, atol=1e-5)
        sizes = [sum(map(np.size, n.arrays.values())) for n in (small, network)]
        assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", quick([*ZOO, *WRAPPED], {*list(ZOO)[::5], *SOME}))
def test_layers_return_what_flax_captures(name):
    """Of every layer outside of loops, by linen's `capture_intermediates`."""
    if name in ZOO:
        model = ZOO[name]()
        variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    else:
        model, variables = WRAPPED[name].build()
    x = images()
    network = jaxprune.from_linen(model, variables, x)
    layers = network.graph(x).layers
    _, state = model.apply(
        variables, x, capture_intermediates=True, mutable=["intermediates"]
    )
    captured = flatten_dict(state["intermediates"], sep="/")
    compared = 0
    for layer, found in layers.items():
        path, _, call = layer.partition("#")
        outputs = captured.get(f"{path}/__call__", ())
        if found.in_a_loop or not outputs or layer == "local":
            continue  # ConvLocal's product is turned round before its bias is added
        (value,) = network.evaluate(x, want=[found.output])
        own = outputs[int(call or 1) - 1]
        if isinstance(own, jax.Array) and own.size == value.size:
            np.testing.assert_allclose(value.reshape(own.shape), own, atol=1e-5)
            compared += 1
    assert compared >= 3
    if not any("#" in layer for layer in layers):
        last = [name for name, found in layers.items() if found.kind == "conv"][-1]
        map_ = linen.capture(model.apply, variables, x, last)
        np.testing.assert_allclose(
            map_, jaxprune.sweep.taps.capture_map(network, network.arrays, x, last),
            atol=1e-5,
        )  # fmt: skip
