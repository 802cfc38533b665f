"""What pruned channels still send to a layer, where it has no bias to take that."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Offset:
    """A map that is added to what a layer returns; see `jaxprune.compaction.cut`.

    Attributes:
      rows: its different rows [R, C].
      index: the row of each position [*positions].
    """

    rows: np.ndarray
    index: np.ndarray

    @property
    def constant(self) -> np.ndarray | None:
        """The row that all positions have [C], if they have the same."""
        return self.rows[0] if len(self.rows) == 1 else None
