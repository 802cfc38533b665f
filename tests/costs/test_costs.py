"""Predicted costs against those of networks that are really cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxprune.compaction.compact as compaction
from jaxprune._base.errors import InputError
from jaxprune.adapters.linen import from_linen
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


@pytest.mark.parametrize("name", quick(ZOO, SOME))
def test_costs_are_those_of_the_network_that_is_cut(name, monkeypatch):
    monkeypatch.setattr(compaction, "prove", lambda *_: None)  # it takes long
    model, x = ZOO[name](), jnp.ones((1, *EXAMPLE_SHAPE))
    variables = random_variables(model, x)
    network = Network(model.apply, variables, x)
    costs = network_costs(network)
    assert costs.multiply_adds(costs.whole) == pytest.approx(multiply_adds(network))
    assert costs.parameters(costs.whole) == parameters(variables)
    rng = np.random.default_rng(0)
    done = 0
    while done < 2:
        widths = {n: int(rng.integers(1, w + 1)) for n, w in costs.whole.items()}
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
    if "padding" in params and set(params["lhs_dilation"]) == {1}:
        shape = list(types[0].shape)
        axes = params["dimension_numbers"].lhs_spec[2:]
        for axis, (low, high) in zip(axes, params["padding"], strict=True):
            shape[axis] += low + high
        types[0] = jax.ShapeDtypeStruct(tuple(shape), types[0].dtype)
        params["padding"] = tuple((0, 0) for _ in axes)
    program = jax.jit(lambda *operands: equation.primitive.bind(*operands, **params))
    return program.lower(*types).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "name", quick([*ZOO, *WRAPPED], {*list(ZOO)[::2], *list(WRAPPED)[::3]})
)
def test_multiply_adds_are_half_of_the_operations_that_xla_counts(name):
    if name in ZOO:
        model, x = ZOO[name](), jnp.ones((1, *EXAMPLE_SHAPE))
        network = from_linen(model, random_variables(model, x), x)
    else:
        network = from_linen(*WRAPPED[name].build(), jnp.ones((1, *EXAMPLE_SHAPE)))
    ours, theirs = 0, 0
    for layer in network.layers.values():
        types = [layer.program.types[value] for value in layer.equation.inputs]
        ours += 2 * of_layer(layer)
        theirs += layer.repeats * flops_by_xla(layer.equation, types)
    assert ours == pytest.approx(theirs, rel=1e-6)
