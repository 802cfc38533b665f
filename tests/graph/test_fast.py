"""Any network with the convolutions that are fast on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxprune
from jaxprune import conv
from jaxprune.compaction.network import as_compact
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.graph.network import Network
from random_data import random_variables


class Convolutions(nn.Module):
    """One that has an algorithm of its own here, and others that have none."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3), name="plain")(x))
        x = nn.relu(nn.Conv(32, (3, 3), name="wide")(x))
        x = nn.Conv(32, (3, 3), feature_group_count=32, name="by_channel")(x)
        x = nn.Conv(8, (3, 3), strides=2, name="strided")(jax.jit(nn.relu)(x))
        return x.mean((1, 2))


def test_the_same_network_by_other_algorithms():
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    variables = random_variables(Convolutions(), x[:1])
    network = Network(Convolutions().apply, variables, x)
    fast = with_fast_convolutions(network)
    assert fast.groups.groups.keys() == network.groups.groups.keys()
    found = jax.jit(fast.function)(variables, jnp.asarray(x))
    np.testing.assert_allclose(found, network(x), rtol=1e-4, atol=1e-5)
    text = (
        jax.jit(fast.function).trace(variables, x).jaxpr.pretty_print(name_stack=True)
    )
    assert text.count(conv.SCOPE) > 1


def test_a_compact_network_keeps_the_algorithms_of_the_whole_one():
    """However often it is traced again: in time tables, in what is cut from it."""

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features in (16, 8):
                x = nn.Conv(
                    features, (3, 3), conv_general_dilated=conv.conv_general_dilated
                )(x)
            return nn.relu(x).mean((1, 2))

    x = jnp.ones((2, 8, 8, 16))
    network = Network(Own().apply, random_variables(Own(), x), x)
    again = as_compact(network).network
    small = jaxprune.compact(network, "Conv_0", np.arange(16) > 3)
    for each in (network, again, as_compact(small.network).network, small.network):
        assert all(conv.SCOPE in c.equation.scope for c in each.layers.values())
