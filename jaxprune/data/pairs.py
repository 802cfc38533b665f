"""Pairs of digits: two images stacked, and whether they show the same digit."""

import numpy as np

from jaxprune._base.errors import InputError
from jaxprune.data.splits import Split


def pair_split(split: Split, count: int, rng: np.random.Generator) -> Split:
    """Pairs of a split's images: every tenth shows the same digit twice.

    A pair is two different images in a random order; the same pair may be drawn
    twice. Pairs are shuffled.

    Raises:
      InputError: fewer than 10 pairs, or images that cannot form both kinds.
    """
    if count < 10:
        raise InputError(f"1 : 9 pairs need at least 10 pairs, got {count}")
    by_class = np.argsort(split.labels, kind="stable")
    labels = split.labels[by_class]
    size = np.bincount(labels)
    if np.count_nonzero(size) < 2 or (size == 1).any():
        raise InputError(
            "pairs need two images each of at least two digits, got "
            f"{size.tolist()} images of digits 0 .. {len(size) - 1}"
        )
    # Images lie in a circle, class by class: those of another class are the arc that
    # begins where the first image's class ends.
    begin = (np.cumsum(size) - size)[labels]
    size = size[labels]
    same = np.arange(count) < count // 10
    first = rng.integers(len(labels), size=count)
    n, start = size[first], begin[first]
    twin = start + (first - start + rng.integers(1, n)) % n
    other = (start + n + rng.integers(0, len(labels) - n)) % len(labels)
    pairs = by_class[np.stack([first, np.where(same, twin, other)], axis=1)]
    shuffled = rng.permutation(count)
    return Split(
        split.images,
        split.sources[pairs[shuffled], 0],
        same[shuffled].astype(np.int64),
        ("different", "same"),
    )
