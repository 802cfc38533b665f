"""From scores to masks: the order in which channels are pruned.

Knows nothing of networks. Axes: P channels, K masks.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune._base import arguments
from jaxprune._base.errors import InputError


def pruning_order(scores: Float[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
    """Channels in ascending order of score, equal scores in order of channel index.

    Raises:
      InputError: the scores are not one finite real number for each channel.

    >>> pruning_order(np.array([0.5, 0.0, 0.5, 0.1]))
    array([1, 3, 0, 2])
    """
    scores = arguments.check_numbers("scores", scores, (np.size(scores),))
    return np.argsort(scores, kind="stable")


def prefix_masks(
    order: Int[np.ndarray, " P"], ks: Sequence[int] | None = None
) -> Bool[np.ndarray, "K P"]:
    """Masks that keep all but the first k channels of `order`, one for each k.

    Args:
      order: channels, the first to be pruned first; a permutation of 0 .. P-1.
      ks: strictly ascending counts of pruned channels in 0 .. P-1; by default all.

    Raises:
      InputError: `order` is no permutation; `ks` is empty, unordered or out of range.

    >>> prefix_masks(np.array([2, 0, 1])).astype(int)
    array([[1, 1, 1],
           [1, 1, 0],
           [0, 1, 0]])
    """
    p = np.size(order)
    order = check_order(order, p)
    ks = check_ks(range(p) if ks is None else ks, p)
    rank = np.empty(p, int)
    rank[order] = np.arange(p)
    return rank >= np.asarray(ks)[:, None]


def check_order(order: Any, p: int) -> Int[np.ndarray, " P"]:
    """`order` as an array, if a permutation of 0 .. p-1; else InputError."""
    array = np.asarray(order)
    whole = array.dtype.kind in "iu" and array.shape == (p,)
    if not whole or (np.sort(array) != np.arange(p)).any():
        raise InputError(
            f"an order must hold each of the channels 0 .. {p - 1} once, got "
            f"{array.dtype} {array.shape}: {array.ravel()[:8].tolist()}"
        )
    return array


def check_ks(ks: Any, p: int) -> tuple[int, ...]:
    """`ks` as a tuple, if strictly ascending integers within 0 .. p-1; else InputError.

    Looks at the ends first: a range may be longer than memory.
    """
    try:
        first, last = index(ks[0]), index(ks[-1])
        if 0 <= min(first, last) <= max(first, last) < p:
            every = tuple(index(k) for k in ks)
            if any(isinstance(k, bool) for k in ks):
                raise TypeError
            first, last = min(every), max(every)
    except IndexError:
        raise InputError("no K to evaluate: the list of ks is empty") from None
    except (TypeError, KeyError):
        raise InputError(
            f"ks must be integers, how many channels to prune; got {_short(ks)}"
        ) from None
    if min(first, last) < 0 or max(first, last) >= p:
        raise InputError(
            f"K counts pruned channels and must lie in 0 .. {p - 1}: the layer has "
            f"{p} channels, got K from {min(first, last)} to {max(first, last)}"
        )
    if any(a >= b for a, b in pairwise(every)):
        raise InputError(f"ks must be strictly ascending, got {list(every)}")
    return every


def _short(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
