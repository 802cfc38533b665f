"""Plain functions: all that is asked of a network agrees on what can be cut."""

from contextlib import suppress

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune.costs.multiply_adds import multiply_adds
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.shrink import analyse
from random_data import random_split, random_variables
from selected import quick
from wrapped import WRAPPED
from zoo import CLASSES, EXAMPLE_SHAPE, ZOO

SOME = ("scan",)
# Groups that are pruned by name, but not predicted: inside loops and products.
LEFT = {
    "scan": {"first", "steps/up"},
    "attention": {"heads/query[2]"},
    # Shuffled, some of their channels are read here and some there.
    "shufflenet_v2": {
        f"ShuffleUnit_{name}/Conv_0"
        for name in ("0/ConvNorm_1", "0/ConvNorm_4", "1/ConvNorm_2", "2/ConvNorm_2")
    },
}
SPLIT = random_split(n=16, shape=EXAMPLE_SHAPE, classes=CLASSES)
TIED = "go together"


def plain_network(name):
    """Nothing of linen but the function, of images as they are."""
    if name in ZOO:
        model = ZOO[name]()
        variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    else:
        model, variables = WRAPPED[name].build()

    def function(params, images):
        return model.apply(params, images.astype(jnp.float32) / 255)

    return jaxprune.Network(function, variables, SPLIT.images[:3])


def half(units):
    return np.arange(units) % 2 == 0


def ways(group, layer):
    """How many units a layer has in a group, and how many channels each of them is."""
    units = group.producers.get(layer, np.zeros(0, np.int64))
    return np.bincount(units[units >= 0], minlength=0)


@pytest.mark.parametrize("name", [*ZOO, *WRAPPED])
def test_a_layer_and_its_groups(name):
    """`compact` removes what `find_groups` finds, and names the same reasons."""
    network = plain_network(name)
    found = jaxprune.find_groups(network)
    produced = [p for g in found.groups.values() for p in g.producers]
    assert {*produced, *found.whole} == {
        n for n, layer in network.layers.items() if layer.leaf is not None
    }
    for layer in found.whole:
        with pytest.raises(jaxprune.InputError) as error:
            network.graph().channels_of(layer)
        assert found.whole[layer] in str(error.value) or TIED in str(error.value)
        with pytest.raises(jaxprune.InputError):
            jaxprune.compact_groups(network, {layer: (half(1), "drop")})
    for layer in dict.fromkeys(produced):
        channels = network.layers[layer].channels
        sizes = [ways(group, layer) for group in found.groups.values()]
        alone = sum(len(s) for s in sizes if (s == 1).all()) == channels
        try:
            group = network.graph().channels_of(layer)
        except jaxprune.InputError:
            assert not alone
        else:
            assert alone and group.units == channels


@pytest.mark.parametrize(
    "name",
    quick([*ZOO, *WRAPPED], SOME),
)
def test_sweeps_cuts_and_budgets(name):
    network = plain_network(name)
    found = network.groups.groups
    small = jaxprune.compact_groups(
        network, {n: (half(group.units), "drop") for n, group in found.items()}
    )
    assert small.proof.different_predictions == 0
    for path, array in network.arrays.items():
        for axis, size in enumerate(np.shape(array)):
            gone = 0
            for group in found.values():
                units = group.leaves.get((path, axis), np.full(size, -1))
                gone += (~half(group.units)[units[units >= 0]]).sum()
            assert np.shape(small.arrays[path])[axis] == size - gone

    kinds = [*network.layers.values()]
    layer = [found.name for found in kinds if found.kind == "conv" and found.leaf][-1]
    with suppress(jaxprune.InputError):  # that of which no channels can be constants
        layer = network.graph().last_conv()
    tapped = jaxprune.tap_layer(network, SPLIT, layer=layer)
    ks = [0, tapped.channels // 2]
    result = jaxprune.sweep_layer(tapped, jaxprune.score(tapped, "mean"), ks=ks)
    assert tapped.name == layer and result.predictions.shape == (2, 16)
    keep = np.isin(np.arange(tapped.channels), result.order[ks[1] :])
    try:
        cut = jaxprune.compact(network, layer, keep)
    except jaxprune.InputError as error:
        refused = layer in network.groups.whole or TIED in str(error)
        assert refused or "no constant where" in str(error)
        with pytest.raises(jaxprune.InputError, match="name a layer"):
            network.graph().last_conv()
    else:
        logits = cut(jnp.asarray(SPLIT.images))
        np.testing.assert_array_equal(logits.argmax(-1), result.predictions[1])

    analysis = analyse(network, images=jnp.asarray(SPLIT.images))
    whole = {*analysis.groups.whole}
    left = {n for n, g in found.items() if n in whole or {*g.producers} <= whole}
    assert set(analysis.curves) == {*found} - left
    assert left == LEFT.get(name, set())
    goal = 1.05 if name == "scan" else 1.2  # most of it is inside the loop
    smaller = analysis.shrink(Budget(speedup=goal))
    before, after = map(multiply_adds, (network, smaller.network))
    assert smaller.proof.different_predictions == 0 and before >= goal * after
