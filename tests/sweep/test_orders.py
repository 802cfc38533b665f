"""Several orders of one layer: compiled once, shared masks evaluated once."""

import numpy as np
import pytest

import consumers
import jaxprune
from jaxprune.sweep import layer, strategy

KS = [0, 2, 3, 5]


def orders(p, seed=0):
    """The first three agree on what is pruned at K = 2; the last is the second."""
    rng = np.random.default_rng(seed)
    first = np.arange(p, dtype=float)
    second = first.copy()
    second[:2] = 1, 0
    second[2:] = rng.permutation(p - 2) + 2
    return {"one": first, "two": second, "three": rng.random(p), "same": second * 2}


@pytest.mark.parametrize("fill", ["zero", "linear"])
@pytest.mark.parametrize("way", ["RunningSum", "EveryPair", "ChangedPairs"])
def test_as_one_by_one_and_each_mask_once(monkeypatch, fill, way):
    if (fill, way) == ("linear", "ChangedPairs"):
        pytest.skip("changed pairs are for constants")
    _, apply, variables, split = consumers.read("same")
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return apply(*arguments, **options)

    if way != "RunningSum":
        monkeypatch.setattr(strategy, "find_consumer", lambda *a: None)
    given = fill
    if fill == "linear":
        given = jaxprune.linear_fill(apply, variables, split.images, layer="first")
    tapped = jaxprune.tap_layer(counted, variables, split, layer="first", batch_size=8)
    scores = orders(tapped.channels)
    options = {"fill": given, "ks": KS, "every_pair": way == "EveryPair"}
    traced, found = [], {}
    for name, result in layer.sweep_orders(tapped, scores, **options):
        found[name] = result
        traced.append(len(calls))
    # The network is traced for the first order alone.
    assert len(set(traced)) == 1
    for name, result in found.items():
        assert result.about["evaluation"] == way
        alone = jaxprune.sweep_layer(tapped, scores[name], **options)
        np.testing.assert_array_equal(result.predictions, alone.predictions)
        # The same sums, but of other pairs at once.
        np.testing.assert_allclose(result.cross_entropy, alone.cross_entropy, rtol=1e-5)
        np.testing.assert_array_equal(result.order, alone.order)
        assert result.scores is scores[name] and result.ks == tuple(KS)
    assert len({r.predictions.tobytes() for r in found.values()}) == 3
    images = len(split)
    assert found["same"].about["pairs_evaluated"] == 0
    if way == "EveryPair":
        assert [r.about["pairs_evaluated"] for r in found.values()] == [
            4 * images, 2 * images, 3 * images, 0
        ]  # fmt: skip
    assert all(r.about["pairs"] == 4 * images for r in found.values())


def test_bad_input_before_anything_runs():
    _, apply, variables, split = consumers.read("same")
    tapped = jaxprune.tap_layer(apply, variables, split, layer="first", batch_size=8)
    with pytest.raises(jaxprune.InputError, match="one for each channel"):
        jaxprune.sweep_orders(tapped, {"good": np.zeros(tapped.channels),
                                       "bad": np.zeros(2)})  # fmt: skip
