"""Random masks of whole networks: compact equals masked, on every image."""

import functools
from collections import Counter

import numpy as np
import pytest
from campaigns import Campaign
from drawn_networks import draw_network
from flax.traverse_util import flatten_dict, unflatten_dict
from zoo import ZOO

from jaxprune.compaction.proof import compare
from jaxprune.errors import InputError

MASKS = 25
# Networks of the long campaign, in parts that workers share.
DRAWN, PARTS = 1000, 20


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
        yield path, rng.permutation(entries)
        if pruning.fill.name != "drop":
            rows, bias = f"offsets/{name}/rows", f"params/{name}/bias"
            path = rows if rows in variables else bias
            yield path, rng.permutation(list(np.ndindex(variables[path].shape)))


@pytest.mark.parametrize("name", ZOO)
def test_an_error_in_any_groups_fold_is_found(name):
    """One entry is wrong by the largest in its array.

    A unit may be off on all images, or matter little; but whatever moves a logit by a
    hundredth of the largest is to be refused, and some entry of every group.
    """
    network, rng = campaign(name), np.random.default_rng(0)
    prunings, _ = network.draw_accepted()
    masked, bound = network.masked(prunings)
    variables, logits = network.compact(prunings)
    flat = flatten_dict(variables, sep="/")

    visible = 0.01 * np.abs(masked).max()

    def moved(path, entry):
        array = flat[path].copy()
        array[tuple(entry)] += np.abs(array).max()
        return logits(unflatten_dict({**flat, path: array}, sep="/"))

    def refused(wrong):
        try:
            compare(masked, wrong, bound)
        except InputError as error:
            assert "rounding" in str(error)
            return True
        return False

    for pruning in (p for p in prunings if not p.keep.all()):
        caught = 0
        for path, entries in folded_entries(prunings, pruning, flat, rng):
            for entry in entries[:10]:
                wrong = moved(path, entry)
                is_refused = refused(wrong)
                assert is_refused or np.abs(wrong - masked).max() <= visible, path
                caught += is_refused
        assert caught, pruning.flow.layer


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
