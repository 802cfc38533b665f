"""Criteria on hand-computed arrays, and the sums that they go by."""

import numpy as np
import pytest

from jaxprune.ranking import criteria
from jaxprune.ranking.statistics import Activations, ConsumerInput, Gradients, Losses

VALUES = np.array([[0, 1, 4], [0, 1, 0], [3, 1, -4], [3, 1, 0]], np.float32)


def test_std_of_values():
    scores = criteria.std(Activations.of(VALUES))
    np.testing.assert_allclose(scores, [1.5, 0, np.sqrt(8)])
    assert scores[1] == 0


def test_sums_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = rng.normal(100, 1, (30, 3)).astype(np.float32)
    values[:, 1] = np.float32(0.1)  # constant, and not a binary fraction
    values[::4, 2] = 0
    whole = Activations.of(values)
    parts = Activations.of(values[:7]) + Activations.of(values[7:9])
    parts = parts + Activations.of(values[9:])
    assert parts.count == whole.count == 30
    assert parts.zeros.tolist() == whole.zeros.tolist() == [0, 0, 8]
    np.testing.assert_allclose(parts.mean, values.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        parts.variance, values.astype(np.float64).var(0), rtol=1e-12
    )
    assert whole.variance[1] == parts.variance[1] == 0


def test_values_have_positions():
    maps = np.arange(24, dtype=np.float32).reshape(2, 2, 3, 2)
    np.testing.assert_allclose(
        criteria.std(Activations.of(maps)), maps.astype(np.float64).std((0, 1, 2))
    )


def test_apoz_is_the_share_of_zeros():
    zeros = Activations.of(VALUES).zeros / 4
    np.testing.assert_array_equal(criteria.apoz(zeros), [0.5, 1, 0.5])


# Two taps, one input channel, three filters: (3, 4), (-1, 0), (0, 0).
KERNEL = np.array([[[3, -1, 0]], [[4, 0, 0]]], np.float32)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (criteria.l1, [7, 1, 0]),
        (criteria.l2, [5, 1, 0]),
        # |(4, 4)| + |(3, 4)|, |(4, 4)| + |(1, 0)|, |(3, 4)| + |(1, 0)|
        (criteria.fpgm, [np.sqrt(32) + 5, np.sqrt(32) + 1, 6]),
    ],
)
def test_of_the_kernel(criterion, expected):
    np.testing.assert_allclose(criterion(KERNEL), expected, rtol=1e-12)


def test_bn_scale_has_no_sign():
    scores = criteria.bn_scale(np.array([-2, 0.5, 0], np.float32))
    np.testing.assert_array_equal(scores, [2, 0.5, 0])


def test_gradients_by_hand():
    """Two positions; sums of a dL/da over them, of three images."""
    products = np.array([[2, -4, 0], [-2, -4, 0], [2, 2, 0]], np.float32)
    gradients = Gradients.of(products[:1], 2) + Gradients.of(products[1:], 2)
    # An image's sum may have either sign; images do not cancel one another.
    np.testing.assert_allclose(criteria.taylor(gradients), [1, 10 / 6, 0])
    np.testing.assert_allclose(criteria.fisher(gradients), [2, 6, 0])


def test_consumer_by_hand():
    """Two consumers; the first holds channel 0 twice and something else in between."""
    first = ConsumerInput(
        Activations(4, np.zeros(4), np.array([4.0, 400, 16, 36]), np.zeros(4, int)),
        np.array([0, -1, 0, 1]), np.array([9.0, 1.0, 1.0, 0.25]),
    )  # fmt: skip
    second = ConsumerInput(
        Activations(2, np.zeros(2), np.array([0.0, 8.0]), np.zeros(2, int)),
        np.array([1, 2]), np.array([5.0, 25.0]),
    )  # fmt: skip
    scores = criteria.wanda([first, second], 3)
    # variances 1, 4 and 9; 0 and 4
    np.testing.assert_allclose(scores, [np.sqrt(9 + 4), 1.5, 10])


def test_random_is_of_the_seed():
    one, again, other = (criteria.random(50, seed) for seed in (1, 1, [1, 1]))
    assert (one == again).all() and (one != other).all()
    assert one.shape == (50,) and 0.3 < one.mean() < 0.7


def measured(table):
    """Losses by the set of pruned channels, and how often each was asked for."""
    asked = []

    def losses(kept):
        gone = frozenset(np.flatnonzero(~kept).tolist())
        asked.append(gone)
        without = np.full(len(kept), np.inf)
        for j in np.flatnonzero(kept):
            without[j] = table[gone | {int(j)}]
        return Losses(table[gone], without)

    return losses, asked


# Channels 0 and 1 stand in for one another; 2 does a little.
TABLE = {
    frozenset(): 1.0, frozenset({0}): 1.0, frozenset({1}): 1.1, frozenset({2}): 1.2,
    frozenset({0, 1}): 9.0, frozenset({0, 2}): 1.5, frozenset({1, 2}): 1.6,
}  # fmt: skip


def test_oracle_is_the_rise():
    losses, asked = measured(TABLE)
    np.testing.assert_allclose(criteria.oracle(losses, 3), [0, 0.1, 0.2], atol=1e-12)
    assert asked == [frozenset()]
    harmful = {**TABLE, frozenset({1}): 0.7}
    losses, _ = measured(harmful)
    np.testing.assert_allclose(criteria.oracle(losses, 3), [0, -0.3, 0.2], atol=1e-12)
    scores = criteria.abs_oracle(losses, 3)
    np.testing.assert_allclose(scores, [0, 0.3, 0.2], atol=1e-12)


def test_greedy_oracle_looks_again_at_every_step():
    losses, asked = measured(TABLE)
    scores = criteria.greedy_oracle(losses, 3)
    # The oracle would prune 0 and then 1, which is dear once 0 is gone.
    assert scores.tolist() == [0, 2, 1]
    assert asked == [frozenset(), frozenset({0})]


def test_every_criterion_needs_what_there_is():
    for criterion in criteria.CRITERIA.values():
        assert set(criterion.needs) <= set(criteria.NEEDS)
