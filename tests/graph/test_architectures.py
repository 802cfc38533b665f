"""Architectures for any task: what can be cut, and that what is left is right."""

import re

import jax
import numpy as np
import pytest

import jaxprune
from architectures import ARCHITECTURES, IMAGES, drawer
from jaxprune.fills.fill import MeanFill
from jaxprune.fills.masked import make_pruning
from masked import zeroed
from selected import quick

# Between them: a decoder, several calls of a layer, several inputs, attention, stacks.
SOME = ("unet", "retinanet", "diffusion", "stacked", "members", "shuffled")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_and_reasons_are_those_worked_out_by_hand(name):
    architecture = ARCHITECTURES[name]
    network = architecture.network()
    found = network.groups
    units = {group.name: group.units for group in found.groups.values()}
    assert units == architecture.groups
    assert found.whole.keys() == architecture.whole.keys()
    for layer, reason in architecture.whole.items():
        assert re.search(reason, found.whole[layer]), found.whole[layer]
    produced = {p for group in found.groups.values() for p in group.producers}
    layers = {n for n, layer in network.layers.items() if layer.leaf is not None}
    assert layers == produced | found.whole.keys()


def halves(network):
    """Every second unit of every group gone."""
    return {
        name: (np.arange(group.units) % 2 == 0, "drop")
        for name, group in network.groups.groups.items()
    }


def in_outputs(path, axis):
    """A standardised kernel is divided by what all of its inputs are."""
    return "kernel" not in path or axis == 3


@pytest.mark.parametrize("name", quick(ARCHITECTURES, ("swin", "stacked")))
def test_each_is_shrunk_or_says_why_not(name):
    """24 images do not fill batches of 16: windows of images are on their axis, too."""
    network = ARCHITECTURES[name].network()
    rng = np.random.default_rng(0)
    images = jax.tree.map(
        lambda x: rng.uniform(size=(24, *x.shape[1:])).astype(x.dtype), network.example
    )
    if name == "stacked":
        with pytest.raises(jaxprune.InputError, match="inside a loop"):
            jaxprune.shrink(network, images, speedup=1.1)
        return
    small = jaxprune.shrink(network, images, speedup=1.1)
    assert small.proof.bound_used < 1
    costs = [jaxprune.cost(net, images) for net in (network, small.network)]
    assert costs[0].multiply_adds / costs[1].multiply_adds >= 1.1


@pytest.mark.parametrize("name", quick(ARCHITECTURES, SOME))
def test_the_smaller_network_is_the_one_in_which_zeros_are_written(name):
    """The model's own code on its own variables decides, in every output."""
    network = ARCHITECTURES[name].network()
    keeps, groups = halves(network), network.groups
    prunings = [
        make_pruning(network, groups.find(group), *how) for group, how in keeps.items()
    ]
    where = {"where": in_outputs} if name == "bit" else {}
    small = jaxprune.compact_groups(network, keeps)
    found = small(network.example)
    expected = jax.jit(network.function)(
        zeroed(network, prunings, **where), network.example
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Sums of some hundred products in another order, through up to 20 layers.
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert small.proof.images == 2 and small.proof.bound_used <= 1


def test_heads_or_dimensions_are_predicted():
    """Both are of the same features: either is predicted from what is left of both."""
    network = ARCHITECTURES["vit"].network()
    heads, dimensions = "attention0/query", "attention0/value"
    groups = [network.groups.groups[name] for name in (heads, dimensions)]
    images = drawer(1)(64, *IMAGES.shape[1:])
    linear = jaxprune.linear_fills(network, images, groups)
    means = jaxprune.mean_fills(network, images, groups)
    keeps = {g.name: np.arange(g.units) % 2 == 0 for g in groups}
    expected = network(images[:2])

    def cut(*fills):
        how = {name: (keeps[name], fill) for name, fill in fills}
        small = jaxprune.compact_groups(network, how)
        assert small.proof.bound_used <= 1
        shapes = [small.arrays[f"params/attention0/value/{n}"].shape for n in LEAVES]
        assert shapes == [(8, 1, 2), (1, 2)]
        return small(images[:2])

    one = cut((heads, means[heads]), (dimensions, linear[dimensions]))
    other = cut((dimensions, linear[dimensions]), (heads, means[heads]))
    np.testing.assert_allclose(one, other, atol=1e-5)
    dropped = cut((heads, "drop"), (dimensions, "drop"))
    assert np.square(one - expected).sum() < np.square(dropped - expected).sum()
    with pytest.raises(jaxprune.InputError, match=r"one of them can .* not both"):
        cut((heads, linear[heads]), (dimensions, linear[dimensions]))


LEAVES = ("kernel", "bias")


def test_what_several_convolutions_at_once_read_takes_drop_alone():
    network = ARCHITECTURES["members"].network()
    group = network.groups.groups["members/conv0"]
    assert [*group.consumers] == ["members/conv1"]
    owner = group.consumers["members/conv1"]
    np.testing.assert_array_equal(owner, [0, 1, 2, 3] * 3)  # of each member the same
    fill = MeanFill("mean", means={"members/conv1": np.ones(12, np.float32)})
    message = "several convolutions at once: it takes the fill 'drop' alone"
    with pytest.raises(jaxprune.InputError, match=message):
        jaxprune.compact_groups(network, {group.name: (np.arange(4) > 0, fill)})
    with pytest.raises(jaxprune.InputError, match=message):
        jaxprune.mean_fills(network, IMAGES, [group])
