"""BatchNorms found however they are written, and normalising by the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.graph.batch_norm import find_batch_norms, kept, normalised_by_batch
from jaxprune.graph.network import Network

X = np.random.default_rng(0).normal(1, 2, (7, 5)).astype(np.float32)


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


W = numbers(5, 5)
PARAMS = {"w": W, "bn": {"mean": numbers(5), "var": numbers(5, seed=2)}}


def off(x, mean, var):
    return (x - mean) / jnp.sqrt(var + 1e-3)


def folded(x, mean, var):
    """As Keras has it."""
    root = jax.lax.rsqrt(var + 1e-3)
    return x * root + -mean * root


def power(x, mean, var):
    return (x - mean) * (var + 1e-3) ** -0.5


def moments(x):
    return x.mean(0), x.var(0)


@pytest.mark.parametrize("norm", [off, folded, power])
def test_however_it_is_written(norm):
    """Called twice, between products; a sum of two branches follows the first."""

    def function(params, x, given=None):
        statistics = given or (lambda y: (params["bn"]["mean"], params["bn"]["var"]))
        y = x @ params["w"]
        z = norm(y, *statistics(y)) + y
        z = z @ params["w"]
        return norm(z, *statistics(z))

    network = Network(function, PARAMS, X)
    graph = network.graph(X)
    norms = find_batch_norms(graph)
    assert [n.axes for n in norms.found] == [(0,), (0,)] and not norms.others
    result, found = normalised_by_batch(graph, network.arrays, X, norms.found)
    np.testing.assert_allclose(
        result, function(PARAMS, X, given=moments), rtol=1e-4, atol=1e-5
    )
    first = X @ W
    np.testing.assert_allclose(found[0].mean[0], first.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[0].variance[0], first.var(0), rtol=1e-4)
    as_it_is, _ = normalised_by_batch(graph, network.arrays, X, [])
    np.testing.assert_allclose(as_it_is, function(PARAMS, X), rtol=1e-5, atol=1e-5)


def test_statistics_that_are_divided_before_they_are_used():
    """As Equinox's, by what follows from how many batches they have seen."""
    state = {"0": np.int32(3), "1": {"0": numbers(5), "1": numbers(5, seed=2)}}

    def function(params, x, given=None):
        count, kept = params["state"]["0"], params["state"]["1"]
        share = 1 - jnp.float32(0.9) ** count.astype(jnp.float32)
        return off(x, *(given or (kept["0"] / share, kept["1"] / share)))

    network = Network(function, {"state": state}, X)
    graph = network.graph(X)
    (norm,) = find_batch_norms(graph).found
    result, _ = normalised_by_batch(graph, network.arrays, X, [norm])
    expected = function(network.params, X, given=moments(X))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    arrays = {
        statistic.path: kept(graph, network.arrays, statistic, number)
        for statistic, number in zip(
            (norm.mean, norm.variance), moments(X), strict=True
        )
    }
    found = function(network.tree({**network.arrays, **arrays}), X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def in_a_loop(params, x):
    def turn(y, _):
        return off(y @ params["w"], params["bn"]["mean"], params["bn"]["var"]), None

    return jax.lax.scan(turn, x, None, length=2)[0]


def in_the_kernel(params, x):
    bn = params["bn"]
    root = jax.lax.rsqrt(bn["var"] + 1e-3)
    return x @ (params["w"] * root) - bn["mean"] * root


@pytest.mark.parametrize("function", [in_a_loop, in_the_kernel])
def test_what_is_used_in_another_way_is_named(function):
    norms = find_batch_norms(Network(function, PARAMS, X).graph(X))
    assert not norms.found and norms.others == ["bn/mean"]
