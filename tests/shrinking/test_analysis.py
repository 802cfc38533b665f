"""From images to the smaller network: any linen model, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.costs.multiply_adds import multiply_adds
from jaxprune.shrinking import shrink as module
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.shrink import analyse
from random_data import random_split, random_variables
from selected import quick
from zoo import EXAMPLE_SHAPE, ZOO

SOME = ("vgg_plain",)


def network(name="vgg_plain"):
    model = ZOO[name]()
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    images = random_split(n=48, shape=EXAMPLE_SHAPE).images.astype(np.float32) / 255
    return model, variables, jnp.asarray(images)


@pytest.mark.parametrize("name", quick(ZOO, SOME))
def test_the_budget_is_kept_and_the_network_proved(name):
    model, variables, images = network(name)
    analysis = analyse(model, variables, images)
    before = multiply_adds(analysis.whole)
    for budget in (Budget(speedup=1.4), Budget(size=0.6)):
        small = analysis.shrink(budget)
        assert small.proof.different_predictions == 0
        if budget.speedup:
            assert before / multiply_adds(small.network) >= 1.4
        else:
            candidates = analysis.candidates(budget)
            parameters = analysis.costs.parameters
            whole = parameters(analysis.costs.whole)
            for widths in candidates:
                assert parameters({**analysis.costs.whole, **widths}) <= 0.6 * whole
            kept = {name: len(layer.kept) for name, layer in small.layers.items()}
            assert any({**widths, **kept} == widths for widths in candidates)


def test_known_curves_are_not_measured_again_and_groups_can_stay_whole():
    model, variables, images = network()
    measured = []
    analysis = analyse(
        model, variables, images, on_curve=lambda name, _: measured.append(name)
    )
    assert measured == list(analysis.curves)
    first, *rest = measured
    again = analyse(
        model, variables, images, known=analysis.curves, keep_whole=[first],
        on_curve=lambda name, _: measured.append(name),
    )  # fmt: skip
    assert measured == [first, *rest] and list(again.curves) == rest
    assert first not in again.shrink(Budget(speedup=1.3)).layers
    # What is timed beside the whole network; four times is out of reach with it whole.
    ((narrow, widths),) = again._narrower()
    small = narrow.origin
    assert widths[first] == again.costs.whole[first] and first not in small.layers
    assert all(len(small.layers[name].kept) == widths[name] for name in rest)
    multiply_adds = again.costs.multiply_adds
    assert multiply_adds(again.costs.whole) >= 2 * multiply_adds(widths)


def test_widths_are_found_on_some_of_many_images_and_layers_fitted_on_all(monkeypatch):
    model, variables, images = network()
    monkeypatch.setattr(module, "_MOST", 20)
    few, many = (analyse(model, variables, images[:n]) for n in (20, 48))
    assert few.curves == many.curves
    (widths,) = few.candidates(Budget(speedup=1.3))
    cut, other = (analysis.cut(widths).arrays for analysis in (few, many))
    pairs = zip(jax.tree.leaves(cut), jax.tree.leaves(other), strict=True)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in pairs)


@pytest.fixture(scope="module")
def residual():
    model, variables, images = network("resnet_v1")
    return analyse(model, variables, images)


@pytest.mark.slow
def test_what_meets_in_sums_is_weighed_and_the_best_is_measured(residual):
    costs, groups = residual.costs, residual.groups.groups
    found = residual.candidates(Budget(speedup=1.6))
    in_sums = [n for n in residual.curves if len(groups[n].producers) > 1]
    kept = [sum(widths[name] for name in in_sums) for widths in found]
    assert 1 < len(found) <= 3 and kept == sorted(kept) and kept[0] < kept[-1]
    for widths in found:
        left = costs.multiply_adds({**costs.whole, **widths})
        assert costs.multiply_adds(costs.whole) >= 1.6 * left
    least = dict.fromkeys(residual.curves, 1)
    two = [least, found[-1]]
    losses = []
    function, images = jax.jit(residual.whole.function), residual.images
    p = jax.nn.log_softmax(function(residual.whole.params, images))
    for widths in two:
        q = jax.nn.log_softmax(function(residual.cut(widths).arrays, images))
        losses.append(float((jnp.exp(p) * (p - q)).sum()))
    assert losses[1] < losses[0]
    layers = []
    widths, cut = residual.best(two, on_layer=layers.append)
    assert widths == found[-1] and len(layers) == 3 * residual.fitted_layers
    assert all(len(cut.small.layers[n].kept) <= widths[n] for n in cut.small.layers)
    assert residual.best(two[:1])[0] == least


def test_shrink_is_all_of_it():
    model, variables, images = network()
    small = jaxprune.shrink(model, variables, images, size=0.5)
    assert isinstance(small, jaxprune.Compact) and small.layers
    assert small(images).shape == (48, 10) or small(images).ndim == 2


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "got none"),
        ({"speedup": 2, "size": 0.5}, "got speedup and size"),
        ({"speedup": 0.5}, "speedup is at least 1"),
        ({"speedup": float("nan")}, "speedup must be a number"),
        ({"latency": float("inf")}, "latency is at least 1"),
        ({"size": 0}, "share of the parameters"),
        ({"size": 1.5}, "share of the parameters"),
    ],
)
def test_bad_budgets(budget, message):
    with pytest.raises(InputError, match=message):
        Budget(**budget)


def test_a_budget_out_of_reach_names_the_least():
    model, variables, images = network()
    with pytest.raises(InputError, match="least possible is"):
        jaxprune.shrink(model, variables, images, size=1e-6)


def test_too_few_images_and_unknown_groups():
    model, variables, images = network()
    with pytest.raises(InputError, match="N at least 16, got"):
        analyse(model, variables, images[:5])
    with pytest.raises(InputError, match="unknown group"):
        analyse(model, variables, images, keep_whole=["conv9"])


@pytest.mark.parametrize("budget", [{"speedup": 1e9}, {"size": 1e-9}])
def test_what_no_width_reaches_is_refused_before_anything_is_measured(
    budget, monkeypatch
):
    """On a large network, measuring takes minutes."""
    monkeypatch.setattr(module, "halves", lambda *a, **k: pytest.fail("fitted"))
    model, variables, images = network()
    with pytest.raises(InputError, match="least possible is 0"):
        jaxprune.shrink(model, variables, images, **budget)
