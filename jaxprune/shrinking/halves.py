"""Orders of pruning and fills for loss curves, judged on images they are not made of.

A few hundred images tell little of hundreds of channels. A fill that has learnt them by
heart seems to cost nothing on them; and a channel that none of them needs, as one of a
class that is not among them, seems to be free. So the images are halved. What an order
and a fill of one half cost is asked of the other half, and the ridge is the one whose
fills predict the other half best.

Axes: P units, G groups of Q features as in `jaxprune.fills.linear`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from scipy import linalg

from jaxprune._base.batch import size_of, take
from jaxprune.fills.calibration import linear_fills
from jaxprune.fills.fill import LinearFill
from jaxprune.fills.linear import Moments, Nested
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.network import Network
from jaxprune.shrinking.selection import selection_order

# Ridges to choose from, in units of the mean variance; pruned features that they are
# compared on, at the most.
_RIDGES, _PREDICTED = (1e-3, 1e-2, 1e-1, 1.0, 10.0), 256
# Units of a half's order that are chosen one by one.
_CHOSEN = 256


class Half(NamedTuple):
    """Half of the calibration images.

    Attributes:
      images: the images.
      fills: of each group, by its name, fitted on the other half.
      orders: of pruning of each group's units, as the other half has it.
    """

    images: Any
    fills: dict[str, LinearFill]
    orders: dict[str, Int[np.ndarray, " P"]]

    def nested(self, group: str) -> dict[str, Nested]:
        """The fill of a group at its consumers, of all widths."""
        return self.fills[group].nested(self.orders[group])


def halves(
    network: Network, images: Any, groups: Iterable[PruningGroup], mesh: Mesh
) -> tuple[dict[str, Int[np.ndarray, " P"]], list[Half]]:
    """Fits the fills of both halves of the images.

    Args:
      network: the network.
      images: calibration images.
      groups: of its channels.
      mesh: the devices. Several processes give the same images, and run a share each.

    Returns:
      The order of pruning of each group's units, by its name, as all images have it;
      and the halves.
    """
    groups = list(groups)
    second = np.random.default_rng(0).permutation(size_of(images)) % 2 == 1
    parts = [take(images, np.flatnonzero(which)) for which in (~second, second)]
    # Whichever ridge is given here, the moments are the same.
    fits = [
        linear_fills(network, part, groups, ridge=_RIDGES[0], mesh=mesh)
        for part in parts
    ]
    share = float(second.mean())
    orders: dict[str, np.ndarray] = {}
    found = [Half(part, {}, {}) for part in reversed(parts)]
    for group in groups:
        moments = [own[group.name].moments for own in fits]
        ridge = _best_ridge(*moments)
        fills = [
            LinearFill(
                "linear", moments={n: replace(m, ridge=ridge) for n, m in own.items()}
            )
            for own in moments
        ]
        for half, fill in zip(found, fills, strict=True):
            half.fills[group.name] = fill
            half.orders[group.name] = selection_order(fill, _CHOSEN)
        first, last = fills
        orders[group.name] = selection_order(_pooled(first, last, share))
    return orders, found


def _best_ridge(first: Mapping[str, Moments], second: Mapping[str, Moments]) -> float:
    """The ridge with which each half predicts what consumers are given in the other."""
    errors = np.zeros(len(_RIDGES))
    for name in first:
        for fit, other in ((first, second), (second, first)):
            errors += _errors(fit[name], other[name], _RIDGES)
    return _RIDGES[int(np.argmin(errors))]


def _errors(
    fit: Moments, other: Moments, ridges: Sequence[float]
) -> Float[np.ndarray, " R"]:
    """Errors at a consumer's output, with half of its units pruned.

    Relative to those with their means in the place of predictions.

    Args:
      fit: moments of the images that the regressions are fitted on.
      other: of those that they are to predict.
      ridges: to be compared.
    """
    keep = _largest_half(fit)[fit.owner]
    kept, pruned = np.flatnonzero(keep), np.flatnonzero(~keep)
    pruned = pruned[:: -(-len(pruned) // _PREDICTED)]
    errors, of_means = np.zeros(len(ridges)), 0.0
    for group, covariance in enumerate(fit.covariance):
        weights = fit.gram[group][np.ix_(pruned, pruned)]
        shift = other.mean[group] - fit.mean[group]
        seen = other.covariance[group] + np.outer(shift, shift)
        variance = np.trace(covariance) / len(covariance)
        if not variance:
            continue
        of_means += (seen[np.ix_(pruned, pruned)] * weights).sum()
        for i, ridge in enumerate(ridges):
            inside = covariance[np.ix_(kept, kept)].copy()
            inside[np.diag_indices_from(inside)] += ridge * variance
            a = linalg.solve(inside, covariance[np.ix_(kept, pruned)], assume_a="pos")
            cross = a.T @ seen[np.ix_(kept, pruned)]
            left = seen[np.ix_(pruned, pruned)] - cross - cross.T
            left += a.T @ seen[np.ix_(kept, kept)] @ a
            errors[i] += (left * weights).sum()
    return errors / of_means if of_means > 0 else errors


def _largest_half(moments: Moments) -> Bool[np.ndarray, " P"]:
    """The half of the units that their consumer gets most from."""
    power = np.einsum("gqq,gqq->q", moments.covariance, moments.gram)
    of_units = np.bincount(moments.owner, power, minlength=moments.channels)
    return np.argsort(np.argsort(of_units)) >= len(of_units) // 2


def _pooled(first: LinearFill, second: LinearFill, share: float) -> LinearFill:
    """The fill of all images, of which the second's are that share."""
    moments = {}
    for name, one in first.moments.items():
        other = second.moments[name]
        mean = (1 - share) * one.mean + share * other.mean
        covariance = (1 - share) * one.covariance + share * other.covariance
        between = one.mean - other.mean
        spread = between[:, :, None] * between[:, None, :]
        covariance += share * (1 - share) * spread
        moments[name] = replace(one, mean=mean, covariance=covariance)
    return LinearFill("linear", moments=moments)
