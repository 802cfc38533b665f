"""Random masks of whole networks: compact equals masked, on every image."""

import functools
from collections import Counter

import numpy as np
import pytest

from campaigns import Campaign
from drawn_networks import draw_network
from jaxprune._base.errors import InputError
from selected import quick
from tally import FULL
from zoo import ZOO

MASKS = 5
# Networks of the long campaign, in parts that workers share.
DRAWN, PARTS = 1000 if FULL else 200, 20
# Between them: a flatten, sums, GroupNorm, grouped and depthwise convolutions, gates.
SOME = ("vgg_plain", "resnet_groupnorm", "resnext", "senet_1x1", "mobilenet_v2")
FEW = ("resnet_groupnorm", "senet_1x1", "mobilenet_v2")


@functools.cache
def campaign(name):
    return Campaign(ZOO[name]())


@pytest.mark.parametrize("name", quick(ZOO, SOME))
def test_random_masks(name):
    found = [campaign(name).prove(campaign(name).draw()) for _ in range(MASKS)]
    assert sum(proof.different_predictions for _, proof in found) == 0
    assert max(used for used, _ in found) <= 1


def folded(prunings, arrays):
    """What folds have written: a kernel that is folded, a map or a bias.

    By group, consumer and kind: the path, and the entries that the consumer's own are.
    """
    for pruning in prunings:
        if pruning.fill.name == "drop" or pruning.keep.all():
            continue
        for consumer in pruning.group.consumers:
            key = pruning.group.name, consumer
            if pruning.fill.name == "linear":
                yield (*key, "kernel"), f"params/{consumer}/kernel"
            for path in (f"offsets/{consumer}/rows", f"params/{consumer}/bias"):
                if path in arrays:  # neither where none of the pruned units is read
                    yield (*key, "constants"), path
                    break


@pytest.mark.parametrize(
    "name",
    quick(ZOO, FEW),
)
def test_an_error_in_any_groups_fold_is_found(name):
    """In each consumer of every group one entry, wrong by a thousandth of the largest.

    Where an input is 0 on all images, as behind a ReLU, the kernel's rows for it do not
    matter: then another entry is drawn, and other masks.
    """
    network, rng = campaign(name), np.random.default_rng(0)
    kinds = {True: ("kernel", "constants"), False: ("constants",)}
    missing = {
        (group.name, consumer, kind)
        for group in network.groups.values()
        for consumer in group.consumers
        for kind in kinds[bool(network.moments.get(group.name))]
        if group.units > 1
    }
    for _ in range(40):
        prunings = network.draw()
        masked = network.masked(prunings)
        arrays, _ = network.compact(prunings)
        assert network.used(prunings, masked, arrays) <= 1
        for key, path in folded(prunings, arrays):
            if key not in missing:
                continue
            array = arrays[path].copy()
            entry = np.unravel_index(rng.integers(array.size), array.shape)
            array[entry] += 1e-3 * np.abs(array).max()
            try:
                network.used(prunings, masked, {**arrays, path: array})
            except InputError as error:
                assert f"at '{key[1]}'" in str(error) and "rounding" in str(error)
                missing.remove(key)
        if not missing:
            break
    assert not missing


@pytest.mark.parametrize("name", quick(ZOO, ("mobilenet_v2",)))
def test_an_error_in_any_leaf_of_any_group_is_found(name):
    """One entry of what is left of it, wrong by a thousandth of the largest."""
    network, rng = campaign(name), np.random.default_rng(0)
    missing = {
        (group.name, path)
        for group in network.groups.values()
        for path, _ in group.leaves
        if group.units > 1
    }
    for _ in range(20):  # an entry may not matter, see above
        prunings = network.draw()
        masked = network.masked(prunings)
        arrays, _ = network.compact(prunings)
        for key in sorted(missing):
            array = arrays[key[1]].copy()
            entry = np.unravel_index(rng.integers(array.size), array.shape)
            array[entry] += 1e-3 * np.abs(array).max()
            try:
                network.used(prunings, masked, {**arrays, key[1]: array})
            except InputError:
                missing.remove(key)
        if not missing:
            break
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_drawn_networks(part, record_property):
    """Each has a mask of its own, and fills."""
    kinds, used = Counter(), []
    for seed in range(part * DRAWN // PARTS, (part + 1) * DRAWN // PARTS):
        names, model = draw_network(np.random.default_rng(seed))
        kinds.update(names)
        network = Campaign(model, seed)
        assert network.groups, (seed, names)
        try:
            share, proof = network.prove(network.draw())
        except Exception as error:
            raise AssertionError(f"network {seed}: {names}") from error
        assert proof.different_predictions == 0, (seed, names)
        used.append(share)
    record_property(
        "totals",
        f"{len(used)} networks and masks, 0 failures, {100 * max(used):.1f} % of the "
        f"bound at most; {dict(kinds)}",
    )
