"""The criteria that go by the linear fill, against elimination one by one."""

import numpy as np
import pytest

from jaxprune.ranking import criteria


def moments(p, held=1, u=5, seed=0):
    """Covariance, gram and rows of a consumer with `held` features a channel."""
    rng = np.random.default_rng(seed)
    q = p * held
    rows = rng.normal(size=(50, q)) @ rng.normal(size=(q, q))
    kernel = rng.normal(size=(q, u))
    return np.cov(rows.T, bias=True) + 0.1 * np.eye(q), kernel


def eliminate(covariance, kernel, p):
    """The order and the running total of costs, every regression solved anew."""
    q = len(covariance)
    kernel, kept = kernel.copy(), list(range(p))
    order, totals, total = [], [], 0.0
    while kept:
        best = None
        for j in kept:
            gone = np.arange(q) % p == j
            rest = np.isin(np.arange(q) % p, [k for k in kept if k != j])
            a = np.linalg.solve(covariance[rest][:, rest], covariance[rest][:, gone])
            left = covariance[gone][:, gone] - covariance[gone][:, rest] @ a
            cost = np.trace(kernel[gone].T @ left @ kernel[gone])
            if best is None or cost < best[0]:
                best = cost, j, gone, rest, a
        cost, j, gone, rest, a = best
        kernel[rest] += a @ kernel[gone]
        total += cost
        order.append(j)
        totals.append(total)
        kept.remove(j)
    return order, totals


@pytest.mark.parametrize("held", [1, 3])
def test_backward_elimination(held):
    covariance, kernel = moments(7, held)
    order, totals = eliminate(covariance, kernel, 7)
    gram = (kernel @ kernel.T)[None]
    scores = criteria.linear([(covariance[None], gram, 7)])
    assert np.argsort(scores, kind="stable").tolist() == order
    np.testing.assert_allclose(scores[order], totals, rtol=1e-9)


def test_without_weights_it_is_that_of_unit_rows():
    covariance, _ = moments(7)
    order, totals = eliminate(covariance, np.eye(7), 7)
    scores = criteria.residual_variance([(covariance[None], np.eye(7)[None], 7)])
    # With unit rows at first, the weighted criterion goes on to other rows.
    assert int(np.argmin(scores)) == order[0]
    assert scores.min() == pytest.approx(totals[0])
    left = [1 / np.linalg.inv(covariance)[j, j] for j in range(7)]
    assert scores.min() == pytest.approx(min(left))


def test_several_consumers_add_up():
    one, other = moments(6), moments(6, seed=1)
    consumers = [(c[None], (w @ w.T)[None], 6) for c, w in (one, other)]
    first = int(np.argmin(criteria.linear(consumers)))
    costs = sum(np.diag(w @ w.T) / np.diag(np.linalg.inv(c)) for c, w in (one, other))
    assert first == int(np.argmin(costs))


def test_planted_channels():
    """Dead, duplicate, decisive: the first goes first and the last goes last."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 5))
    rows[:, 1] = 0
    rows[:, 3] = rows[:, 2]
    kernel = np.ones((5, 4))
    kernel[4] = 30
    covariance = np.cov(rows.T, bias=True) + 1e-3 * np.eye(5)
    scores = criteria.linear([(covariance[None], (kernel @ kernel.T)[None], 5)])
    order = np.argsort(scores, kind="stable").tolist()
    assert order[0] == 1 and order[-1] == 4
    assert order[1] in (2, 3) and scores[order[1]] < 0.05 * scores[order[2]]
