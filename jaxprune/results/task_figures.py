"""How sure the figures of a task's score are: of means, and of ratios of sums.

Axes: K masks, N images, S terms of a score, R resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from jaxprune.results import confidence
from jaxprune.results.confidence import CONFIDENCE, RESAMPLES, Interval

# Numbers that the bootstrap holds at once.
_ELEMENTS = 2**24

Combine = Callable[[Float[np.ndarray, "*K S"]], Float[np.ndarray, "*K"]]


class ScoreFigures(NamedTuple):
    """A score at each mask; intervals are of 95 %.

    Attributes:
      value: the score.
      interval: of it.
      change: interval of its change from the first mask.
      drop_limit: how much of it may have been lost: a one-sided 95 % limit.
    """

    value: Float[np.ndarray, " K"]
    interval: Interval
    change: Interval
    drop_limit: Float[np.ndarray, " K"]


def score_figures(
    terms: Float[np.ndarray, "K N *S"], combine: Combine | None, higher_is_better: bool
) -> ScoreFigures:
    """The figures of a score from its terms.

    Shares of images, whose terms are 0 and 1, have exact intervals (Wilson 1927; Tango
    1998, for changes), other means Student's, of the images' paired differences, and
    what is combined of several sums a paired bootstrap's percentiles (Efron and
    Tibshirani 1993).

    Args:
      terms: of each mask and image; without S where the score is their mean.
      combine: sums over images -> the score.
      higher_is_better: whether a lower score is a loss.
    """
    if combine is not None:
        return _of_sums(terms, combine, higher_is_better)
    counted = bool(((terms == 0) | (terms == 1)).all())
    return (_of_shares if counted else _of_means)(terms, higher_is_better)


def _of_shares(terms: np.ndarray, higher_is_better: bool) -> ScoreFigures:
    held = terms == 1
    images = held.shape[1]
    counts = confidence.discordant(held)
    lost, won, _ = counts
    worse = counts if higher_is_better else confidence.Discordant(won, lost, images)
    return ScoreFigures(
        held.mean(1),
        confidence.share_interval(held.sum(1), images),
        confidence.change_interval(counts),
        confidence.largest_drop(worse),
    )


def _of_means(terms: np.ndarray, higher_is_better: bool) -> ScoreFigures:
    images = terms.shape[1]
    wide = terms.astype(np.float64)
    change = wide - wide[0]
    worse = -change if higher_is_better else change

    def half(values: np.ndarray, share: float) -> np.ndarray:
        if images < 2:
            return np.full(len(values), np.inf)
        error = values.std(1, ddof=1) / np.sqrt(images)
        return scipy.stats.t.ppf(share, images - 1) * error

    def ends(values: np.ndarray) -> Interval:
        mean, width = values.mean(1), half(values, (1 + CONFIDENCE) / 2)
        return Interval(mean - width, mean + width)

    limit = worse.mean(1) + half(worse, CONFIDENCE)
    return ScoreFigures(wide.mean(1), ends(wide), ends(change), limit)


def _of_sums(
    terms: np.ndarray, combine: Combine, higher_is_better: bool, seed: int = 0
) -> ScoreFigures:
    masks, images = terms.shape[:2]
    value = combine(terms.sum(1, dtype=np.float64))
    drawn = np.empty((masks, RESAMPLES))
    rng, step = np.random.default_rng(seed), max(1, _ELEMENTS // images)
    for start in range(0, RESAMPLES, step):
        rows = slice(start, min(start + step, RESAMPLES))
        times = confidence.times_drawn(images, rows.stop - start, rng)
        times = times.astype(np.float64)
        for k in range(masks):
            drawn[k, rows] = combine(times @ terms[k].astype(np.float64))
    change = drawn - drawn[0]
    worse = -change if higher_is_better else change
    return ScoreFigures(
        value,
        confidence.percentiles(drawn),
        confidence.percentiles(change),
        np.quantile(worse, CONFIDENCE, axis=1),
    )
