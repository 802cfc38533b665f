"""Labels that are tied: a union-find over NumPy arrays."""

from typing import Any

import numpy as np
from jaxtyping import Int

# The label of what stays: the batch, positions, the network's results.
STAYS = 0
_GOES = np.iinfo(np.int64).max


class Unions:
    """Labels that are tied, as sets that grow together; a set may have to stay."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, np.int64)
        # By the lowest label of a set, the number of the reason why it stays.
        self._why = np.full(1024, _GOES)
        self.reasons = ["it is neither a layer's channel nor tied to one"]
        self._why[STAYS] = 0
        self._ties: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.count = 1

    def new(self, size: Any) -> Int[np.ndarray, " n"]:
        """So many labels, each by itself."""
        first, self.count = self.count, self.count + size
        while self.count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._why = np.concatenate([self._why, np.full_like(self._why, _GOES)])
        labels = np.arange(first, self.count)
        self._parent[first : self.count] = labels
        return labels

    def find(self, labels: Any) -> np.ndarray:
        """The lowest label of each one's set."""
        labels = np.atleast_1d(labels)
        found = self._parent[labels]
        while (found != (above := self._parent[found])).any():
            found = above
        self._parent[labels] = found
        return found

    def roots(self, labels: Any) -> np.ndarray:
        """The lowest label of each one's set; 0 where it stays."""
        found = self.find(labels)
        return np.where(self._why[found] < _GOES, STAYS, found)

    def stay(self, labels: np.ndarray, reason: str) -> None:
        """Whatever is tied to these labels stays."""
        found = self.find(labels)
        found = found[self._why[found] == _GOES]
        if found.size:
            self.reasons.append(reason)
            self._why[found] = len(self.reasons) - 1

    def tie(self, a: np.ndarray, b: np.ndarray, where: str = "") -> None:
        """Ties labels that stand in the same place, because of what is done there.

        What would be tied to label 0 itself stays.
        """
        a, b = (side.ravel() for side in np.broadcast_arrays(a, b))
        for side, other in ((a, b), (b, a)):
            reason = f"{where} joins them with the input or positions"
            self.stay(side[other == STAYS], reason)
        inside = (a != STAYS) & (b != STAYS)
        a, b = a[inside], b[inside]
        while True:
            one, other = self.find(a), self.find(b)
            differs = one != other
            if not differs.any():
                return
            low, high = np.minimum(one, other)[differs], np.maximum(one, other)[differs]
            self._parent[high] = low
            self._ties.append((low, high, where))
            np.minimum.at(self._why, low, self._why[high])

    def reason(self, label: int) -> str:
        """Why a label stays."""
        return self.reasons[self._why[self.find(label)[0]]]

    def where_tied(self, labels: np.ndarray) -> str:
        """The operation that ties the first two of different labels."""
        again = Unions()
        again.new(self.count - 1)
        labels = np.unique(labels)
        for low, high, where in self._ties:
            again.tie(low, high)
            if len(np.unique(again.find(labels))) < len(labels):
                return where
        raise KeyError("they are not tied")
