"""Coupled channels of networks as people write them: cut, and equal to the masked."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_split, random_variables
from zoo import EXAMPLE_SHAPE, ZOO

from jaxprune.channels import taps
from jaxprune.channels.calibration import linear_fills
from jaxprune.channels.groups import find_groups
from jaxprune.compaction import compact
from jaxprune.compaction.cut import cut_variables
from jaxprune.compaction.network import load_compact
from jaxprune.errors import InputError


@functools.cache
def network(name):
    """Model, variables, images, groups."""
    model = ZOO[name]()
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    images = random_split(n=24, shape=EXAMPLE_SHAPE).images.astype(np.float32) / 255
    return model, variables, images, find_groups(model.apply, variables, images)


def random_masks(groups, rng):
    """A mask for about half of the groups, at least one unit kept and one pruned."""
    names = [name for name, g in groups.groups.items() if g.channels > 1]
    chosen = [name for name in names if rng.random() < 0.5] or names[:1]
    masks = {}
    for name in chosen:
        units = groups.groups[name].channels
        masks[name] = rng.permutation(units) < rng.integers(1, units)
    return masks


@functools.cache
def fills(name):
    model, variables, images, groups = network(name)
    return linear_fills(model.apply, variables, images, groups.groups.values())


def cut(name, masks, fill):
    model, variables, images, _ = network(name)
    how = {
        g: (keep, fills(name)[g] if fill == "linear" else fill)
        for g, keep in masks.items()
    }
    return compact.compact_groups(model, variables, how, example=images[:2])


def check_random(name, count, seed):
    """Draws masks until `count` networks were cut; says how many."""
    rng = np.random.default_rng(seed)
    done = 0
    while done < count:
        masks = random_masks(network(name)[3], rng)
        try:
            small = cut(name, masks, ("linear", "drop")[done % 2])
        except InputError as error:  # a projection that is not called any more
            assert "takes another way" in str(error), error
            continue
        done += 1
        assert small.proof.different_predictions == 0
        for group, keep in masks.items():
            assert small.layers[group].kept == tuple(np.flatnonzero(keep))


# Between them: BatchNorm, grouped and depthwise convolutions, gates, sums, a parameter
# outside of layers.
SOME = ("regnet", "convnext")


@pytest.mark.parametrize("name", SOME)
def test_compact_equals_masked(name):
    check_random(name, 1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_compact_equals_masked_for_random_masks(name):
    check_random(name, 4, seed=1)


@pytest.mark.parametrize("name", ["resnet_groupnorm"])
def test_an_error_in_any_groups_fold_is_found(name, monkeypatch):
    """The kernel of one reader of one group, moved by a thousandth of its size."""
    groups = network(name)[3].groups
    group = list(groups)[1]
    (reader, *_) = groups[group].readers

    def wrong(apply, variables, prunings, x):
        small = cut_variables(apply, variables, prunings, x)
        taps.at_path(small["params"], reader)["kernel"] *= 1.001
        return small

    monkeypatch.setattr(compact, "cut_variables", wrong)
    keep = np.arange(groups[group].channels) > 0
    with pytest.raises(InputError, match="rounding"):
        cut(name, {group: keep}, "linear")


def test_a_saved_network_is_read_again(tmp_path):
    model, _, images, groups = network("resnet_groupnorm")
    masks = {g: np.arange(f.channels) != 1 for g, f in groups.groups.items()}
    small = cut("resnet_groupnorm", masks, "drop")
    small.save(tmp_path / "small")
    again = load_compact(tmp_path / "small", model)
    np.testing.assert_array_equal(again(images[:2]), small(images[:2]))


def test_a_projection_that_would_vanish_is_refused():
    """8 -> 32 channels, stride 1: cut to equal widths, the code adds without it."""
    groups = network("resnet_v15")[3].groups
    stem, block = "conv_init", "BottleneckBlock_0/Conv_2"
    assert groups[stem].channels < groups[block].channels
    keep = np.arange(groups[block].channels) < groups[stem].channels
    with pytest.raises(InputError, match="'BottleneckBlock_0/conv_proj' is called in"):
        cut("resnet_v15", {block: keep}, "drop")


def test_other_fills_are_refused():
    with pytest.raises(InputError, match="takes the fill 'drop'"):
        cut("vgg", {"Conv_0": np.arange(8) > 0}, "zero")
