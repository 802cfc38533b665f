r"""Rules of other papers, as masks of this library; nothing is trained.

Which units go, and what makes up for them:

- magnitude: those whose filters have the smallest norm; they are dropped.
- GRAIL 2026: those with the smallest norm, or the smallest sum of |weight| |input| over
  the layers that read them (Wanda, Sun et al. 2024); ridge regression on those that are
  left makes up for them, with a ridge of 1e-3 of the mean variance.
- LinDeps 2025: those that a QR decomposition with pivots of the activations takes last;
  least squares make up for them.
- folding (Wang et al. 2024): filters are clustered by k-means, and each becomes the
  mean of its cluster, with its bias and BatchNorm.

These are the rules alone: each regression is our linear fill, which has a constant,
too, and is fitted to the whole network's activations; no statistics are estimated
again.

Axes: P units of a group, F input features of a layer, U output channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg
from sklearn.cluster import KMeans

from jaxprune.fills.calibration import linear_fills
from jaxprune.fills.fill import LinearFill
from jaxprune.fills.masked import Mask, layer_bias, make_pruning
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.network import Network

# GRAIL's ridge, and one that only keeps least squares solvable.
_RIDGE, _LEAST_SQUARES = 1e-3, 1e-6

Widths = Mapping[str, int]


class Pruned(NamedTuple):
    """A network with some of its units pruned.

    Attributes:
      arrays: by path.
      masks: of its groups.
    """

    arrays: Mapping[str, Any]
    masks: Sequence[Mask]


@dataclass(frozen=True)
class Peers:
    """The rules of others for one network.

    Attributes:
      network: the network.
      groups: those that are pruned, by name.
      fills: of each group, fitted on calibration images.
    """

    network: Network
    groups: Mapping[str, PruningGroup]
    fills: Mapping[str, LinearFill]

    @classmethod
    def fitted(
        cls, network: Network, groups: Mapping[str, PruningGroup], images: Any
    ) -> "Peers":
        """With fills of calibration images [N, ...]."""
        fills = linear_fills(network, images, groups.values(), ridge=_RIDGE)
        return cls(network, groups, fills)

    @property
    def rules(self) -> dict[str, Callable[[Widths], Pruned]]:
        """By name: units that each group keeps -> the network."""
        return {
            "magnitude": lambda w: self._ordered(w, self._magnitude, None),
            "GRAIL, magnitude": lambda w: self._ordered(w, self._magnitude, _RIDGE),
            "GRAIL, Wanda": lambda w: self._ordered(w, self._wanda, _RIDGE),
            "LinDeps": lambda w: self._ordered(w, self._pivots, _LEAST_SQUARES),
            "folding": self._folded,
        }

    def _ordered(
        self,
        widths: Widths,
        score: Callable[[PruningGroup], Float[np.ndarray, " P"]],
        ridge: float | None,
    ) -> Pruned:
        """The units of the highest scores are kept; a fill makes up for the others."""
        masks = []
        for name, width in widths.items():
            group = self.groups[name]
            keep = np.zeros(group.units, bool)
            keep[np.argsort(-score(group), kind="stable")[:width]] = True
            fill = "drop" if ridge is None else _with_ridge(self.fills[name], ridge)
            if not keep.all():
                masks.append(make_pruning(self.network, group, keep, fill).mask)
        return Pruned(self.network.arrays, masks)

    def _magnitude(self, group: PruningGroup) -> Float[np.ndarray, " P"]:
        """The norm of all filters of a unit."""
        square = np.zeros(group.units)
        for name, owner in group.producers.items():
            kernel = self.network.kernel(name)
            of_channels = np.square(kernel).reshape(-1, kernel.shape[-1]).sum(0)
            _add(square, owner, of_channels)
        return np.sqrt(square)

    def _wanda(self, group: PruningGroup) -> Float[np.ndarray, " P"]:
        """The sum of |weight| |input| over all that reads a unit."""
        total = np.zeros(group.units)
        for name, moments in self.fills[group.name].moments.items():
            kernel = self.network.kernel(name)
            rows = np.abs(kernel).sum(-1).reshape(-1, kernel.shape[-2]).sum(0)
            variance = np.diagonal(moments.covariance, axis1=1, axis2=2)
            norm = np.sqrt(np.square(moments.mean) + variance)
            for features, norms in zip(moments.features, norm, strict=True):
                _add(total, moments.owner, rows[features] * norms)
        return total

    def _pivots(self, group: PruningGroup) -> Float[np.ndarray, " P"]:
        """How early a QR decomposition with pivots takes a unit's activations."""
        products = np.zeros((group.units, group.units))
        for moments in self.fills[group.name].moments.values():
            products += _of_channels(moments.ridged, moments.channels)
        factor = linalg.cholesky(products)
        _, pivots = linalg.qr(factor, mode="r", pivoting=True)
        return -np.argsort(pivots).astype(float)

    def _folded(self, widths: Widths) -> Pruned:
        """Every filter becomes the mean of its cluster."""
        arrays = {n: np.array(a) for n, a in self.network.arrays.items()}
        for name, width in widths.items():
            group = self.groups[name]
            if width == group.units:
                continue
            kmeans = KMeans(width, n_init=1, random_state=0)
            cluster = kmeans.fit(self._filters(group)).labels_
            for path, axis, owner in self._made_of(group):
                arrays[path] = _averaged(arrays[path], axis, owner, cluster)
        return Pruned(arrays, ())

    def _filters(self, group: PruningGroup) -> Float[np.ndarray, "P _"]:
        """The filters and biases of each unit, side by side."""
        parts = []
        for name, owner in group.producers.items():
            layer, kernel = self.network.layers[name], self.network.kernel(name)
            flat = kernel.reshape(-1, kernel.shape[-1])
            whole = np.vstack([flat, layer_bias(self.network, layer)])
            by_unit = np.argsort(np.where(owner < 0, group.units, owner), kind="stable")
            held = by_unit[: np.count_nonzero(owner >= 0)]
            parts.append(whole[:, held].T.reshape(group.units, -1))
        return np.concatenate(parts, axis=1)

    def _made_of(
        self, group: PruningGroup
    ) -> list[tuple[str, int, Int[np.ndarray, " _"]]]:
        """Axes of the arrays that units are made of, and not of those that read them.

        What reads equal channels may keep its weights as they are.
        """
        layers = self.network.layers
        read = {
            (layers[name].leaf, axis)
            for name in group.consumers
            for axis in layers[name].axes.kernel_features
        }
        return [
            (path, axis, owner)
            for (path, axis), owner in group.leaves.items()
            if (path, axis) not in read
        ]


def _with_ridge(fill: LinearFill, ridge: float) -> LinearFill:
    moments = {name: replace(m, ridge=ridge) for name, m in fill.moments.items()}
    return replace(fill, moments=moments)


def _add(total: np.ndarray, owner: np.ndarray, values: np.ndarray) -> None:
    """Adds values to those of the units that they belong to."""
    there = owner >= 0
    np.add.at(total, owner[there], values[there])


def _of_channels(
    matrix: Float[np.ndarray, "G Q Q"], channels: int
) -> Float[np.ndarray, "P P"]:
    """Products of channels: summed over the positions that hold them."""
    groups, features = matrix.shape[:2]
    held = features // channels
    apart = matrix.reshape(groups, held, channels, held, channels)
    return np.einsum("grprq->pq", apart)


def _averaged(
    array: np.ndarray, axis: int, owner: np.ndarray, cluster: np.ndarray
) -> np.ndarray:
    """An array whose rows are the means of those of their cluster.

    Where a unit has several rows, the first is averaged with the firsts, and so on.
    """
    rows = np.moveaxis(array, axis, 0).copy()
    there = np.flatnonzero(owner >= 0)
    by_unit = there[np.argsort(owner[there], kind="stable")].reshape(len(cluster), -1)
    for one in np.unique(cluster):
        members = by_unit[cluster == one]
        rows[members] = rows[members].mean(0)
    return np.moveaxis(rows, 0, axis)
