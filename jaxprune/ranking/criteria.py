"""What a channel is worth: a score for each, the lowest is pruned first.

Axes: N images, H x W positions, P channels, G groups of Q features of a reader, the
features of each position lying channel by channel.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Scores = Float[np.ndarray, " P"]

# Of one layer that reads the channels: the covariance of its features with the ridge of
# the linear fill, the products W W' of the rows that they meet, and P.
ReaderMoments = tuple[Float[np.ndarray, "G Q Q"], Float[np.ndarray, "G Q Q"], int]


def mean(feature_map: Float[np.ndarray, "... P"]) -> Scores:
    """Mean activation of every channel over all axes but the last.

    The criterion of the CIFAR-10 report. The mean feature map [H, W, P] gives the
    same scores as all N feature maps.
    """
    return feature_map.mean(tuple(range(feature_map.ndim - 1)), dtype=np.float64)


def abs_mean(feature_map: Float[np.ndarray, "... P"]) -> Scores:
    """Absolute value of the mean activation: the criterion of the MNIST report.

    Differs from `mean` only where activations are signed, before BatchNorm and ReLU.
    """
    return np.abs(mean(feature_map))


def linear(readers: Sequence[ReaderMoments]) -> Scores:
    """What pruning costs at the readers under the linear fill, by backward elimination.

    The channel that goes next is the one whose removal moves what the readers return
    the least: the variance v_j that its regression on the kept channels leaves, times
    the squared norm of its row of the kernel as it is by then. Both follow from
    rank-one updates, O(P^2) a channel:

        v_j = 1 / Q_jj,   a = -Q_:j / Q_jj,   W += a W_j,   Q -= Q_:j Q_j: / Q_jj

    with Q the inverse covariance of the kept channels; where a channel holds several
    features of a group, with their block in the place of Q_jj. The residuals of one
    order are uncorrelated, so the costs add up: a channel's score is the expected
    squared change once it and all before it are gone.

    Args:
      readers: `Fill.readers` of a linear fill.
    """
    return _eliminate(readers, weighted=True)


def residual_variance(readers: Sequence[ReaderMoments]) -> Scores:
    """`linear` without the weights: the variance alone that the kept ones leave."""
    return _eliminate(readers, weighted=False)


def _eliminate(readers: Sequence[ReaderMoments], *, weighted: bool) -> Scores:
    states = [
        (np.linalg.inv(covariance), gram.copy()) for covariance, gram, _ in readers
    ]
    channels = readers[0][2]
    scores = np.zeros(channels)
    kept = np.arange(channels)
    spent = 0.0
    while len(kept):
        cost = sum(_costs(*state, kept, channels, weighted) for state in states)
        j = kept[int(np.argmin(cost))]
        # Rounding can make the cost of a channel that says nothing negative.
        spent += max(float(np.min(cost)), 0.0)
        scores[j] = spent
        kept = kept[kept != j]
        for inverse, gram in states:
            _remove(inverse, gram, np.arange(j, inverse.shape[-1], channels))
    return scores


def _costs(
    inverse: np.ndarray,
    gram: np.ndarray,
    kept: np.ndarray,
    channels: int,
    weighted: bool,
) -> Float[np.ndarray, " kept"]:
    """What removing each kept channel costs at one reader: trace(Q_JJ^{-1} G_JJ)."""
    members = kept[:, None] + np.arange(0, inverse.shape[-1], channels)
    blocks = members[:, :, None], members[:, None, :]
    variance = np.linalg.inv(inverse[:, *blocks])
    if not weighted:
        return np.trace(variance, axis1=-2, axis2=-1).sum(0)
    return np.einsum("gprs,gpsr->p", variance, gram[:, *blocks])


def _remove(
    inverse: Float[np.ndarray, "G Q Q"], gram: Float[np.ndarray, "G Q Q"], j: np.ndarray
) -> None:
    """Takes a channel's features out; their rows and columns become 0."""
    rows = inverse[:, j].copy()
    a = -(rows.swapaxes(1, 2) @ np.linalg.inv(rows[:, :, j]))
    inverse += a @ rows
    products = gram[:, j].copy()
    gram += a @ products
    gram += (products.swapaxes(1, 2) + a @ products[:, :, j]) @ a.swapaxes(1, 2)


class Criterion(NamedTuple):
    """A score, and what it is worked out from: an argument's name."""

    score: Callable[..., Scores]
    needs: str


CRITERIA: dict[str, Criterion] = {
    "mean": Criterion(mean, "mean_feature_map"),
    "abs_mean": Criterion(abs_mean, "mean_feature_map"),
    "linear": Criterion(linear, "readers"),
    "residual_variance": Criterion(residual_variance, "readers"),
}
