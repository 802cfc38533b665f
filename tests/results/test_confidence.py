"""Intervals cover as often as they say, and the safe K is: by simulation, by hand."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from jaxprune.results import confidence
from jaxprune.results.confidence import Discordant, largest_drop, largest_safe_k, passed
from jaxprune.results.metrics import largest_k_within

DRAWS = 2000


def counts(lost, won, images):
    return Discordant(np.asarray(lost), np.asarray(won), images)


def covers(interval, truth):
    return np.mean((interval.low <= truth) & (truth <= interval.high))


def score_by_hand(lost, won, images, drop):
    """Standard errors below a drop, its likelihood maximised by a search."""
    same = images - lost - won

    def unlikely(p_won):
        cells = np.array([p_won + drop, p_won, 1 - 2 * p_won - drop])
        n = np.array([lost, won, same])
        return -np.sum(n[n > 0] * np.log(cells[n > 0]))

    low, high = max(0, -drop) + 1e-12, (1 - drop) / 2 - 1e-12
    p_won = optimize.minimize_scalar(
        unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    variance = (2 * p_won + drop - drop**2) / images
    return ((lost - won) / images - drop) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("lost", "won", "images"), [(30, 12, 1000), (3, 25, 400), (9, 9, 100), (5, 0, 300)]
)
def test_the_limits_of_a_change_are_z_standard_errors_away(lost, won, images):
    low, high = confidence.change_interval(counts([lost], [won], images))
    assert low[0] < (won - lost) / images < high[0]
    z = stats.norm.ppf(0.975)
    assert score_by_hand(lost, won, images, -low[0]) == pytest.approx(-z, abs=1e-3)
    assert score_by_hand(lost, won, images, -high[0]) == pytest.approx(z, abs=1e-3)
    (limit,) = largest_drop(counts([lost], [won], images))
    z = stats.norm.ppf(0.95)
    assert score_by_hand(lost, won, images, limit) == pytest.approx(-z, abs=1e-3)


def test_the_interval_of_a_loss_covers():
    drawn = np.random.default_rng(0).exponential(0.4, (DRAWS, 500))
    found = confidence.loss_interval(drawn.mean(1), drawn.std(1), 500)
    # A skewed loss of 500 images: .947 by the same simulation with 200,000 draws.
    assert 0.93 <= covers(found, 0.4) <= 0.965
    low, high = confidence.loss_interval(np.array([0.01]), np.array([5.0]), 100)
    assert low == 0 and high == pytest.approx(0.01 + 1.959964 * 0.5)


def test_a_published_interval():
    """Airway hyper-responsiveness before and after a transplant.

    Fagerland, Lydersen and Laake 2014, BMC Med Res Methodol 14: 116, where the
    difference is given the other way around: -0.517 to -0.026.
    """
    low, high = confidence.change_interval(counts([1], [7], 21))
    np.testing.assert_allclose([low[0], high[0]], [0.026, 0.517], atol=5e-4)


def test_limits_at_the_ends():
    z2 = stats.norm.ppf(0.95) ** 2
    none, all_lost, all_won = largest_drop(counts([0, 50, 0], [0, 0, 50], 50))
    assert none == pytest.approx(z2 / (50 + z2))
    assert all_lost == 1.0
    assert all_won == pytest.approx(-(50 - z2) / (50 + z2))


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.03, 0.01), (0.05, 0.12)])
def test_the_paired_interval_covers_the_true_change(lost, won):
    rng = np.random.default_rng(0)
    cells = rng.multinomial(1000, [lost, won, 1 - lost - won], DRAWS)
    drawn = counts(cells[:, 0], cells[:, 1], 1000)
    assert 0.93 < covers(confidence.change_interval(drawn), won - lost) < 0.97
    assert 0.93 < np.mean(largest_drop(drawn) >= lost - won) < 0.97


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_wilson_s_interval_covers_the_true_share(share):
    rng = np.random.default_rng(0)
    interval = confidence.share_interval(rng.binomial(1000, share, DRAWS), 1000)
    assert 0.93 < covers(interval, share) < 0.97


def test_wilson_s_interval_by_hand():
    z2 = stats.norm.ppf(0.975) ** 2
    low, high = confidence.share_interval(np.array([0, 30]), 40)
    assert (low[0], high[0]) == pytest.approx((0, z2 / (40 + z2)))
    middle = (30 + z2 / 2) / (40 + z2)
    half = math.sqrt(z2 * (30 * 10 / 40 + z2 / 4)) / (40 + z2)
    assert (low[1], high[1]) == pytest.approx((middle - half, middle + half))


def test_mcnemar_is_an_exact_binomial_test():
    lost, won = [0, 1, 8, 3, 5], [0, 0, 2, 9, 5]
    expected = [
        stats.binomtest(a, a + b).pvalue if a + b else 1.0
        for a, b in zip(lost, won, strict=True)
    ]
    np.testing.assert_allclose(confidence.mcnemar(counts(lost, won, 99)), expected)


def test_discordant_by_hand():
    right = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 0]], bool)
    lost, won, images = confidence.discordant(right)
    assert (lost.tolist(), won.tolist(), images) == ([0, 2], [0, 1], 5)


def draw_right(rng, shares, images, rows):
    """Rows of `images` of each class, right with the class's share."""
    p = np.repeat(shares, images)
    return rng.uniform(size=(rows, len(p))) < p, np.repeat(
        np.arange(len(shares)), images
    )


def test_the_bootstrap_covers_recalls_and_balanced_accuracy():
    shares = np.array([0.6, 0.9])
    right, labels = draw_right(np.random.default_rng(0), shares, 200, DRAWS)
    found = confidence.bootstrap(right, labels, 2)
    assert 0.93 < covers(found.balanced, shares.mean()) < 0.97
    for c in (0, 1):
        one = confidence.Interval(found.recall.low[:, c], found.recall.high[:, c])
        assert 0.925 < covers(one, shares[c]) < 0.97  # of 200 images, shares are steps


def test_the_bootstrap_covers_paired_changes(monkeypatch):
    """Each image is lost with chance .1 where it was right: a change of -.09, -.06."""
    monkeypatch.setattr(confidence, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    shares, draws = np.array([0.9, 0.6]), 500
    hits = np.zeros(3)
    for _ in range(draws):
        before, labels = draw_right(rng, shares, 150, 1)
        after = before & (rng.uniform(size=before.shape) > 0.1)
        found = confidence.bootstrap(np.concatenate([before, after]), labels, 2)
        low, high = found.balanced_change
        hits[0] += low[1] <= -0.1 * shares.mean() <= high[1]
        low, high = found.recall_change
        hits[1:] += (low[1] <= -0.1 * shares) & (-0.1 * shares <= high[1])
    # 400 resamples and 500 draws: each a per cent of noise.
    assert (hits / draws > 0.92).all() and (hits / draws < 0.98).all()


def test_the_bootstrap_equals_scipy_s():
    rng = np.random.default_rng(0)
    right, labels = draw_right(rng, np.array([0.5, 0.9, 0.7]), 40, 2)
    keep = np.sort(rng.permutation(120)[:90])  # classes of different sizes
    right, labels = right[:, keep], labels[keep]
    found = confidence.bootstrap(right, labels, 3)

    def theirs(*samples):
        def mean(*samples, axis):
            return np.mean([s.mean(axis) for s in samples], axis=0)

        interval = stats.bootstrap(
            samples, mean, method="percentile", n_resamples=20_000, rng=1
        ).confidence_interval
        return interval.low, interval.high

    one = right[1].astype(float)
    change = one - right[0]
    classes = [labels == c for c in range(3)]
    # Percentiles of 2,000 draws of a mean with a standard error of .05.
    near = {"abs": 0.012}
    ends = found.balanced.low[1], found.balanced.high[1]
    assert ends == pytest.approx(theirs(*(one[c] for c in classes)), **near)
    ends = found.balanced_change.low[1], found.balanced_change.high[1]
    assert ends == pytest.approx(theirs(*(change[c] for c in classes)), **near)
    for c, of_class in enumerate(classes):
        step = {"abs": 1.01 / of_class.sum()}  # percentiles are whole images
        ends = found.recall.low[1, c], found.recall.high[1, c]
        assert ends == pytest.approx(theirs(one[of_class]), **step)
        ends = found.recall_change.low[1, c], found.recall_change.high[1, c]
        assert ends == pytest.approx(theirs(change[of_class]), **step)


def test_the_bootstrap_is_seeded_and_the_first_mask_does_not_change(monkeypatch):
    right, labels = draw_right(np.random.default_rng(0), np.array([0.5, 0.9]), 30, 3)
    one, again = (confidence.bootstrap(right, labels, 2) for _ in range(2))
    other = confidence.bootstrap(right, labels, 2, seed=1)
    np.testing.assert_array_equal(one.balanced, again.balanced)
    assert (one.balanced.low != other.balanced.low).any()
    for end in (*one.balanced_change, *one.recall_change):
        assert not end[0].any() and end[1:].any()
    # In pieces: shares are shares, and intervals of the same width.
    monkeypatch.setattr(confidence, "_ELEMENTS", 1000)
    pieces = confidence.bootstrap(right, labels, 2)
    np.testing.assert_allclose(pieces.balanced, one.balanced, atol=0.02)


def test_the_mean_of_repetitions_has_student_s_interval():
    values = np.random.default_rng(0).normal(3, 1, (5, DRAWS))
    mean, interval = confidence.mean_interval(values)
    theirs = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (interval.low[0], interval.high[0]) == pytest.approx(tuple(theirs))
    assert mean[0] == pytest.approx(values[:, 0].mean())
    assert 0.93 < covers(interval, 3) < 0.97


def nested(rng, lost, won, images):
    """Draws of images that are lost, or won, from some mask on: counts [draws, K]."""
    steps = [np.diff(x, prepend=0) for x in (lost, won)]
    chances = np.concatenate([*steps, [1 - lost[-1] - won[-1]]])
    drawn = rng.multinomial(images, chances, DRAWS)
    masks = len(lost)
    return counts(
        drawn[:, :masks].cumsum(1), drawn[:, masks : 2 * masks].cumsum(1), images
    )


def test_the_safe_k_overshoots_in_one_draw_of_twenty():
    """A point is lost from the 11th mask on, and 0.3 before."""
    won = np.linspace(0.001, 0.01, 20)
    lost = won + np.where(np.arange(20) < 10, 0.003, 0.01)
    drawn = nested(np.random.default_rng(0), np.sort(lost), won, 4000)
    safe = passed(largest_drop(drawn), 0.01)
    overshoots = np.mean(safe > 10)
    # 5.5 %, and 1.645 standard errors of 2,000 draws.
    assert 0.03 < overshoots < 0.055 + 1.645 * math.sqrt(0.055 * 0.945 / DRAWS)
    # A limit that gives all away would do that, too.
    assert np.mean(safe >= 8) > 0.9
    accuracy = (drawn.won - drawn.lost) / drawn.images
    ks = range(21)
    naive = [largest_k_within(ks, np.append(0.0, row), 0.01) for row in accuracy]
    assert np.mean(np.array(naive) > 10) > 0.4


def test_only_the_order_keeps_many_chances_from_adding_up():
    """Masks that err independently, all of them at the drop that is not allowed."""
    rng = np.random.default_rng(1)
    cells = rng.multinomial(4000, [0.02, 0.01, 0.97], (DRAWS, 20))
    drops = largest_drop(counts(cells[..., 0], cells[..., 1], 4000))
    most = 0.055 + 1.645 * math.sqrt(0.055 * 0.945 / DRAWS)
    assert 0.03 < np.mean(passed(drops, 0.01) > 0) < most
    assert np.mean((drops < 0.01).any(1)) > 0.5


def test_the_safe_k_by_hand():
    ks = [0, 4, 8, 12]
    # Limits at 2,000 images: none .0014, 5 lost .0051, 30 lost .020.
    safe = [
        largest_safe_k(ks, counts([0, *lost], [0, 0, 0, 0], 2000), 0.01)
        for lost in ([0, 5, 5], [5, 30, 0], [30, 0, 0])
    ]
    assert safe == [12, 4, 0]
    assert largest_safe_k([3], counts([0], [0], 10), 0.01) == 3


def test_a_limit_that_equals_the_drop_fails():
    drops = np.array([[0.0099, 0.01, 0.0], [0.0, 0.0, 0.0], [0.02, 0.0, 0.0]])
    assert passed(drops, 0.01).tolist() == [1, 3, 0]
