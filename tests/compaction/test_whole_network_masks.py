"""Random masks of whole networks: compact equals masked, on every image."""

import functools
import itertools
from collections import Counter

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from campaigns import Campaign
from drawn_networks import draw_network
from jaxprune.compaction.proof import compare
from jaxprune.errors import InputError
from zoo import ZOO

MASKS = 25
# Networks of the long campaign, in parts that workers share.
DRAWN, PARTS = 1000, 20
# Between them: a flatten, sums, GroupNorm, grouped and depthwise convolutions, gates.
SOME = ("vgg_plain", "resnet_groupnorm", "resnext", "senet_1x1", "mobilenet_v2")


@functools.cache
def campaign(name):
    return Campaign(ZOO[name]())


@pytest.mark.parametrize("name", ZOO)
def test_random_masks(name):
    proofs = [campaign(name).draw_accepted()[1] for _ in range(MASKS)]
    assert sum(proof.different_predictions for proof in proofs) == 0


def folded_entries(prunings, pruning, variables, rng):
    """Of each reader of a group, entries of what the fold has written, shuffled.

    The kernel, in the rows of channels that are kept, and what constants send: offsets
    where there are any, or the bias.
    """
    for name, owner in pruning.flow.readers.items():
        others = [p for p in prunings if name in p.flow.readers]
        keep = np.all([p.kept_features(p.flow.readers[name]) for p in others], axis=0)
        own = np.flatnonzero((owner >= 0)[keep])
        path = f"params/{name}/kernel"
        entries = [i for i in np.ndindex(variables[path].shape) if i[-2] in own]
        yield name, "kernel", path, rng.permutation(entries)
        if pruning.fill.name != "drop" and not pruning.keep.all():
            rows, bias = f"offsets/{name}/rows", f"params/{name}/bias"
            path = rows if rows in variables else bias
            entries = list(np.ndindex(variables[path].shape))
            yield name, "constants", path, rng.permutation(entries)


def plant(network, missing, share, rng):
    """Finds errors in one drawn network; takes what they are in from `missing`."""
    prunings, _ = network.draw_accepted()
    masked, bound = network.masked(prunings)
    variables, logits = network.compact(prunings)
    flat = flatten_dict(variables, sep="/")

    def moved(path, entry, share):
        array = flat[path].copy()
        array[tuple(entry)] += share * np.abs(array).max()
        return logits(unflatten_dict({**flat, path: array}, sep="/"))

    def matters(path, entry, share):
        far = (
            np.abs(moved(path, entry, s) - masked) > 100 * bound
            for s in (-share, share)
        )
        return all(logit.any() for logit in far)

    for pruning in prunings:
        for reader, what, path, entries in folded_entries(prunings, pruning, flat, rng):
            key = pruning.flow.layer, reader, what
            if key not in missing:
                continue
            found = (e for e in entries[:10] if matters(path, e, share))
            for entry in itertools.islice(found, 1):
                with pytest.raises(InputError, match="rounding"):
                    compare(masked, moved(path, entry, share / 10), bound)
                missing.remove(key)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in SOME else pytest.mark.slow) for n in ZOO],
)
def test_an_error_in_any_groups_fold_is_found(name):
    """In each reader of every group one entry, wrong by a tenth of the array's largest.

    It is one that matters: a unit that is off on all images, behind a ReLU, is moved by
    an error of one sign at the most. Where there is none, other masks are drawn, and
    then errors ten times as large: what a gate makes of a constant may hardly count.
    """
    network, rng = campaign(name), np.random.default_rng(0)
    missing = {
        (group, reader, what)
        for group, flow in network.groups.items()
        for reader in flow.readers
        for what in ("kernel", "constants")
    }
    for share in (1,) * 20 + (10,) * 20:
        plant(network, missing, share, rng)
        if not missing:
            break
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_drawn_networks(part, record_property):
    """Each has a mask of its own, and fills; a refused one has another drawn."""
    kinds, refused, used = Counter(), 0, []
    for seed in range(part * DRAWN // PARTS, (part + 1) * DRAWN // PARTS):
        names, model = draw_network(np.random.default_rng(seed))
        kinds.update(names)
        network = Campaign(model, seed)
        assert network.groups, (seed, names)
        try:
            _, proof = network.draw_accepted()
        except Exception as error:
            raise AssertionError(f"network {seed}: {names}") from error
        assert proof.different_predictions == 0, (seed, names)
        used.append(proof.bound_used)
        refused += network.refused
    record_property(
        "totals",
        f"{len(used)} networks and masks, 0 failures, {refused} masks drawn again, "
        f"{100 * max(used):.1f} % of the bound at most; {dict(kinds)}",
    )
