"""Metrics of predictions: counts first, divided once.

Axes: K masks (or any leading axes), N images, C classes.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from jaxprune._base.arguments import check_number


def confusion(
    predictions: Integer[np.ndarray, "K N"], labels: Int[np.ndarray, " N"], classes: int
) -> Int[np.ndarray, "K C C"]:
    """Counts of images by [mask, true class, predicted class]."""
    from sklearn.metrics import confusion_matrix  # with it all of scipy.stats

    names = np.arange(classes)
    return np.stack([confusion_matrix(labels, p, labels=names) for p in predictions])


def accuracy(confusion: Int[np.ndarray, "K C C"]) -> Float[np.ndarray, " K"]:
    """Share of images predicted right, in [0, 1]."""
    return correct(confusion) / confusion.sum((1, 2))


def correct(confusion: Int[np.ndarray, "K C C"]) -> Int[np.ndarray, " K"]:
    """Number of images predicted right."""
    return np.trace(confusion, axis1=1, axis2=2)


def balanced_accuracy(confusion: Int[np.ndarray, "K C C"]) -> Float[np.ndarray, " K"]:
    """Mean, over classes that have images, of the share that is predicted right."""
    return np.nanmean(recall(confusion), axis=1)


def recall(confusion: Int[np.ndarray, "K C C"]) -> Float[np.ndarray, "K C"]:
    """Share of each class that is predicted right; NaN where it has no image."""
    per_class = confusion.sum(2)
    right = np.diagonal(confusion, axis1=1, axis2=2)
    none = np.full(right.shape, np.nan)
    return np.divide(right, per_class, out=none, where=per_class > 0)


def predicted_share(confusion: Int[np.ndarray, "K C C"]) -> Float[np.ndarray, "K C"]:
    """Share of images predicted as each class, in [0, 1]."""
    return confusion.sum(1) / confusion.sum((1, 2))[:, None]


def largest_k_within(
    ks: Sequence[int], scores: Float[np.ndarray, " K"], drop: float
) -> int:
    """Largest k whose score is at most `drop` below that of the first k.

    The naive figure: it takes scores as they are drawn, and promises nothing of smaller
    k. `certainty.largest_safe_k` does both otherwise.

    Args:
      ks: numbers of pruned channels, ascending.
      scores: accuracy at each k, in [0, 1].
      drop: allowed loss, in [0, 1]; 0.01 is one point.

    Raises:
      InputError: `drop` is none.

    >>> largest_k_within([0, 1, 2, 3], np.array([0.80, 0.81, 0.79, 0.70]), 0.01)
    2
    """
    check_number("drop, a share of accuracy,", drop, 0.0, 1.0)
    # A loss of exactly `drop` counts, whatever the rounding of the two quotients;
    # accuracies over up to 10^9 images differ by more than this.
    return int(max(np.asarray(ks)[scores >= scores[0] - drop - 1e-10]))
