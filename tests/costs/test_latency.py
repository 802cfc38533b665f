"""Predicted times from tables that are made up; what is kept and what is not."""

import json
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base import manifest
from jaxprune.costs import clock, latency
from jaxprune.costs.latency import (
    LatencyTable,
    Rest,
    Timed,
    measure_latency,
    measure_multiple,
)
from jaxprune.costs.widths import Costs, Product, Side, network_costs
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network
from random_data import random_variables
from zoo import EXAMPLE_SHAPE, ZOO


def test_between_timed_widths_lies_a_straight_line():
    timed = Timed((2, 4), (10, 20), np.array([[1.0, 3.0], [2.0, 8.0]]), 5)
    assert timed.at(2, 10) == 1 and timed.at(4, 20) == 8
    assert timed.at(3, 15) == pytest.approx((2 + 5) / 2)
    assert timed.at(1, 10) == 1  # below what was timed


def planted(**rest):
    """A table of one layer that takes a second: 80 elements, 18 x 10 parameters."""
    sides = Side(3, {}), Side(0, {"a": 2.0})
    layers, arrays = {"layer": Product(9, sides)}, {"kernel": Product(3, sides)}
    costs = Costs({"a": 10}, layers, arrays, {"layer": sides})
    flat = Timed((3,), (20,), np.array([[1.0]]), 4)
    return LatencyTable(1, costs, {"layer": flat}, Rest(**rest))


def test_what_is_not_the_layers_goes_with_elements_and_parameters():
    table = planted(fixed=0.5, per_element=0.01, per_parameter=0.001)
    assert table.seconds({"a": 10}) == pytest.approx(1.5 + 0.8 + 0.18)
    assert table.seconds({"a": 5}) == pytest.approx(1.5 + 0.4 + 0.09)


def test_the_rest_of_one_network_goes_with_its_elements():
    table = planted().with_rest([{"a": 10}], np.array([1.8]))
    assert table.rest == pytest.approx((0.01, 0, 0))


def test_the_rest_is_found_from_networks_of_several_widths():
    truth = planted(fixed=0.5, per_element=0.01, per_parameter=0)
    widths = [{"a": w} for w in (10, 5, 2)]
    seconds = np.array([truth.seconds(w) for w in widths])
    found = planted().with_rest(widths, seconds)
    for width in (10, 7, 1):
        assert found.seconds({"a": width}) == pytest.approx(truth.seconds({"a": width}))


def test_no_rest_is_less_than_nothing():
    """As where layers are slower by themselves than in their network."""
    table = planted().with_rest([{"a": 10}, {"a": 5}], np.array([0.4, 0.3]))
    assert table.rest == (0, 0, 0)


def network(name):
    model, x = ZOO[name](), jnp.ones((2, *EXAMPLE_SHAPE))
    whole = Network(model.apply, random_variables(model, x), x)
    return whole, network_costs(whole), x


@pytest.fixture
def instant(monkeypatch):
    """A clock by which every program takes a second, and the calls it was asked for."""
    asked = []
    monkeypatch.setattr(clock, "_median", lambda run: asked.append(run) or 1.0)
    monkeypatch.setattr(clock, "_seconds", lambda run: 1.0)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnext", "mobilenet_v3"])
def test_every_layer_is_timed_once_at_widths_that_run(name, instant, tmp_path):
    whole, costs, x = network(name)
    seen = []
    table = measure_latency(whole, costs, x, cache=tmp_path, on_layer=seen.append)
    assert sorted(seen) == sorted(costs.layers) == sorted(table.layers)
    assert table.batch == 2
    assert table.seconds(costs.whole) == pytest.approx(0)  # all is overhead
    for run in instant[1::7]:
        run()
    asked = len(instant)
    (path,) = tmp_path.iterdir()
    assert len(json.loads(path.read_text())["entries"]) == asked - 1  # the overhead
    measure_latency(whole, costs, x, cache=tmp_path)
    assert len(instant) == asked + 1
    path.write_text("{")
    measure_latency(whole, costs, x, cache=tmp_path)
    assert len(instant) == asked + 1 + asked


def test_times_of_another_machine_are_not_taken(instant, tmp_path, monkeypatch):
    """As from a home folder that machines share, or a file that was copied."""
    whole, costs, x = network("resnext")
    measure_latency(whole, costs, x, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    asked = len(instant)
    facts = json.loads(path.read_text())
    assert facts["key"]["processor"] and facts["key"]["device"] == "cpu"
    facts["key"]["processor"] = "another, 2 cores"
    manifest.write_file(path, facts)
    measure_latency(whole, costs, x, cache=tmp_path)
    assert len(instant) == 2 * asked


@pytest.mark.parametrize("seconds", [-1.0, "1", None])
def test_times_that_are_none_are_not_taken(instant, tmp_path, seconds):
    whole, costs, x = network("resnext")
    measure_latency(whole, costs, x, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    asked = len(instant)
    facts = json.loads(path.read_text())
    facts["entries"] = dict.fromkeys(facts["entries"], seconds)
    manifest.write_file(path, facts)
    measure_latency(whole, costs, x, cache=tmp_path)
    assert len(instant) == 2 * asked


def test_the_multiple_is_that_of_the_layer_with_most_to_do(instant, tmp_path):
    """16 widths of its 48 channels; without layers that can be timed, any width."""
    x = jnp.ones((2, 6, 6, 3))

    def function(params, x):
        for kernel in params:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x.mean((1, 2))

    params = [
        jnp.ones((1, 1, 3, 40)),
        jnp.ones((3, 3, 40, 48)),
        jnp.ones((1, 1, 48, 2)),
    ]
    whole = Network(function, params, x)
    costs = network_costs(whole)
    assert measure_multiple(whole, costs, x, cache=tmp_path) == 1
    (path,) = tmp_path.iterdir()
    entries = json.loads(path.read_text())["entries"]
    assert len(entries) == 16 and all("[3, 3, " in entry for entry in entries)
    assert measure_multiple(whole, replace(costs, ends={}), x) == 1


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("channels", "groups"), [(200, 1), (63, 1), (12, 1), (200, 8)])
@pytest.mark.parametrize("unit", [1, 4, 16, 64])
def test_widths_are_multiples_that_are_as_fast_as_any(
    monkeypatch, backend, channels, groups, unit
):
    """On a machine that is three times as fast where features are such a multiple."""
    timed = []

    def seconds(clock, layer, given, returned, groups):
        assert given == returned
        timed.append(returned)
        return given**2 * (1.0 if given % unit == 0 else 3.0)

    monkeypatch.setattr(latency, "_seconds", seconds)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    layer = mock.create_autospec(Layer, instance=True, channels=channels, groups=groups)
    found = latency._fastest_multiple(clock.Clock(None), layer)
    largest = 16 if backend == "cpu" else 64
    if groups > 1 or channels < largest:
        assert found == 1 and not timed
    else:
        top = channels // largest * largest
        assert found == (min(unit, largest) if top % unit == 0 else 1)
        assert max(timed) <= channels and len(timed) == largest


def test_what_is_faster_by_noise_makes_no_widths_coarser(monkeypatch):
    monkeypatch.setattr(
        latency, "_seconds", lambda clock, layer, f, u, groups: 1 + 0.1 * bool(u % 16)
    )
    layer = mock.create_autospec(Layer, instance=True, channels=64, groups=1)
    assert latency._fastest_multiple(clock.Clock(None), layer) == 1
