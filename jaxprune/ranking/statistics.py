"""Statistics that criteria need, as sums over batches, devices and processes.

Axes: N images, P channels, F features of a layer that reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num


@dataclass(frozen=True)
class Activations:
    """Values over images and positions.

    Sums of squared deviations are put together as Chan, Golub and LeVeque 1979 do, so
    that a channel that never varies has a variance of exactly 0.

    Attributes:
      count: of values, the same for each.
      mean: of each channel or feature.
      squares: sum of the squared deviations from the mean.
      zeros: number of values that are exactly 0.
    """

    count: int
    mean: Float[np.ndarray, " P"]
    squares: Float[np.ndarray, " P"]
    zeros: Int[np.ndarray, " P"]

    @classmethod
    def of(cls, values: Num[np.ndarray, "*N P"]) -> "Activations":
        """Of at least one image; float32's sums are float64's."""
        rows = values.reshape(-1, values.shape[-1])
        mean = rows.mean(0, dtype=np.float64)
        centred = rows - mean
        squares = np.einsum("np,np->p", centred, centred)
        return cls(len(rows), mean, squares, (rows == 0).sum(0))

    def __add__(self, other: "Activations") -> "Activations":
        count = self.count + other.count
        apart = other.mean - self.mean
        return Activations(
            count,
            self.mean + apart * (other.count / count),
            self.squares
            + other.squares
            + np.square(apart) * (self.count * (other.count / count)),
            self.zeros + other.zeros,
        )

    @property
    def variance(self) -> Float[np.ndarray, " P"]:
        """The mean squared deviation."""
        return self.squares / self.count


@dataclass(frozen=True)
class Gradients:
    """Of the products a dL/da of activations with the gradient of the image's loss.

    Attributes:
      images: N.
      positions: over which an image's products are added up.
      absolute: sum over images of the absolute value of the image's sum.
      squares: sum over images of its square.
    """

    images: int
    positions: int
    absolute: Float[np.ndarray, " P"]
    squares: Float[np.ndarray, " P"]

    @classmethod
    def of(cls, products: Float[np.ndarray, "N P"], positions: int) -> "Gradients":
        """From each image's sum over positions."""
        sums = products.astype(np.float64)
        absolute, squares = np.abs(sums).sum(0), np.square(sums).sum(0)
        return cls(len(sums), positions, absolute, squares)

    def __add__(self, other: "Gradients") -> "Gradients":
        return Gradients(
            self.images + other.images,
            self.positions,
            self.absolute + other.absolute,
            self.squares + other.squares,
        )


class ConsumerInput(NamedTuple):
    """One consumer's input and kernel.

    Attributes:
      activations: of each of its features, F.
      owner: the channel that each feature holds, negative where it holds none.
      rows: squared norm of the kernel's row for each feature, over all taps.
    """

    activations: Activations
    owner: Int[np.ndarray, " F"]
    rows: Float[np.ndarray, " F"]


class Losses(NamedTuple):
    """Mean cross-entropy, nats.

    Attributes:
      before: with the channels that are kept.
      without: the loss with each of them pruned too; infinite for those not kept.
    """

    before: float
    without: Float[np.ndarray, " P"]


# What a mask costs, and each channel more: see `jaxprune.sweep.oracle`.
MeasureLosses = Callable[[Bool[np.ndarray, " P"]], Losses]
