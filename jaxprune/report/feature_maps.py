"""Figure of a layer's mean feature maps, one tile for each of P channels."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxprune.results.base import BaseResult

ORDERS = ("channel", "rank")
SCALES = ("shared", "each")


def grid_shape(p: int) -> tuple[int, int]:
    """Rows and columns of a grid of p tiles, about 3 : 5.

    >>> grid_shape(60), grid_shape(128), grid_shape(512)
    ((6, 10), (8, 16), (16, 32))
    """
    exact = [rows for rows in range(1, p + 1) if p % rows == 0 and rows * rows <= p]
    rows = exact[-1]
    if p / rows > 3 * rows:  # a prime, or nearly: leave tiles free instead
        rows = max(1, round((p * 0.6) ** 0.5))
    return rows, -(-p // rows)


def feature_maps(
    result: BaseResult, *, order: str = "channel", normalize: str = "shared"
) -> Figure:
    """The P mean feature maps as a grid of tiles.

    Args:
      result: the sweep.
      order: "channel", by channel index; "rank", the channel pruned first comes first.
      normalize: "shared", one scale with a colour bar; "each", every tile from its own
        minimum (black) to its own maximum (white).
    """
    maps = np.moveaxis(result.mean_feature_map, -1, 0)
    if order == "rank":
        maps = maps[result.order]
    if normalize == "each":
        low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        maps = (maps - low) / np.where(high > low, high - low, 1)
    rows, columns = grid_shape(len(maps))
    image, tile = _mosaic(maps, rows, columns)
    shape = image.shape
    width = 11.0
    figure = Figure(figsize=(width, width * shape[0] / shape[1] * 0.92 + 1), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    colours: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
    if normalize == "shared":
        limit = np.abs(maps).max()
        signed = maps.min() < 0
        colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        if not signed:
            colours = {"cmap": "viridis", "vmin": 0, "vmax": limit}
    drawn = axes.imshow(image, interpolation="nearest", **colours)
    # Grey tiles run up to white: gaps of a colour keep their edges visible.
    axes.set_facecolor("white" if normalize == "shared" else "lightsteelblue")
    axes.set_yticks(
        tile[0] * (np.arange(rows) + 0.5), [str(r * columns) for r in range(rows)]
    )
    step = -(-columns // 16)
    axes.set_xticks(
        tile[1] * (np.arange(0, columns, step) + 0.5),
        [f"+{c}" for c in range(0, columns, step)],
    )
    axes.tick_params(length=0)
    axes.set_ylabel("rank (0 is pruned first)" if order == "rank" else "channel")
    for spine in axes.spines.values():
        spine.set_visible(False)
    h, w = maps.shape[1:]
    scale = ", each tile on its own scale" if normalize == "each" else ""
    ranked = f" by {result.about.get('criterion', 'score')}" if order == "rank" else ""
    what = f"mean feature maps{ranked}, {h} x {w} each{scale}"
    axes.set_title(f"{result.subject}: {what}")
    if normalize == "shared":
        figure.colorbar(drawn, label="mean activation", shrink=0.8, pad=0.01)
    return figure


def _mosaic(
    maps: Float[np.ndarray, "P H W"], rows: int, columns: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Tiles in a grid, enlarged so that gaps are thin; NaN between and behind them."""
    p, h, w = maps.shape
    scale = max(1, -(-24 // max(h, w)))
    gap = max(2, scale * max(h, w) // 12)
    tiles = np.full((rows * columns, h * scale + gap, w * scale + gap), np.nan)
    tiles[:p, : h * scale, : w * scale] = maps.repeat(scale, 1).repeat(scale, 2)
    height, width = tiles.shape[1:]
    grid = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width), (height, width)
