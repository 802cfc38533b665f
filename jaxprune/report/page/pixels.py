"""Pictures of the page, as data URLs: one mosaic for all tiles of a kind.

Axes: P channels, H x W positions, T thumbnails.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# Of one mosaic: more would make the page slow to load.
_PIXELS = 2**20
_COLOURS = 256


class Mosaic(NamedTuple):
    """Tiles of one size in one picture, row by row.

    Attributes:
      url: of the picture.
      columns: tiles in a row.
      height: of a tile, in pixels.
      width: of a tile.
    """

    url: str
    columns: int
    height: int
    width: int


class Maps(NamedTuple):
    """A layer's mean feature maps, a tile for each channel.

    Attributes:
      one: all tiles on one scale.
      each: each from its own lowest to its own highest.
      low: of the one scale.
      high: of the one scale.
      one_colours: of the one scale, from low to high.
      each_colours: of the others.
      block: a pixel is the mean over block x block positions.
    """

    one: Mosaic
    each: Mosaic
    low: float
    high: float
    one_colours: list[str]
    each_colours: list[str]
    block: int


def feature_maps(maps: Float[np.ndarray, "H W P"]) -> Maps:
    """Mosaics of the mean feature maps.

    Maps that are too many pixels together are made smaller by means over squares.
    """
    block = max(1, int(np.ceil(np.sqrt(maps.size / _PIXELS))))
    small = np.moveaxis(_means(maps, block), -1, 0)
    high = float(np.abs(maps).max()) or 1.0
    low, colours = (-high, "RdBu_r") if maps.min() < 0 else (0.0, "viridis")
    ends = [f(small, axis=(1, 2), keepdims=True) for f in (np.min, np.max)]
    spread = ends[1] - ends[0]
    each = (small - ends[0]) / np.where(spread > 0, spread, 1)
    return Maps(
        _mosaic(_levels((small - low) / (high - low)), colours),
        _mosaic(_levels(each), "viridis"),
        low, high, _stops(colours), _stops("viridis"), block,
    )  # fmt: skip


def thumbnails(pictures: Sequence[UInt8[np.ndarray, "h w c"]]) -> Mosaic:
    """A mosaic of pictures of one size."""
    tiles = np.stack(pictures)
    return _mosaic(tiles if tiles.shape[3] > 1 else tiles[..., 0])


def most_thumbnails(height: int, width: int) -> int:
    """How many of this size one mosaic takes."""
    return max(1, _PIXELS // (height * width))


def _means(maps: Float[np.ndarray, "H W P"], block: int) -> np.ndarray:
    """Means over squares of `block` x `block`; the last of a row may be smaller."""
    for axis in (0, 1):
        starts = np.arange(0, maps.shape[axis], block)
        sizes = np.diff(np.append(starts, maps.shape[axis]))
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        maps = np.add.reduceat(maps, starts, axis=axis) / sizes.reshape(shape)
    return maps


def _levels(share: Float[np.ndarray, "P h w"]) -> UInt8[np.ndarray, "P h w"]:
    return np.round(share * (_COLOURS - 1)).clip(0, _COLOURS - 1).astype(np.uint8)


def _mosaic(tiles: UInt8[np.ndarray, "T h w *c"], colours: str | None = None) -> Mosaic:
    """The tiles as a PNG, of a colour map where one is named."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    h, w, *rest = tiles.shape[1:]
    free = np.zeros((rows * columns - len(tiles), h, w, *rest), np.uint8)
    grid = np.concatenate([tiles, free]).reshape(rows, columns, h, w, *rest)
    joined = grid.swapaxes(1, 2).reshape(rows * h, columns * w, *rest)
    picture = Image.fromarray(joined)
    if colours is not None:
        picture.putpalette(_palette(colours, _COLOURS).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return Mosaic(f"data:image/png;base64,{data}", columns, h, w)


def _palette(colours: str, count: int) -> UInt8[np.ndarray, "n 3"]:
    colour_map = matplotlib.colormaps[colours]
    return colour_map(np.linspace(0, 1, count), bytes=True)[:, :3]


def _stops(colours: str) -> list[str]:
    """A few colours of the map, for the bar beside the tiles."""
    return ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in _palette(colours, 9)]
