"""Channels under LayerNorm and RMSNorm: their sums leave out the terms of what goes."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from architectures import ARCHITECTURES
from halved import halved
from jaxprune._base.errors import InputError
from jaxprune.fills.masked import make_pruning
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.graph.logits import with_log_probabilities
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.shrink import analyse
from masked import zeroed
from random_data import random_split, random_variables
from selected import quick
from zoo import EXAMPLE_SHAPE, ZOO

IMAGES = random_split(n=24, shape=EXAMPLE_SHAPE).images.astype(np.float32) / 255
STREAM = {"vit": "patches", "mixer": "stem", "convnext": "Conv_1"}


def network(name):
    if name in ZOO:
        model = ZOO[name]()
        variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
        return jaxprune.from_linen(model, variables, IMAGES[:2]).with_streams()
    return ARCHITECTURES[name].network().with_streams()


def half(group):
    return np.arange(group.units) % 2 == 0


def without_terms(keep):
    """LayerNorm of as many channels as `keep` has, that adds up those it keeps."""

    def interceptor(run, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.LayerNorm) or args[0].shape[-1] != len(keep):
            return run(*args, **kwargs)
        (x,), count = args, np.float32(len(keep))
        mean = x[..., keep].sum(-1, keepdims=True) / count
        square = (x[..., keep] ** 2).sum(-1, keepdims=True) / count
        own = module.variables["params"]
        scaled = (x - mean) / jnp.sqrt(square - mean**2 + module.epsilon)
        return scaled * own["scale"] + own["bias"]

    return nn.intercept_methods(interceptor)


@pytest.mark.parametrize("name", quick(STREAM, ("mixer",)))
def test_a_stream_is_cut_as_if_its_terms_were_left_out(name):
    """The model's own code, its norms overwritten, zeros where its kernels read."""
    whole = network(name)
    group = whole.groups.groups[STREAM[name]]
    assert group.units in (8, 16) and group.sums
    keep = half(group)
    pruning = make_pruning(whole, group, keep, "drop")
    read = {whole.layers[consumer].leaf for consumer in group.consumers}
    zeros = zeroed(whole, [pruning], lambda path, axis: path in read)
    with without_terms(keep):
        expected = whole.function(zeros, whole.example)
    small = jaxprune.compact_groups(whole, {group.name: (keep, "drop")})
    # Sums of some dozens of products, divided by a root of others.
    np.testing.assert_allclose(small(whole.example), expected, atol=2e-5)


def test_what_sums_add_up_for_the_mean_are_the_terms_means():
    whole = network("convnext")
    groups = whole.groups.groups.values()
    fills = jaxprune.mean_fills(whole, IMAGES, groups)
    group, keep = whole.groups.groups["Conv_0"], half(whole.groups.groups["Conv_0"])
    fill = fills["Conv_0"]
    first, second = sorted(group.sums)[:2]  # of the first norm: x, and its square
    layer = whole.layers["Conv_0"]
    (x,) = whole.evaluate(IMAGES, want=[layer.output])
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(fill.means[first], x.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(fill.means[second], (x**2).mean((0, 1, 2)), atol=1e-5)
    small = jaxprune.compact_groups(whole, {"Conv_0": (keep, fill)})
    offset = small.arrays[f"offsets/{first}/rows"]
    np.testing.assert_allclose(offset, [[x.mean((0, 1, 2))[~keep].sum()]], atol=1e-5)
    assert small.proof.bound_used <= 1


@pytest.mark.parametrize("fill", quick(("drop", "mean", "linear"), ("mean",)))
def test_streams_are_cut_again_saved_and_read(fill, tmp_path):
    whole = network("convnext")
    for _ in range(2):
        groups = whole.groups.groups
        fills = dict.fromkeys(groups, fill)
        if fill != "drop":
            fit = jaxprune.mean_fills if fill == "mean" else jaxprune.linear_fills
            fills = fit(whole, IMAGES, groups.values())
        keeps = {name: (half(group), fills[name]) for name, group in groups.items()}
        small = jaxprune.compact_groups(whole, keeps)
        whole = small.network
    assert small.arrays["params/Conv_0/kernel"].shape[-1] == 2
    small.save(tmp_path / "a")
    for model in (None, ZOO["convnext"]()):
        loaded = jaxprune.load_compact(tmp_path / "a", model)
        np.testing.assert_allclose(loaded(IMAGES[:2]), small(IMAGES[:2]), atol=1e-5)
    with pytest.raises(InputError, match="own code computes something else"):
        small.apply  # noqa: B018


@pytest.mark.slow
def test_a_budget_cuts_streams_too():
    whole = network("convnext")
    analysis = analyse(whole, images=jnp.asarray(IMAGES))
    assert {"Conv_0", "Conv_1"} <= set(analysis.curves)
    small = analysis.shrink(Budget(speedup=2.0))
    assert small.proof.bound_used <= 1 and np.isfinite(small(IMAGES[:2])).all()


def test_streams_are_asked_for_of_a_smaller_network():
    whole = ARCHITECTURES["mixer"].network()
    small = halved(whole, whole.example)
    assert "stem" in small.network.groups.whole
    again = jaxprune.compact_groups(
        small.network.with_streams(), {"stem": (np.arange(8) > 2, "drop")}
    )
    assert again.arrays["params/stem/kernel"].shape[-1] == 5
    assert again.proof.bound_used <= 1


def test_copies_and_other_forms_of_a_network_keep_its_streams():
    whole = network("mixer")
    names = whole.groups.groups.keys()
    assert names > ARCHITECTURES["mixer"].network().groups.groups.keys()
    task = jaxprune.imitation(output=lambda logits: logits[:, :2])
    for other in (
        copy.copy(whole), with_fast_convolutions(whole), task.applied(whole),
        with_log_probabilities(whole),
    ):  # fmt: skip
        assert other.groups.groups.keys() == names


def test_a_layer_alone_is_refused_and_streams_are_asked_for():
    whole = network("convnext")
    with pytest.raises(InputError, match="adds them up: prune its groups"):
        jaxprune.compact(whole, "Conv_0", np.arange(8) > 3)
    plain = jaxprune.Network(whole.function, whole.params, whole.example)
    assert "Conv_0" in plain.groups.whole and "Conv_0" not in plain.groups.groups
    again = jax.tree.leaves(whole.with_params(whole.params).groups.whole)
    assert again == ["they are the network's output"]
