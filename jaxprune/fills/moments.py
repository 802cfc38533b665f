"""Moments of what a consumer is given, added up row by row; and which ridge to choose.

Axes: P channels, G groups of Q features of a consumer as in `jaxprune.fills.linear`,
n rows, which are images and positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxprune._base import processes
from jaxprune.fills.linear import Moments, channel_blocks


def press(
    rows: Float[np.ndarray, "n G Q"], channels: int, ridges: Sequence[float]
) -> list[float]:
    """Leave-one-out errors of each channel's regression on all others (PRESS).

    With centred rows X, M = (X'X + n lambda I)^{-1} and Z = XM, the regression of the
    features J of a channel leaves Z_iJ M_JJ^{-1} at row i, and the leverage of row i in
    it is h_i - Z_iJ M_JJ^{-1} Z_iJ' with h_i = X_i Z_i'. Left out, row i is predicted
    with an error larger by 1 / (1 - 1/n - leverage): nothing is fitted again (Allen
    1974). For each ridge that takes n Q^2 + Q^3 multiply-adds in each group.

    Args:
      rows: features, in groups.
      channels: their number, P.
      ridges: in units of the mean variance.

    Returns:
      For each ridge the mean square error over features, in units of their variance.
    """
    x = rows.astype(np.float64).swapaxes(0, 1)
    x -= x.mean(1, keepdims=True)
    count, features = x.shape[1:]
    errors = np.zeros(len(ridges))
    for centred in x if count > 2 else ():
        covariance = centred.T @ centred / count
        variance = np.trace(covariance) / features
        if variance == 0:
            continue
        for i, ridge in enumerate(ridges):
            ridged = covariance + ridge * variance * np.eye(features)
            inverse = np.linalg.inv(count * ridged)
            z = centred @ inverse
            blocks = np.linalg.inv(channel_blocks(inverse, channels))
            of_channels = z.reshape(count, -1, channels)
            left = np.einsum("nrp,prs->nsp", of_channels, blocks)
            leverage = (centred * z).sum(1)[:, None] - (left * of_channels).sum(1)
            left /= np.maximum(1 - 1 / count - leverage, 1e-12)[:, None]
            errors[i] += np.square(left).mean() / variance
    return (errors / len(x)).tolist()


@dataclass
class Sums:
    """Of a consumer's channels over rows.

    Sums of squares are taken about a level near the mean, not about 0: in a channel of
    1e6 that varies by 1 they would hold nothing of its variance.

    Attributes:
      features: features that hold the channels.
      channels: their number, P.
      count: of rows.
      level: of each feature.
      total: sum of each feature, less its level.
      squares: sums of products of these, in each group.
      kept: rows for `press`, batch by batch.
    """

    features: Int[np.ndarray, "G Q"]
    channels: int
    count: int
    level: Float[np.ndarray, "G Q"]
    total: Float[np.ndarray, "G Q"]
    squares: Float[np.ndarray, "G Q Q"]
    kept: list[Float[np.ndarray, "n G Q"]]

    @classmethod
    def about(
        cls,
        level: Float[np.ndarray, "G Q"],
        features: Int[np.ndarray, "G Q"],
        channels: int,
    ) -> "Sums":
        """Of no rows yet."""
        squares = np.zeros((*level.shape, level.shape[1]))
        return cls(features, channels, 0, level, np.zeros(level.shape), squares, [])

    def add(self, rows: Float[np.ndarray, "n G Q"], every: int) -> None:
        """Adds rows, and keeps one of `every`."""
        x = (rows - self.level).astype(np.float64).swapaxes(0, 1)
        self.count += x.shape[1]
        self.total += x.sum(1)
        self.squares += x.swapaxes(1, 2) @ x
        self.kept.append(rows[::every])

    def over_processes(self) -> "Sums":
        """The sums of all processes, about their mean (Chan, Golub, LeVeque 1983)."""
        kept = np.concatenate(processes.gather(np.concatenate(self.kept)))
        count = int(processes.total(np.array([self.count]))[0])
        moved = self.total / self.count
        own = self.level + moved
        mean = processes.total(self.count * own) / count
        change = _products(own - mean) - _products(moved)
        squares = processes.total(self.squares + self.count * change)
        none = np.zeros(mean.shape)
        return Sums(self.features, self.channels, count, mean, none, squares, [kept])

    def press(self, ridges: Sequence[float]) -> list[float]:
        """Leave-one-out errors on the rows that were kept."""
        return press(np.concatenate(self.kept), self.channels, ridges)

    def moments(self, kernel: Any, ridge: float) -> Moments:
        """Mean and covariance, beside the kernel that reads the channels."""
        rows = np.asarray(kernel, np.float64)[..., self.features, :]
        gram = np.einsum("...gpu,...gqu->gpq", rows, rows, optimize=True)
        moved = self.total / self.count
        covariance = self.squares / self.count - _products(moved)
        mean = self.level + moved
        return Moments(self.features, self.channels, mean, covariance, gram, ridge)


def _products(features: Float[np.ndarray, "G Q"]) -> Float[np.ndarray, "G Q Q"]:
    return features[:, :, None] * features[:, None, :]
