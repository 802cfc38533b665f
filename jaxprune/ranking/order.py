"""From scores to masks: the order in which channels are pruned.

Knows nothing of networks. Axes: P channels, K masks.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune.errors import InputError


def pruning_order(scores: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
    """Channels in ascending order of score, equal scores in order of channel index.

    Raises:
      InputError: a score is not finite.

    >>> pruning_order(np.array([0.5, 0.0, 0.5, 0.1]))
    array([1, 3, 0, 2])
    """
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise InputError(f"the scores of channels {bad.tolist()} are not finite")
    return np.argsort(scores, kind="stable")


def prefix_masks(
    order: Int[np.ndarray, " P"], ks: Sequence[int] | None = None
) -> Bool[np.ndarray, "K P"]:
    """Masks that keep all but the first k channels of `order`, one for each k.

    Args:
      order: channels, the first to be pruned first; a permutation of 0 .. P-1.
      ks: strictly ascending counts of pruned channels in 0 .. P-1; by default all.

    Raises:
      InputError: `ks` is empty, unordered or out of range.

    >>> prefix_masks(np.array([2, 0, 1])).astype(int)
    array([[1, 1, 1],
           [1, 1, 0],
           [0, 1, 0]])
    """
    p = len(order)
    ks = check_ks(range(p) if ks is None else ks, p)
    rank = np.empty(p, int)
    rank[order] = np.arange(p)
    return rank >= np.asarray(ks)[:, None]


def check_ks(ks: Sequence[int], p: int) -> tuple[int, ...]:
    """`ks` as a tuple, if strictly ascending within 0 .. p-1; else InputError."""
    ks = tuple(int(k) for k in ks)
    if not ks:
        raise InputError("no K to evaluate: the list of ks is empty")
    if min(ks) < 0 or max(ks) >= p:
        raise InputError(
            f"K counts pruned channels and must lie in 0 .. {p - 1}: the layer has "
            f"{p} channels, got K from {min(ks)} to {max(ks)}"
        )
    if any(a >= b for a, b in pairwise(ks)):
        raise InputError(f"ks must be strictly ascending, got {list(ks)}")
    return ks
