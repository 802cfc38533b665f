"""Predicted costs against those of networks that are really cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxprune.compaction.compact as compaction
from architectures import ARCHITECTURES
from jaxprune._base.errors import InputError
from jaxprune.adapters.linen import from_linen
from jaxprune.costs import cost
from jaxprune.costs.multiply_adds import multiply_adds, of_layer
from jaxprune.costs.widths import network_costs
from jaxprune.graph.network import Network
from random_data import random_variables
from selected import quick
from wrapped import WRAPPED
from zoo import EXAMPLE_SHAPE, ZOO

SOME = ("cifar_resnet",)


def parameters(variables):
    flat = flatten_dict(variables, sep="/")
    return sum(np.size(v) for k, v in flat.items() if not k.startswith("offsets/"))


def is_even(group):
    """Whether all units hold as much: of shuffled channels a leaf reads some alone.

    Then the cost depends on which are pruned, and by the number it is a mean.
    """
    counts = (
        np.bincount(owner[owner >= 0], minlength=group.units)
        for owner in group.leaves.values()
    )
    return all(np.unique(count).size == 1 for count in counts)


@pytest.mark.parametrize("name", quick(ZOO, SOME))
def test_costs_are_those_of_the_network_that_is_cut(name, monkeypatch):
    monkeypatch.setattr(compaction, "prove", lambda *_, **__: None)  # it takes long
    model, x = ZOO[name](), jnp.ones((1, *EXAMPLE_SHAPE))
    variables = random_variables(model, x)
    network = Network(model.apply, variables, x)
    costs = network_costs(network)
    assert costs.multiply_adds(costs.whole) == pytest.approx(multiply_adds(network))
    assert costs.parameters(costs.whole) == parameters(variables)
    even = [
        name for name, group in network.graph().groups.groups.items() if is_even(group)
    ]
    rng = np.random.default_rng(0)
    done = 0
    while done < 2:
        widths = costs.whole | {
            n: int(rng.integers(1, costs.whole[n] + 1)) for n in even
        }
        keeps = {
            n: (rng.permutation(costs.whole[n]) < w, "drop") for n, w in widths.items()
        }
        try:
            small = compaction.compact_groups(model, variables, keeps, example=x)
        except InputError:  # a layer would return nothing
            continue
        done += 1
        assert costs.multiply_adds(widths) == pytest.approx(
            multiply_adds(small.network)
        )
        assert costs.parameters(widths) == pytest.approx(parameters(small.variables))


def flops_by_xla(equation, types):
    """Of a contraction by itself; with its border there already, not as zeros known."""
    params, types = dict(equation.params), list(types)
    if "padding" in params:
        shape = list(types[0].shape)
        axes = params["dimension_numbers"].lhs_spec[2:]
        sides = []
        for axis, ends, step in zip(
            axes, params["padding"], params["lhs_dilation"], strict=True
        ):  # inputs lie `step` apart
            more = [-(-end // step) for end in ends]
            shape[axis] += sum(more)
            sides.append(tuple(e - m * step for e, m in zip(ends, more, strict=True)))
        types[0] = jax.ShapeDtypeStruct(tuple(shape), types[0].dtype)
        params["padding"] = tuple(sides)
    program = jax.jit(lambda *operands: equation.primitive.bind(*operands, **params))
    return program.lower(*types).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "name",
    quick(
        [*ZOO, *WRAPPED, *ARCHITECTURES],
        {*list(ZOO)[::2], *list(WRAPPED)[::3], *list(ARCHITECTURES)[::4]},
    ),
)
def test_multiply_adds_are_half_of_the_operations_that_xla_counts(name):
    if name in ZOO:
        model, x = ZOO[name](), jnp.ones((1, *EXAMPLE_SHAPE))
        network = from_linen(model, random_variables(model, x), x)
    elif name in ARCHITECTURES:
        network = ARCHITECTURES[name].network()
    else:
        network = from_linen(*WRAPPED[name].build(), jnp.ones((1, *EXAMPLE_SHAPE)))
    ours, theirs = 0, 0
    for layer in network.layers.values():
        types = [layer.program.types[value] for value in layer.equation.inputs]
        ours += 2 * of_layer(layer)
        theirs += layer.repeats * flops_by_xla(layer.equation, types)
    assert ours == pytest.approx(theirs, rel=1e-6)


# Behind a concatenation, groups of a GroupNorm are units of different sizes: a width
# does not say which are left.
EQUAL_UNITS = [name for name in ARCHITECTURES if name != "diffusion"]


@pytest.mark.parametrize("name", quick(EQUAL_UNITS, ("members", "shuffled")))
def test_costs_of_architectures_are_those_of_the_network_that_is_cut(name, monkeypatch):
    monkeypatch.setattr(compaction, "prove", lambda *_, **__: None)  # it takes long
    network = ARCHITECTURES[name].network()
    costs = network_costs(network)
    keeps = {n: np.arange(units) % 2 == 0 for n, units in costs.whole.items()}
    small = compaction.compact_groups(
        network, {n: (k, "drop") for n, k in keeps.items()}
    )
    widths = {n: int(keep.sum()) for n, keep in keeps.items()}
    assert costs.multiply_adds(costs.whole) == pytest.approx(multiply_adds(network))
    assert costs.multiply_adds(widths) == pytest.approx(multiply_adds(small.network))
    stored = [path for path in small.arrays if path.startswith("stored/")]
    kept = sum(np.size(a) for p, a in small.arrays.items() if p not in stored)
    assert costs.parameters(widths) == pytest.approx(kept)


@pytest.mark.parametrize(("seconds", "calls"), [(1e9, 7), (0.0, 3)])
def test_calls_that_take_long_are_timed_three_times(seconds, calls, monkeypatch):
    monkeypatch.setattr(cost, "LONGEST", seconds)
    called = []
    found = cost.latencies([called.append, lambda x: x], 1, repeats=7)
    assert len(called) == 1 + calls  # the first is not timed
    assert all(0 < f.lower_quartile <= f.median <= f.upper_quartile for f in found)
