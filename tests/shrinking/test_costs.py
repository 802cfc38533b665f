"""Predicted costs against those of networks that are really cut."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxprune.channels.groups import find_groups
from jaxprune.compaction.compact import compact_groups
from jaxprune.compaction.cost import multiply_adds
from jaxprune.errors import InputError
from jaxprune.shrinking.costs import model_costs
from random_data import random_variables
from zoo import EXAMPLE_SHAPE, ZOO

SOME = ("cifar_resnet",)


def parameters(variables):
    flat = flatten_dict(variables, sep="/")
    return sum(np.size(v) for k, v in flat.items() if not k.startswith("offsets/"))


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in ZOO]
)
def test_costs_are_those_of_the_network_that_is_cut(name):
    model, x = ZOO[name](), jnp.ones((1, *EXAMPLE_SHAPE))
    variables = random_variables(model, x)
    groups = find_groups(model.apply, variables, x)
    costs = model_costs(model.apply, variables, x, groups)
    assert costs.multiply_adds(costs.whole) == multiply_adds(model.apply, variables, x)
    assert costs.parameters(costs.whole) == parameters(variables)
    rng = np.random.default_rng(0)
    done = 0
    while done < 2:
        widths = {n: int(rng.integers(1, w + 1)) for n, w in costs.whole.items()}
        keeps = {
            n: (rng.permutation(costs.whole[n]) < w, "drop") for n, w in widths.items()
        }
        try:
            small = compact_groups(model, variables, keeps, example=x)
        except InputError:  # the model's code takes another way
            continue
        done += 1
        after = small.apply, small.variables
        assert costs.multiply_adds(widths) == pytest.approx(multiply_adds(*after, x))
        assert costs.parameters(widths) == pytest.approx(parameters(small.variables))
