"""How sure a sweep's figures are: intervals, and the K that is safe to take.

Images are taken as drawn independently of one another. Of pairs that share an image
that is not quite true, and intervals are a little too narrow.

Axes: K masks (or any leading axes), N images, C classes, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int
from scipy.optimize.elementwise import find_root

from jaxprune._base.arguments import check_number

CONFIDENCE = 0.95

# Of a bootstrap: their 2.5th percentile moves by a fortieth of the interval's width
# from one seed to the next.
RESAMPLES = 2000

# Weights of images that the bootstrap holds at once.
_ELEMENTS = 2**22


class Interval(NamedTuple):
    """Both ends of 95 % intervals."""

    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


class Discordant(NamedTuple):
    """Images on which networks differ from a first one in being right.

    Attributes:
      lost: right before and wrong after.
      won: wrong before and right after.
      images: of both kinds and of all others, N.
    """

    lost: Int[np.ndarray, "*K"]
    won: Int[np.ndarray, "*K"]
    images: int


def discordant(right: Bool[np.ndarray, "K N"]) -> Discordant:
    """Counts of what each mask changes against the first.

    >>> discordant(np.array([[True, True, False], [False, True, True]]))
    Discordant(lost=array([0, 1]), won=array([0, 1]), images=3)
    """
    before = right[0]
    lost, won = (before & ~right).sum(1), (~before & right).sum(1)
    return Discordant(lost, won, len(before))


def share_interval(count: Int[np.ndarray, " K"], images: int) -> Interval:
    """Wilson's score interval of the share `count` / `images` (Wilson 1927)."""
    ends = [
        scipy.stats.binomtest(int(c), images).proportion_ci(CONFIDENCE, method="wilson")
        for c in count
    ]
    return Interval(*np.array(ends).T)


def largest_drop(
    counts: Discordant, confidence: float = CONFIDENCE
) -> Float[np.ndarray, "*K"]:
    """How much accuracy may have been lost: a one-sided upper limit, in [-1, 1].

    Of the score interval for the difference of paired proportions (Tango 1998,
    Statistics in Medicine 17: 891-908): the drop at which the observed one is z
    standard errors below, those of the maximum likelihood under that drop. Without any
    change in N images it is z^2 / (N + z^2).

    Args:
      counts: of images that were lost and won.
      confidence: of the limit, in (0.5, 1).
    """
    lost, won, images = np.asarray(counts.lost), np.asarray(counts.won), counts.images
    z = scipy.stats.norm.ppf(confidence)

    def score(drop: np.ndarray, lost: np.ndarray, won: np.ndarray) -> np.ndarray:
        b = (2 * images - lost + won) * drop - lost - won
        c = -won * drop * (1 - drop)
        rate = (np.sqrt(b * b - 8 * images * c) - b) / (4 * images)
        variance = images * (2 * rate + drop * (1 - drop))
        return (lost - won - images * drop) / np.sqrt(np.maximum(variance, 1e-12)) + z

    observed = (lost - won) / images
    root = find_root(score, (observed, np.ones_like(observed)), args=(lost, won)).x
    # Where all were lost, no drop is too large.
    return np.where(lost == images, 1.0, root)


def change_interval(counts: Discordant) -> Interval:
    """Tango's paired interval of the change in accuracy; see `largest_drop`."""
    lost, won, images = counts
    side = (1 + CONFIDENCE) / 2
    return Interval(
        -largest_drop(counts, side), largest_drop(Discordant(won, lost, images), side)
    )


def mcnemar(counts: Discordant) -> Float[np.ndarray, "*K"]:
    """Exact two-sided p-value of no change in accuracy (McNemar 1947).

    That of lost and won images if each were as likely as the other.
    """
    fewer = np.minimum(counts.lost, counts.won)
    p = 2 * scipy.stats.binom.cdf(fewer, counts.lost + counts.won, 0.5)
    return np.minimum(p, 1.0)


def mcnemar_in_words(lost: int, won: int) -> str:
    """The same of two counts, with six digits: also where no float is as small.

    >>> mcnemar_in_words(9, 1), mcnemar_in_words(2000, 0)
    ('0.0214844', '1.74196e-602')
    """
    (p,) = mcnemar(Discordant(np.array([lost]), np.array([won]), lost + won))
    if p > np.finfo(float).tiny:
        return f"{p:.6g}"
    terms = scipy.stats.binom.logpmf(np.arange(min(lost, won) + 1), lost + won, 0.5)
    log10 = (scipy.special.logsumexp(terms) + np.log(2)) / np.log(10)
    exponent = int(np.floor(log10))
    return f"{10 ** (log10 - exponent):.5f}e{exponent}"


def passed(
    drops: Float[np.ndarray, "*D K"], max_drop: float
) -> Int[np.ndarray, "*D"] | np.integer:
    """How many limits of a sequence are below `max_drop` before the first that is not.

    Each is a test, and all are made in an order that the data did not choose, up to the
    first failure. So the chance that any true loss of `max_drop` or more passes is that
    of one test: all of them can pass only if the first of them does (fixed sequence:
    Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001).

    >>> passed(np.array([0.001, 0.02, 0.003]), 0.01)
    np.int64(1)
    """
    return np.cumprod(drops < max_drop, axis=-1).sum(-1)


def largest_safe_k(ks: Sequence[int], counts: Discordant, max_drop: float) -> int:
    """The largest k such that it and all before it lose less than `max_drop`.

    With 95 % confidence for the choice as a whole, see `passed`; provided that the
    order of channels was not made with these images' labels.

    Args:
      ks: numbers of pruned channels, ascending; the first loses nothing.
      counts: for each k, against the first.
      max_drop: loss that must not be reached, in [0, 1]; 0.01 is one point.

    Raises:
      InputError: `max_drop` is none.
    """
    check_number("drop, a share of accuracy,", max_drop, 0.0, 1.0)
    lost, won, images = counts
    drops = largest_drop(Discordant(lost[1:], won[1:], images))
    return ks[int(passed(drops, max_drop))]


def loss_interval(
    mean: Float[np.ndarray, " K"], std: Float[np.ndarray, " K"], images: int
) -> Interval:
    """Of a mean over images of a loss that is never negative.

    Normal, by the central limit theorem; `std` is the images' standard deviation.
    """
    half = scipy.stats.norm.ppf((1 + CONFIDENCE) / 2) * std / np.sqrt(images)
    return Interval(np.maximum(mean - half, 0), mean + half)


def mean_interval(
    values: Float[np.ndarray, "S K"],
) -> tuple[Float[np.ndarray, " K"], Interval]:
    """Means over S repetitions, and Student's intervals of them, S at least 2."""
    repetitions = len(values)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(repetitions)
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, repetitions - 1) * error
    return mean, Interval(mean - half, mean + half)


def points(drop: float) -> str:
    """A drop in words.

    >>> points(0.01), points(0.005)
    ('one point', '0.5 points')
    """
    return "one point" if drop == 0.01 else f"{100 * drop:g} points"


class Recalls(NamedTuple):
    """Intervals by a bootstrap.

    Attributes:
      balanced: of balanced accuracy [K].
      balanced_change: of its difference from the first mask's [K].
      recall: of each class's share that is predicted right [K, C].
      recall_change: of its difference from the first mask's [K, C].
    """

    balanced: Interval
    balanced_change: Interval
    recall: Interval
    recall_change: Interval


def bootstrap(
    right: Bool[np.ndarray, "K N"],
    labels: Int[np.ndarray, " N"],
    classes: int,
    *,
    seed: int = 0,
) -> Recalls:
    """Percentile intervals of recalls and balanced accuracy.

    The bootstrap is stratified, so each class keeps its number of images, and paired,
    so all masks are given the same resampled images (Efron and Tibshirani 1993). Where
    all images of a class are right, or none, its interval is a point.

    Args:
      right: whether an image is predicted right under a mask.
      labels: true class of each image. Those of a class without images are NaN.
      classes: their number.
      seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    balanced = np.zeros((len(right), RESAMPLES))
    present = len(np.unique(labels))
    recalls, changes = [], []
    for c in range(classes):
        drawn = _resampled(right[:, labels == c], rng)
        if not np.isnan(drawn).any():
            balanced += drawn / present
        recalls.append(percentiles(drawn))
        changes.append(percentiles(drawn - drawn[0]))
    return Recalls(
        percentiles(balanced),
        percentiles(balanced - balanced[0]),
        *(Interval(*np.stack(ends, axis=-1)) for ends in (recalls, changes)),
    )


def _resampled(
    right: Bool[np.ndarray, "K M"], rng: np.random.Generator
) -> Float[np.ndarray, "K R"]:
    """Share that is right of images drawn with replacement, the same for all masks.

    NaN where there are none.
    """
    images = right.shape[1]
    if not images:
        return np.full((len(right), RESAMPLES), np.nan)
    # Sums of up to 2^24 ones are exact.
    ones, parts = right.astype(np.float32), []
    step = max(1, _ELEMENTS // images)
    for start in range(0, RESAMPLES, step):
        times = times_drawn(images, min(step, RESAMPLES - start), rng)
        parts.append(ones @ times.T)
    return np.concatenate(parts, axis=1) / np.float32(images)


def times_drawn(
    images: int, count: int, rng: np.random.Generator
) -> Float[np.ndarray, "r N"]:
    """How often each image is drawn, in so many resamples."""
    drawn = rng.integers(images, size=(count, images))
    drawn += images * np.arange(count)[:, None]
    times = np.bincount(drawn.ravel(), minlength=count * images)
    return times.reshape(count, images).astype(np.float32)


def percentiles(drawn: Float[np.ndarray, "K R"]) -> Interval:
    """The interval of what was drawn R times."""
    tail = (1 - CONFIDENCE) / 2
    return Interval(*np.quantile(drawn, [tail, 1 - tail], axis=1))


class Figures(NamedTuple):
    """Confidence of a curve over K; intervals are of 95 %.

    Attributes:
      accuracy: Wilson's interval.
      change: Tango's, of the change from the first mask.
      mcnemar: exact p-value of no change.
      recalls: by a bootstrap.
    """

    accuracy: Interval
    change: Interval
    mcnemar: Float[np.ndarray, " K"]
    recalls: Recalls


def figures(
    right: Bool[np.ndarray, "K N"], labels: Int[np.ndarray, " N"], classes: int
) -> Figures:
    """All intervals of a sweep.

    Args:
      right: whether an image is predicted right under a mask.
      labels: true class of each image.
      classes: their number.
    """
    counts = discordant(right)
    return Figures(
        share_interval(right.sum(1), right.shape[1]),
        change_interval(counts),
        mcnemar(counts),
        bootstrap(right, labels, classes),
    )
