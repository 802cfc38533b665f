"""Which channels go together, in networks as people write them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxprune._base.errors import InputError
from jaxprune.adapters.queries import find_groups
from jaxprune.compaction.compact import compact_groups
from random_data import random_variables
from zoo import EXAMPLE_SHAPE, ZOO


@functools.cache
def groups_of(name):
    return find(ZOO[name]())


def find(model, shape=EXAMPLE_SHAPE):
    x = jnp.zeros((1, *shape))
    return find_groups(model.apply, random_variables(model, x), x)


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_is_in_one_group_or_left_whole_with_a_reason(name):
    found = groups_of(name)
    model, x = ZOO[name](), jnp.zeros((1, *EXAMPLE_SHAPE))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    with_kernel = {
        "/".join(key.key for key in path[:-1])
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key == "kernel"
    }
    produced = [p for g in found.groups.values() for p in g.producers]
    assert sorted([*produced, *found.whole]) == sorted(with_kernel)
    assert all(found.whole.values())
    for group in found.groups.values():
        for units in (*group.producers.values(), *group.consumers.values()):
            held = np.unique(units[units >= 0])
            if name != "shufflenet_v2":  # a part of the units goes each way
                np.testing.assert_array_equal(held, np.arange(group.units))


def test_only_the_output_is_whole_where_nothing_else_must_be():
    fixed = {name: set(groups_of(name).whole) for name in ZOO}
    expected = {"squeezenet": {"classifier"}, "efficientnet": {"head"}}
    for name in set(ZOO) - {"convnext"}:
        (last,) = fixed[name]
        assert fixed[name] == expected.get(name, {last}) and "Conv" not in last, name


def test_a_residual_sum_ties_what_meets_in_it():
    found = groups_of("resnet_v1").groups
    assert list(found["conv_init"].producers) == ["conv_init", "BasicBlock_0/Conv_1"]
    assert list(found["conv_init"].consumers) == [
        "BasicBlock_0/Conv_0",
        "BasicBlock_1/Conv_0",
        "BasicBlock_1/conv_proj",
    ]


def test_a_concatenation_ties_nothing():
    found = groups_of("densenet").groups
    owner = found["DenseLayer_0/Conv_1"].consumers["Conv_1"]
    np.testing.assert_array_equal(owner, [-1] * 16 + [*range(8)] + [-1] * 8)


def test_groups_of_a_norm_and_of_a_convolution_go_as_a_whole():
    norm = groups_of("resnet_groupnorm").groups["conv_init"]
    np.testing.assert_array_equal(norm.producers["conv_init"], [0, 0, 1, 1, 2, 2, 3, 3])
    conv = groups_of("resnext").groups["BottleneckBlock_0/Conv_0"]
    for layer in ("BottleneckBlock_0/Conv_0", "BottleneckBlock_0/Conv_1"):
        np.testing.assert_array_equal(conv.producers[layer], np.arange(8) // 2)


def test_a_gate_and_a_depthwise_convolution_follow():
    group = groups_of("efficientnet").groups["block1/expand/Conv_0"]
    assert list(group.producers) == [
        "block1/expand/Conv_0",
        "block1/depthwise/Conv_0",
        "block1/se/expand",
    ]
    assert ("params/block1/depthwise/BatchNorm_0/scale", 0) in group.leaves


def test_what_cannot_be_cut_names_the_operation():
    whole = groups_of("convnext").whole
    assert "'reduce_sum' in ConvNeXt" in whole["Conv_0"]
    assert "LayerNorm_0" in whole["Conv_0"] and "(zoo.py:" in whole["Conv_0"]


def test_a_shuffle_moves_channels_and_ties_none():
    """Half of a unit's output goes on in the next one, in every second place."""
    found = groups_of("shufflenet_v2").groups["ShuffleUnit_1/ConvNorm_2/Conv_0"]
    assert [*found.producers] == [found.name] and found.units == 8
    owner = found.consumers["ShuffleUnit_2/ConvNorm_0/Conv_0"]
    np.testing.assert_array_equal(owner, [-1, 4, -1, 5, -1, 6, -1, 7])
    owner = found.consumers["ConvNorm_1/Conv_0"]
    np.testing.assert_array_equal(owner[2::4], range(4))
    assert (np.delete(owner, np.arange(2, 16, 4)) == -1).all()


def test_a_group_is_found_by_any_of_its_layers():
    found = groups_of("resnet_v1")
    assert found.find("BasicBlock_0/Conv_1") is found.groups["conv_init"]
    with pytest.raises(InputError, match="the network's output"):
        found.find("Dense_0")
    with pytest.raises(InputError, match="unknown group 'conv_9'"):
        found.find("conv_9")


class Odd(nn.Module):
    """One way or another of using a convolution's channels."""

    how: str

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(4, (1, 1), name="conv")
        y = conv(x)
        if self.how == "twice":
            y = conv(y[..., :3])
        elif self.how == "half":
            y = y[..., :2]
        elif self.how == "place":
            y = nn.Conv(3, (1, 1), name="other")(y) * y[..., :1]
        elif self.how == "input":
            y = y + x[..., :1]
        elif self.how == "attention":
            y = jnp.einsum("nhwc,nhwd->ncd", y, y).reshape(len(y), -1)
            return nn.Dense(2)(y)
        elif self.how == "softmax":
            y = nn.softmax(y)
        return nn.Dense(2, name="out")(y.mean((1, 2)))


REASONS = {
    "twice": "'conv_general_dilated' in Odd/conv .* with the input or positions",
    "attention": "'reshape' in Odd .* joins them with another axis",
    "softmax": "'reduce_max' in Odd .* joins them",
}


@pytest.mark.parametrize("how", REASONS)
def test_what_is_left_whole(how):
    found = find(Odd(how), (2, 2, 3))
    assert not found.groups
    assert re.search(REASONS[how], found.whole["conv"])


def test_a_layer_that_reads_some_channels_and_one_value_of_the_input():
    half = find(Odd("half"), (2, 2, 3)).groups["conv"]
    np.testing.assert_array_equal(half.producers["conv"], [0, 1, -1, -1])
    assert find(Odd("input"), (2, 2, 3)).groups["conv"].units == 4


def test_a_channel_that_is_taken_by_its_position_stays():
    """The others can go: without it there would be nothing to multiply by."""
    model, x = Odd("place"), jnp.ones((1, 2, 2, 3))
    variables = random_variables(model, x)
    found = find_groups(model, variables, x).groups["conv"]
    np.testing.assert_array_equal(found.producers["conv"], [-1, 0, 1, 2])
    keep = np.arange(3) == 1
    small = compact_groups(model, variables, {"conv": (keep, "drop")}, example=x)
    assert small.arrays["params/conv/kernel"].shape[-1] == 2
    assert small.arrays["params/other/kernel"].shape[-2] == 2
