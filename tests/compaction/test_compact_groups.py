"""Coupled channels of networks as people write them: cut, and equal to the masked."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from halved import halved
from jaxprune._base.errors import InputError
from jaxprune.adapters.queries import find_groups
from jaxprune.compaction import compact
from jaxprune.compaction.load import load_compact
from jaxprune.fills.calibration import linear_fills, mean_fills
from jaxprune.fills.masked import make_pruning
from jaxprune.graph.network import Network
from masked import given_to, masked_logits, network_of
from random_data import random_split, random_variables
from zoo import CLASSES, EXAMPLE_SHAPE, ZOO


@functools.cache
def network(name):
    """Model, variables, images, groups."""
    model = ZOO[name]()
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    images = random_split(n=24, shape=EXAMPLE_SHAPE).images.astype(np.float32) / 255
    return model, variables, images, find_groups(model.apply, variables, images)


@functools.cache
def fills(name, kind):
    model, variables, images, groups = network(name)
    fit = linear_fills if kind == "linear" else mean_fills
    return fit(model.apply, variables, images, groups.groups.values())


def cut(name, masks, fill):
    model, variables, images, _ = network(name)
    how = {
        g: (keep, fills(name, fill)[g] if fill in ("linear", "mean") else fill)
        for g, keep in masks.items()
    }
    return compact.compact_groups(model, variables, how, example=images[:2])


# Between them: BatchNorm, grouped and depthwise convolutions, gates, sums, a parameter
# outside of layers, a flatten. Random masks are in test_whole_network_masks.py.
@pytest.mark.parametrize(
    ("name", "fill"),
    [
        pytest.param("regnet", "mean", marks=pytest.mark.slow),
        ("convnext", "linear"),
        ("vgg_plain", "mean"),
    ],
)
def test_compact_equals_masked(name, fill):
    rng = np.random.default_rng(0)
    masks = {
        g: rng.permutation(group.units) < rng.integers(1, group.units)
        for g, group in network(name)[3].groups.items()
        if group.units > 1
    }
    small = cut(name, masks, fill)
    assert small.proof.different_predictions == 0
    for group, keep in masks.items():
        assert small.layers[group].kept == tuple(np.flatnonzero(keep))
        assert small.layers[group].fill == fill


def test_means_are_those_of_what_consumers_are_given():
    """By a consumer of its own for each position behind a flatten."""
    model, variables, images, _ = network("vgg_plain")
    given = given_to(model.apply, variables, images, ["conv2", "fc1"])
    for group, consumer in (("conv1", "conv2"), ("conv3", "fc1")):
        x = np.asarray(given[consumer], np.float64)
        expected = x.reshape(-1, x.shape[-1]).mean(0)
        found = fills("vgg_plain", "mean")[group].means[consumer]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # A concatenation: what others send the consumer has no part in it.
    densenet = fills("densenet", "mean")["DenseLayer_0/Conv_1"].means["Conv_1"]
    assert (densenet[:16] == 0).all() and (densenet[24:] == 0).all()
    assert (densenet[16:24] > 0).all()


def test_a_mean_at_the_consumers_is_what_they_are_given():
    """The masked network against kernels and biases that are written by hand."""
    model, variables, images, groups = network("vgg_plain")
    keep = np.arange(24) % 3 > 0
    fill = fills("vgg_plain", "mean")["fc1"]
    whole = network_of(model.apply, variables, images)
    pruning = make_pruning(whole, groups.groups["fc1"], keep, fill)
    masked = masked_logits(model.apply, variables, images, [pruning])
    dense = variables["params"]["fc2"]
    bias = dense["bias"] + fill.means["fc2"][~keep] @ dense["kernel"][~keep]
    written = {"bias": bias, "kernel": dense["kernel"] * keep[:, None]}
    edited = {"params": {**variables["params"], "fc2": written}}
    # Two sums of 24 products near 1.
    np.testing.assert_allclose(masked, model.apply(edited, images), atol=1e-5)


def test_means_of_another_network_are_refused():
    model, variables, images, _ = network("vgg_plain")
    fill = fills("vgg_plain", "mean")["conv3"]
    keep = np.arange(16) > 0
    short = replace(fill, means={"fc1": fill.means["fc1"][:9]})
    for wrong, match in (
        (short, "fitted on 9 input features of 'fc1', which has"),
        (replace(fill, means={"fc2": fill.means["fc1"]}), "does not read 'conv3'"),
    ):
        with pytest.raises(InputError, match=match):
            compact.compact_groups(
                model, variables, {"conv3": (keep, wrong)}, example=images[:1]
            )


def test_a_saved_network_is_read_again(tmp_path):
    model, _, images, groups = network("resnet_groupnorm")
    masks = {g: np.arange(f.units) != 1 for g, f in groups.groups.items()}
    small = cut("resnet_groupnorm", masks, "drop")
    small.save(tmp_path / "small")
    again = load_compact(tmp_path / "small", model)
    np.testing.assert_array_equal(again(images[:2]), small(images[:2]))
    np.testing.assert_allclose(
        again.apply(again.variables, images[:2]), small(images[:2]), atol=1e-5
    )


def written(variables, paths):
    """Variables with zeros in some channels of kernels' outputs or inputs."""
    flat = flatten_dict(jax.tree.map(np.copy, variables), sep="/")
    for path, (axis, gone) in paths.items():
        np.moveaxis(flat[path], axis, 0)[gone] = 0
    return unflatten_dict(flat, sep="/")


def test_a_projection_whose_code_compares_shapes_stays():
    """8 -> 32 channels, stride 1: at equal widths, the code would add without it."""
    model, variables, images, groups = network("resnet_v15")
    stem, block = "conv_init", "BottleneckBlock_0/Conv_2"
    assert groups.groups[stem].units < groups.groups[block].units
    keep = np.arange(groups.groups[block].units) < groups.groups[stem].units
    small = cut("resnet_v15", {block: keep}, "drop")
    assert small.arrays["params/BottleneckBlock_0/conv_proj/kernel"].shape[-1] == 8
    consumers = groups.groups[block].consumers
    zeroed = {f"params/{name}/kernel": (-2, ~keep) for name in consumers}
    expected = jax.jit(model.apply)(written(variables, zeroed), images[:2])
    np.testing.assert_allclose(small(images[:2]), expected, atol=1e-5)
    with pytest.raises(InputError, match="own code computes something else"):
        small.apply  # noqa: B018


def test_a_sum_that_would_arise_does_not():
    """12 -> 8 channels, stride 1: cut to equal widths, the code would add."""

    class Arising(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(12, (1, 1), name="stem")(x)
            y = nn.Conv(8, (3, 3), name="block")(nn.relu(x))
            x = x + y if x.shape == y.shape else y
            return nn.Dense(CLASSES)(x.mean((1, 2)))

    x = jnp.linspace(0, 1, 48).reshape(1, 4, 4, 3)
    model = Arising()
    variables = random_variables(model, x)
    keep = np.arange(12) < 8
    small = compact.compact_groups(
        model, variables, {"stem": (keep, "drop")}, example=x
    )
    zeroed = written(variables, {"params/block/kernel": (-2, ~keep)})
    np.testing.assert_allclose(small(x), model.apply(zeroed, x), atol=1e-5)


def test_a_layer_that_would_return_nothing_is_named():
    """A depthwise convolution behind a concatenation makes one group of both parts."""

    class Joined(nn.Module):
        @nn.compact
        def __call__(self, x):
            parts = [nn.Conv(2, (1, 1), name=f"part{i}")(x) for i in range(2)]
            x = jnp.concatenate(parts, axis=-1)
            x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
            return nn.Dense(CLASSES)(x.mean((1, 2)))

    x = jnp.ones((1, 4, 4, 3))
    how = {"part0": (np.arange(4) < 2, "drop")}
    with pytest.raises(InputError, match="'part1' would return nothing"):
        compact.compact_groups(Joined(), random_variables(Joined(), x), how, example=x)


def test_other_fills_are_refused():
    with pytest.raises(InputError, match="takes the fill 'drop'"):
        cut("vgg", {"Conv_0": np.arange(8) > 0}, "zero")


def test_a_compact_network_is_a_pytree():
    """Compiled, differentiated and mapped as any function of its arrays."""
    _, _, images, groups = network("vgg_plain")
    name = next(iter(groups.groups))
    keep = np.arange(groups.groups[name].units) % 2 == 0
    small = cut("vgg_plain", {name: keep}, "drop")
    x = jnp.asarray(images[:4])
    expected = small(x)
    assert len(jax.tree.leaves(small)) == len(small.arrays)
    np.testing.assert_allclose(jax.jit(small)(x), expected, atol=1e-6)
    count = 0

    @jax.jit
    def call(network, x):
        nonlocal count
        count += 1
        return network(x)

    again = jax.tree.map(jnp.asarray, small)
    for one in (small, again, jax.tree.map(lambda a: a * 1, again)):
        np.testing.assert_allclose(call(one, x), expected, atol=1e-6)
    assert count == 1 and again.proof is None and again.layers == small.layers
    loss = jax.grad(lambda network: (network(x) ** 2).sum())(again)
    assert type(loss) is type(small) and loss.arrays.keys() == small.arrays.keys()
    by_params = jax.grad(lambda arrays: (small.function(arrays, x) ** 2).sum())(
        again.arrays
    )
    jax.tree.map(np.testing.assert_allclose, loss.arrays, by_params)
    each = jax.vmap(lambda image: small(image[None])[0])(x)
    np.testing.assert_allclose(each, expected, atol=1e-5)
    assert len(repr(small)) < 500


@pytest.mark.parametrize("first", ["drop", "mean", "linear"])
@pytest.mark.parametrize("then", ["drop", "mean", "linear"])
def test_what_has_been_pruned_is_pruned_again(first, then):
    """The second layer has no bias: a map of its own is folded into again."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 10, 6)).astype(np.float32)
    shapes = {"a": (6, 8), "b": (8, 8), "out": (8, 3)}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(np.float32)}
        for name, shape in shapes.items()
    }
    params["a"]["bias"] = rng.normal(size=8).astype(np.float32)

    def function(params, x):
        x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
        return jax.nn.relu(x @ params["b"]["kernel"]).mean(1) @ params["out"]["kernel"]

    whole = Network(function, params, x)
    small = halved(halved(whole, x, first).network, x, then)
    assert small.arrays["b/kernel"].shape == (2, 2)
    assert small.proof.different_predictions == 0


@pytest.mark.parametrize("fill", ["mean", "linear"])
def test_a_kernel_that_is_computed_takes_what_an_own_one_does(fill):
    """Weight normalisation; the truth has the same kernel as a parameter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype(np.float32)
    shapes = {"a": (6, 8), "b": (8, 8), "scale": (8,), "out": (8, 3)}
    params = {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }

    def layers(params, kernel, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ kernel) @ params["out"]

    def function(params, x):
        length = jnp.sqrt(jnp.square(params["b"]).sum(0))
        return layers(params, params["b"] / length * params["scale"], x)

    wide = params["b"].astype(np.float64)
    kernel = wide / np.sqrt((wide**2).sum(0)) * params["scale"]
    own = params | {"b": kernel.astype(np.float32)}
    small = halved(Network(function, params, x), x, fill)
    expected = halved(Network(lambda p, x: layers(p, p["b"], x), own, x), x, fill)
    np.testing.assert_allclose(small(x), expected(x), rtol=1e-4)
    assert small.proof.bound_used <= 1
