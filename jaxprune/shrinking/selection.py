r"""Which units of a group go first: forward selection by what the consumers lose.

With C the covariance of the units at a consumer's input, G = W W' of the rows that read
them and lambda the ridge, keeping a set S leaves the residual covariance
R = C - C_S (C_SS + lambda I)^{-1} C_S' and the squared error tr(R G) at the consumer's
output. The unit that lowers it most has the largest gain (R G R)_jj / (R_jj + lambda).
Units are chosen one after another; what is chosen last is pruned first. A consumer
counts by its error relative to what it is without any unit.

This is orthogonal matching pursuit with the consumer's output as the target (Chen,
Billings and Luo 1989), run on moments instead of on rows. R is never formed: a factor
with a column for each chosen unit takes its place, as in a pivoted Cholesky
decomposition.

Axes: P units.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from jaxprune.fills.fill import LinearFill

# Units that are chosen one by one at the most; a few hundred images do not tell more
# apart.
_CHOSEN = 1024

# Of one layer that reads the units, at one position.
Consumer = tuple[
    Float[np.ndarray, "P P"], Float[np.ndarray, "P P"], Float[np.ndarray, "P P"]
]


def selection_order(fill: LinearFill, chosen: int = _CHOSEN) -> Int[np.ndarray, " P"]:
    """The order in which a group's units are to be pruned.

    Args:
      fill: the group's linear fill, see `jaxprune.fills.calibration.linear_fills`.
      chosen: units that are chosen one by one at the most. Those that are left are
        ordered by what each would still add.
    """
    parts: list[Consumer] = []
    for moments in fill.moments.values():
        channels = moments.channels
        parts += zip(
            _by_position(moments.covariance, channels),
            _by_position(moments.gram, channels),
            _by_position(moments.ridged - moments.covariance, channels),
            strict=True,
        )
    return forward_selection(parts, chosen)


def forward_selection(
    consumers: Iterable[Consumer], most: int = _CHOSEN
) -> Int[np.ndarray, " P"]:
    """Units in the order of pruning: the reverse of the order of being chosen.

    Args:
      consumers: C, G and lambda I of each.
      most: units that are chosen one by one.
    """
    states = [_State(*consumer, most) for consumer in consumers]
    chosen: list[int] = []
    gains = np.sum([state.gains() for state in states], axis=0)
    left = np.ones(len(gains), bool)
    while left.any() and len(chosen) < most:
        unit = int(np.argmax(np.where(left, gains, -1.0)))
        chosen.append(unit)
        left[unit] = False
        for state in states:
            state.choose(unit)
        gains = np.sum([state.gains() for state in states], axis=0)
    rest = np.flatnonzero(left)
    return np.array([*rest[np.argsort(gains[rest], kind="stable")], *chosen[::-1]])


class _State:
    """One consumer's covariance and Gram matrix, and what the chosen units leave."""

    def __init__(
        self, covariance: np.ndarray, gram: np.ndarray, ridge: np.ndarray, most: int
    ):
        self.covariance, self.gram, self.ridge = covariance, gram, np.diag(ridge)
        self.variance = np.diag(covariance).copy()
        product = covariance @ gram
        self.unexplained = np.einsum("ij,ij->i", product, covariance)
        self.error = np.trace(product)
        self.factor = np.empty((len(gram), min(len(gram), most)))
        self.chosen = 0

    def gains(self) -> Float[np.ndarray, " P"]:
        """By how much each unit would lower the error, relative to that at first."""
        if self.error <= 0:
            return np.zeros(len(self.variance))
        # Rounding can make what is left of a unit negative.
        explained = np.maximum(self.unexplained, 0) / (self.variance + self.ridge)
        return explained / self.error

    def choose(self, unit: int) -> None:
        """Takes what a unit explains out of the others."""
        factor = self.factor[:, : self.chosen]
        column = self.covariance[:, unit] - factor @ factor[unit]
        column /= np.sqrt(self.variance[unit] + self.ridge[unit])
        weighted = self.gram @ column
        # The residual covariance times that.
        moved = self.covariance @ weighted - factor @ (factor.T @ weighted)
        self.unexplained += column * (column * (weighted @ column) - 2 * moved)
        self.variance = np.maximum(self.variance - column**2, 0)
        self.factor[:, self.chosen] = column
        self.chosen += 1


def _by_position(
    matrix: Float[np.ndarray, "G Q Q"], channels: int
) -> Float[np.ndarray, "R P P"]:
    """Of a matrix over groups of features, those of each position by itself."""
    held = matrix.shape[-1] // channels
    shape = (len(matrix), held, channels, held, channels)
    blocks = np.einsum("grprq->grpq", matrix.reshape(shape))
    return blocks.reshape(-1, channels, channels)
