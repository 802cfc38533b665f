"""The limit of what may have been lost: covers as often as it says, by simulation."""

import numpy as np
import pytest

from jaxprune.sweep.metrics import largest_drop


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.03, 0.01), (0.002, 0.0)])
def test_the_true_drop_is_below_the_limit_in_95_of_100(lost, won):
    rng = np.random.default_rng(0)
    images, draws = 2000, 2000
    covered = 0
    for _ in range(draws):
        u = rng.uniform(size=images)
        before = (u < lost) | (u > 0.2)
        after = (u > 0.2) | ((u > 0.1) & (u < 0.1 + won))
        covered += largest_drop(before, after) >= lost - won
    assert covered / draws > 0.935


def test_equal_predictions_may_still_differ_by_a_little():
    right = np.arange(1000) % 5 > 0
    assert 0 < largest_drop(right, right) < 0.005
    assert largest_drop(right, ~right) > 0.55
