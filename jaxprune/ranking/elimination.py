"""Backward elimination: the cheapest channel goes, and the others' costs change.

Axes: P channels, G groups of Q features of a consumer, the features of each position
lying channel by channel.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

# Of one layer that reads the channels: the covariance of its features with the ridge of
# the linear fill, the products W W' of the rows that they meet, and P.
ConsumerMoments = tuple[Float[np.ndarray, "G Q Q"], Float[np.ndarray, "G Q Q"], int]


def eliminate(
    consumers: Sequence[ConsumerMoments], *, weighted: bool
) -> Float[np.ndarray, " P"]:
    """The cost until each channel is gone, see `criteria.linear`."""
    states = [
        (np.linalg.inv(covariance), gram.copy()) for covariance, gram, _ in consumers
    ]
    channels = consumers[0][2]
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
    """The cost of removing each kept channel at one consumer: trace(Q_JJ^{-1} G_JJ)."""
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
