"""Where one kernel makes all heads of an attention: heads go, or dimensions of each."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune.fills.masked import make_pruning
from masked import zeroed
from random_data import random_variables

HEADS, SIZE, TOKENS = 4, 6, 16
X = np.random.default_rng(0).normal(size=(20, TOKENS, 8)).astype(np.float32)


class Attention(nn.Module):
    """Query, key and value of all heads in one kernel, in several people's orders."""

    order: str

    @nn.compact
    def __call__(self, x):
        n, t, c = x.shape
        made = nn.Dense(3 * HEADS * SIZE, name="qkv")(x)
        if self.order == "split":
            parts = (a.reshape(n, t, HEADS, SIZE) for a in jnp.split(made, 3, -1))
        elif self.order == "heads first":
            made = made.reshape(n, t, HEADS, 3, SIZE)
            parts = (made[..., i, :] for i in range(3))
        else:
            parts = made.reshape(n, t, 3, HEADS, SIZE).transpose(2, 0, 1, 3, 4)
        q, k, v = parts
        weights = nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / SIZE**0.5)
        y = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(n, t, -1)
        x = x + nn.Dense(c, name="out")(y)
        return nn.Dense(3, name="classes")(x.mean(1))


ORDERS = ("split", "heads first", "timm")


def network(order):
    model = Attention(order)
    return jaxprune.from_linen(model, random_variables(model, X), X[:2])


@pytest.mark.parametrize("order", ORDERS)
def test_heads_or_dimensions_are_the_units(order):
    whole = network(order)
    assert whole.groups.groups["qkv"].units == HEADS
    # A reshape that has an axis for query, key and value ties the three.
    units = 2 * SIZE if order == "split" else SIZE
    other = whole.with_head_dimensions()
    assert other.groups.groups["qkv"].units == units
    assert other.with_head_dimensions() is other
    assert whole.groups.groups["qkv"].units == HEADS


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_left_is_the_network_with_zeros(order, tmp_path):
    """Of queries and keys a zero is a term left out, of values what nothing reads."""
    whole = network(order).with_head_dimensions()
    group = whole.groups.groups["qkv"]
    keep = np.arange(group.units) % 3 != 1
    small = jaxprune.compact_groups(whole, {"qkv": (keep, "drop")})
    pruning = make_pruning(whole, group, keep, "drop")
    expected = whole.function(zeroed(whole, [pruning]), X)
    assert keep.sum() < group.units
    columns = small.arrays["params/qkv/kernel"].shape[1]
    assert columns == 3 * HEADS * SIZE * keep.mean()
    np.testing.assert_allclose(small(X), expected, rtol=1e-4, atol=1e-5)
    # Saved, loaded, and cut again: the units are the same ones.
    small.save(tmp_path / "small")
    loaded = jaxprune.load_compact(tmp_path / "small", Attention(order))
    assert loaded.network.head_dimensions
    left = loaded.network.groups.groups["qkv"].units
    assert left == keep.sum()
    again = jaxprune.compact_groups(
        loaded.network, {"qkv": (np.arange(left) > 0, "drop")}
    )
    first = np.flatnonzero(keep)[0]
    pruning = make_pruning(whole, group, keep & (np.arange(len(keep)) != first), "drop")
    expected = whole.function(zeroed(whole, [pruning]), X)
    np.testing.assert_allclose(again(X), expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_such_a_kernel_has_the_same_groups():
    class Apart(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + nn.MultiHeadDotProductAttention(HEADS, qkv_features=24)(x)
            return nn.Dense(3)(x.mean(1))

    model = Apart()
    whole = jaxprune.from_linen(model, random_variables(model, X), X[:2])
    found = [n.groups.groups for n in (whole, whole.with_head_dimensions())]
    assert {n: g.units for n, g in found[0].items()} == {
        n: g.units for n, g in found[1].items()
    }
