"""3 x 3 convolutions by Winograd's minimal filtering: 16 products where 36 are usual.

An image is cut into 2 x 2 tiles of output, each read from 4 x 4 of input. With the
constant matrices below, Y = A [(G K G') * (B D B')] A' for each tile (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2016, F(2 x 2, 3 x 3)). The product
of each of the 16 entries, over all tiles and channels, is one matrix product.

Axes: N images, H x W positions, I and O channels in and out, T tiles of all images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

Grid = list[list[Array]]
Matrix = tuple[tuple[float, ...], ...]

_B: Matrix = (
    (1.0, 0.0, -1.0, 0.0),
    (0.0, 1.0, 1.0, 0.0),
    (0.0, -1.0, 1.0, 0.0),
    (0.0, 1.0, 0.0, -1.0),
)
_G: Matrix = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_A: Matrix = ((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0))

# Transforms are four times a feature map: beyond this number of bytes they are made for
# a part of the images at a time, in a loop whose body is compiled once.
_PART_BYTES = 2**25


def convolve(
    lhs: Float[Array, "N H W I"], rhs: Float[Array, "3 3 I O"], precision: Any
) -> Float[Array, "N H W O"]:
    """The stride-1 SAME convolution."""
    kernels = _transform(_G, [list(row) for row in rhs])
    n, h, w, _ = lhs.shape

    def some(images: Array) -> Array:
        def product(tiles: Array, kernel: Array) -> Array:
            rows = tiles.reshape(-1, tiles.shape[-1])
            rows = jnp.matmul(rows, kernel, precision=precision)
            return rows.reshape(*tiles.shape[:-1], -1)

        tiles = _transform(_B, _windows(images))
        y = _transform(_A, _zip(product, tiles, kernels))
        joined = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)
        rows, columns = joined.shape[1] * 2, joined.shape[3] * 2
        return joined.reshape(len(images), rows, columns, -1)[:, :h, :w]

    parts = lax.map(some, _parts(lhs, _images_at_once(lhs, rhs)))
    return parts.reshape(-1, *parts.shape[2:])[:n]


def kernel_gradient(
    lhs: Float[Array, "N H W I"], gradient: Float[Array, "N H W O"], precision: Any
) -> Float[Array, "3 3 I O"]:
    """The gradient for the kernel, through the same 16 products."""
    _, h, w, _ = lhs.shape

    def some(images: Array, gradient: Array) -> Grid:
        def product(tiles: Array, outputs: Array) -> Array:
            rows, columns = (a.reshape(-1, a.shape[-1]) for a in (tiles, outputs))
            return jnp.matmul(rows.T, columns, precision=precision)

        even = jnp.pad(gradient, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        quarters = [[even[:, i::2, j::2] for j in range(2)] for i in range(2)]
        outputs = _transform(_transposed(_A), quarters)
        return _zip(product, _transform(_B, _windows(images)), outputs)

    def added(sums: Grid, part: tuple[Array, Array]) -> tuple[Grid, None]:
        return _zip(jnp.add, sums, some(*part)), None

    size = _images_at_once(lhs, gradient)
    parts = _parts(lhs, size), _parts(gradient, size)
    zero = jnp.zeros((lhs.shape[-1], gradient.shape[-1]), lhs.dtype)
    whole, _ = lax.scan(added, [[zero] * 4] * 4, parts)
    grid = _transform(_transposed(_G), whole)
    return jnp.stack([jnp.stack(row) for row in grid])


def _images_at_once(lhs: Array, other: Array) -> int:
    n, h, w, c = lhs.shape
    image = 4 * h * w * max(c, other.shape[-1]) * lhs.dtype.itemsize
    parts = -(-n * image // _PART_BYTES)
    return -(-n // min(n, parts))


def _parts(images: Array, size: int) -> Array:
    """So many images at a time [P, size, ...], zeros filling the last part."""
    parts = -(-len(images) // size)
    ends = [(0, parts * size - len(images)), *[(0, 0)] * (images.ndim - 1)]
    return jnp.pad(images, ends).reshape(parts, size, *images.shape[1:])


def _windows(images: Array) -> Grid:
    """The 4 x 4 inputs of every tile: entry (i, j) of all of them, [N, H/2, W/2, I]."""
    h, w = images.shape[1:3]
    x = jnp.pad(images, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    # Else XLA works out all that led to x again in each of the 16 sums, and compiles
    # the layers before as often.
    x = lax.optimization_barrier(x)
    h, w = h + h % 2, w + w % 2
    return [[x[:, i : i + h : 2, j : j + w : 2] for j in range(4)] for i in range(4)]


def _transform(matrix: Matrix, grid: Grid) -> Grid:
    """matrix @ grid @ matrix', where the grid's entries are arrays."""
    columns = [_combine(matrix, column) for column in zip(*grid, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: Matrix, arrays: Sequence[Array]) -> list[Array]:
    def weighted(row: Sequence[float]) -> Array:
        terms = [a if c == 1 else c * a for c, a in zip(row, arrays, strict=True) if c]
        return sum(terms[1:], start=terms[0])

    return [weighted(row) for row in matrix]


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _zip(function: Callable[[Array, Array], Array], a: Grid, b: Grid) -> Grid:
    return [
        [function(x, y) for x, y in zip(*rows, strict=True)]
        for rows in zip(a, b, strict=True)
    ]
