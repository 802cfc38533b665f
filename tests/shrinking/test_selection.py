"""Forward selection against the obvious loop, and answers that are planted."""

import numpy as np

from jaxprune.fills.fill import LinearFill
from jaxprune.fills.linear import Moments
from jaxprune.shrinking.selection import forward_selection, selection_order


def drawn(rng, units, factors=5):
    """A covariance, the Gram matrix of a kernel, a ridge."""
    mixed = rng.normal(size=(200, factors)) @ rng.normal(size=(factors, units))
    rows = mixed + 0.3 * rng.normal(size=(200, units))
    kernel = rng.normal(size=(units, 4))
    return np.cov(rows.T), kernel @ kernel.T, 0.05 * np.eye(units)


def slow_order(consumers):
    """Adds, one by one, the unit that leaves the least error at the consumers."""

    def left(chosen):
        def among(matrix):
            return matrix[np.ix_(chosen, chosen)]

        error = 0.0
        for c, g, ridge in consumers:
            known = c[:, chosen] @ np.linalg.inv(among(c + ridge)) @ c[chosen]
            error += np.trace((c - known) @ g) / np.trace(c @ g)
        return error

    chosen, units = [], range(len(consumers[0][0]))
    while len(chosen) < len(units):
        rest = [j for j in units if j not in chosen]
        chosen.append(min(rest, key=lambda j: left([*chosen, j])))
    return chosen[::-1]


def test_forward_selection_equals_the_slow_loop():
    rng = np.random.default_rng(0)
    for consumers in (1, 2, 3):
        pairs = [drawn(rng, 11) for _ in range(consumers)]
        assert forward_selection(pairs).tolist() == slow_order(pairs)


def test_units_that_are_not_read_or_do_not_vary_go_first():
    rng = np.random.default_rng(1)
    covariance, gram, ridge = drawn(rng, 8)
    gram[3] = gram[:, 3] = 0
    covariance[3, :3] = covariance[:3, 3] = covariance[3, 4:] = covariance[4:, 3] = 0
    covariance[5] = covariance[:, 5] = 0
    assert set(forward_selection([(covariance, gram, ridge)])[:2].tolist()) == {3, 5}


def test_a_copy_goes_before_anything_that_says_something():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(300, 6))
    rows[:, 4] = rows[:, 1]
    order = forward_selection([(np.cov(rows.T), np.eye(6), 1e-6 * np.eye(6))])
    assert order[0] in (1, 4) and set(order[1:].tolist()) & {1, 4}


def test_a_consumer_with_several_features_of_a_unit_counts_each_position():
    rng = np.random.default_rng(3)
    pairs = [drawn(rng, 5) for _ in range(2)]
    zero = np.zeros((5, 5))

    def joined(i):
        return np.block([[pairs[0][i], zero], [zero, pairs[1][i]]])[None]

    features = np.arange(10).reshape(1, 10)
    moments = Moments(features, 5, np.zeros((1, 10)), joined(0), joined(1), 0.01)
    ridge = (moments.ridged - moments.covariance)[0, :5, :5]
    slow = forward_selection([(c, g, ridge) for c, g, _ in pairs])
    order = selection_order(LinearFill("linear", moments={"consumer": moments}))
    np.testing.assert_array_equal(order, slow)
