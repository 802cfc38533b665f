import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxprune._base.errors import InputError
from jaxprune.ranking import criteria
from jaxprune.ranking.order import prefix_masks, pruning_order

scores_strategy = arrays(
    np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 0.5, 1.0, 2.5])
)


def test_mean_by_hand():
    maps = np.array([[[[1.0, -2.0]], [[3.0, -4.0]]], [[[5.0, 0.0]], [[7.0, 2.0]]]])
    np.testing.assert_array_equal(criteria.mean(maps), [4.0, -1.0])
    np.testing.assert_array_equal(criteria.abs_mean(maps), [4.0, 1.0])


def test_mean_map_gives_the_scores_of_all_maps():
    maps = np.random.default_rng(0).normal(size=(7, 3, 2, 5))
    for criterion in (criteria.mean, criteria.abs_mean):
        np.testing.assert_allclose(criterion(maps), criterion(maps.mean(0)), rtol=1e-12)


def test_planted_channels_rank_where_they_must():
    rng = np.random.default_rng(1)
    maps = rng.uniform(0.4, 0.6, (50, 2, 2, 6))
    maps[..., 4] = 0.0  # dead
    maps[..., 1] = 0.3  # constant, below the others
    maps[..., 2] += 5.0  # strong
    order = pruning_order(criteria.mean(maps))
    assert order[0] == 4 and order[1] == 1 and order[-1] == 2


def test_strong_negative_channel_is_pruned_first_by_mean_and_last_by_abs_mean():
    maps = np.stack([np.full((4, 2, 2), v) for v in (-9.0, 1.0, 2.0)], axis=-1)
    assert pruning_order(criteria.mean(maps)).tolist() == [0, 1, 2]
    assert pruning_order(criteria.abs_mean(maps)).tolist() == [1, 2, 0]


def test_equal_scores_keep_the_order_of_channels():
    assert pruning_order(np.zeros(40)).tolist() == list(range(40))


@given(scores_strategy, st.randoms(use_true_random=False))
def test_permuting_channels_permutes_ranks(scores, random):
    distinct = scores + np.arange(len(scores)) * 1e-3
    permutation = np.array(random.sample(range(len(scores)), len(scores)))
    order = pruning_order(distinct)
    permuted = pruning_order(distinct[permutation])
    np.testing.assert_array_equal(permutation[permuted], order)


@given(scores_strategy)
def test_masks_nest_and_count(scores):
    order = pruning_order(scores)
    masks = prefix_masks(order)
    p = len(scores)
    assert masks.shape == (p, p)
    np.testing.assert_array_equal(masks.sum(1), p - np.arange(p))
    assert masks[0].all()
    for k in range(1, p):
        removed = np.flatnonzero(masks[k - 1] & ~masks[k])
        assert removed.tolist() == [order[k - 1]]
        assert not (masks[k] & ~masks[k - 1]).any()


def test_masks_of_chosen_ks():
    order = np.array([2, 0, 1])
    np.testing.assert_array_equal(
        prefix_masks(order, [0, 2]), prefix_masks(order)[[0, 2]]
    )


@pytest.mark.parametrize(
    ("ks", "message"),
    [([], "empty"), ([0, 3], "0 .. 2"), ([-1, 0], "0 .. 2"), ([1, 1], "ascending"),
     ([2, 1], "ascending")],
)  # fmt: skip
def test_bad_ks(ks, message):
    with pytest.raises(InputError, match=message):
        prefix_masks(np.array([0, 1, 2]), ks)


def test_scores_must_be_finite():
    with pytest.raises(InputError, match=r"scores must be finite, got nan at \[1\]"):
        pruning_order(np.array([0.0, np.nan]))
