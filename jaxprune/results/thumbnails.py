"""Small pictures of the images that pruning loses or wins, kept with a sweep.

Whoever looks at a sweep later has its files alone, not the images it was made on.

Axes: K masks, N images, T thumbnails of h x w pixels.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8
from PIL import Image

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.data.splits import Split

# Images of a kind, lost or won, that are shown at one K.
SHOWN = 24

# Of the longer side, and of all thumbnails together.
_LARGEST_SIDE = 64
_PIXELS = 2**20

# Images of a split whose numbers' range is taken for that of all.
_LOOKED_AT = 500


class Thumbnails(NamedTuple):
    """Pictures of some images.

    Attributes:
      images: their numbers, ascending.
      pixels: grey (c = 1) or in colour (c = 3).
    """

    images: Int[np.ndarray, " T"]
    pixels: UInt8[np.ndarray, "T h w c"]


def first_flip(right: Bool[np.ndarray, "K N"]) -> Int[np.ndarray, " N"]:
    """The first row in which an image is right where it was wrong, or wrong; K if none.

    >>> first_flip(np.array([[True, False, True], [True, True, True]]))
    array([2, 1, 2])
    """
    flipped = right != right[0]
    return np.where(flipped.any(0), flipped.argmax(0), len(right))


def shown(right: Bool[np.ndarray, "K N"], limit: int = SHOWN) -> Int[np.ndarray, " T"]:
    """The images that are shown at some K, those that flip first before others.

    At a K that is `limit` images of those lost, right at first and wrong now, and as
    many of those won: the ones that flip at the lowest K.

    Args:
      right: whether an image is predicted right; the first row is the baseline.
      limit: images of a kind.
    """
    first = first_flip(right)
    by_first = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(right))]
    flipped = right[:, by_first] != right[0, by_first]
    seen = np.zeros(len(by_first), bool)
    for before in (True, False):
        kind = flipped & (right[0, by_first] == before)
        seen |= (kind & (kind.cumsum(1) <= limit)).any(0)
    return by_first[seen]


def moved(
    losses: Float[np.ndarray, "K N"], limit: int = SHOWN
) -> Int[np.ndarray, " T"]:
    """The images whose loss rises, or falls, most at some K; the most often ones first.

    At a K that is `limit` images of either kind.
    """
    change = losses - losses[0]
    count = np.zeros(losses.shape[1], int)
    for sign in (-1, 1):
        most = np.argsort(sign * change, axis=1, kind="stable")[:, :limit]
        np.add.at(count, most[np.take_along_axis(sign * change, most, 1) < 0], 1)
    return np.argsort(-count, kind="stable")[: np.count_nonzero(count)]


def of_split(split: Split, images: Int[np.ndarray, " n"]) -> Thumbnails:
    """Pictures of the first of these images, as many as the bound on pixels allows.

    Three channels are red, green and blue, of four the first three are. Other numbers
    of channels, and the several images of an example, stand side by side in grey.
    Bytes are brightness as they are; other numbers go from black, the split's lowest,
    to white, its highest.
    """
    height, width, channels = split.image_shape
    parts = split.sources.shape[1]
    colour = channels // parts in (3, 4)
    across = parts if colour else min(channels, 4)
    shrink = max(1.0, max(height, width * across) / _LARGEST_SIDE)
    small = [max(1, round(side / shrink)) for side in (width * across, height)]
    count = min(len(images), max(1, _PIXELS // (small[0] * small[1])))
    chosen = np.sort(images[:count])
    if not len(chosen):
        empty = np.zeros((0, small[1], small[0], 3 if colour else 1), np.uint8)
        return Thumbnails(chosen, empty)
    examples = split.read(chosen)
    by_part = np.split(examples, parts, axis=-1)
    if colour:
        flat = np.concatenate([part[..., :3] for part in by_part], axis=2)
    else:
        single = np.split(examples[..., :across], across, axis=-1)
        flat = np.concatenate(single, axis=2)
    if flat.dtype != np.uint8:
        flat = _brightness(flat, *_range(split, chosen))
    drawn = [_resize(image, (small[0], small[1])) for image in flat]
    return Thumbnails(chosen, np.stack(drawn))


def _range(split: Split, chosen: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """The lowest and highest number of a split: of some of it, where it is large."""
    spread = np.linspace(0, len(split) - 1, _LOOKED_AT).astype(int)
    examples = (split.read(i[None]) for i in np.union1d(spread, chosen))
    ends = [(float(each.min()), float(each.max())) for each in examples]
    return min(low for low, _ in ends), max(high for _, high in ends)


def check(images: Any, pixels: Any, total: int) -> None:
    """Raises InputError if these are no thumbnails of some of `total` images."""
    arguments.check_labels("thumbnail_images", images, total)
    if (np.diff(images) <= 0).any() or len(images) != len(pixels):
        raise InputError(
            f"thumbnails must be one for each of thumbnail_images, which ascend; got "
            f"{len(pixels)} for {len(images)}"
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise InputError(
            f"thumbnails must be uint8 [T, h, w, 1 or 3], got {pixels.dtype} of shape "
            f"{pixels.shape}"
        )


def _brightness(
    images: Num[np.ndarray, "T H W c"], low: float, high: float
) -> UInt8[np.ndarray, "T H W c"]:
    values = np.asarray(images, np.float32)
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return np.round(scaled).astype(np.uint8)


def _resize(
    image: UInt8[np.ndarray, "H W c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w c"]:
    """One image at `size`, width first."""
    if image.shape[1::-1] == size:
        return image
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    small = np.asarray(picture.resize(size, Image.Resampling.BOX))
    return small[..., None] if grey else small
