"""3 x 3 convolutions by Winograd's minimal filtering: 16 products where 36 are usual.

An image is cut into 2 x 2 tiles of output, each read from 4 x 4 of input. With the
constant matrices below, Y = A [(G K G') * (B D B')] A' for each tile (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2016, F(2 x 2, 3 x 3)). The product
of each of the 16 entries, over all tiles and channels, is one matrix product; the 16
are one batched operation, as the transforms of all rows and of all columns are, so that
there is little to compile.

Axes: N images, H x W positions, I and O channels in and out, h x w tiles of an image,
T tiles of all images.
Entries of tiles, of input and of their products, are on the first two axes, the column
before the row.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

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
_PART_BYTES = 2**24


def convolve(
    lhs: Float[Array, "N H W I"], rhs: Float[Array, "3 3 I O"], precision: Any
) -> Float[Array, "N H W O"]:
    """The stride-1 SAME convolution."""
    n, h, w, _ = lhs.shape
    kernels = _transform(_G, rhs).reshape(16, *rhs.shape[2:])

    def some(images: Array) -> Array:
        tiles = _tiles(images)
        products = jnp.matmul(_as_rows(tiles), kernels, precision=precision)
        y = _transform(_A, products.reshape(*tiles.shape[:-1], -1))
        joined = y.transpose(2, 3, 0, 4, 1, 5)
        rows, columns = 2 * joined.shape[1], 2 * joined.shape[3]
        return joined.reshape(len(images), rows, columns, -1)[:, :h, :w]

    parts = lax.map(some, _parts(lhs, _images_at_once(lhs, rhs)))
    return parts.reshape(-1, *parts.shape[2:])[:n]


def kernel_gradient(
    lhs: Float[Array, "N H W I"], gradient: Float[Array, "N H W O"], precision: Any
) -> Float[Array, "3 3 I O"]:
    """The gradient for the kernel, through the same 16 products."""
    _, h, w, _ = lhs.shape

    def added(sums: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        images, gradient = part
        even = jnp.pad(gradient, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        rows = _combine(_transposed(_A), [even[:, i::2] for i in range(2)])
        columns = [rows[:, :, :, j::2] for j in range(2)]
        outputs = _as_rows(_combine(_transposed(_A), columns))
        tiles = _as_rows(_tiles(images)).swapaxes(1, 2)
        return sums + jnp.matmul(tiles, outputs, precision=precision), None

    size = _images_at_once(lhs, gradient)
    zero = jnp.zeros((16, lhs.shape[-1], gradient.shape[-1]), lhs.dtype)
    sums, _ = lax.scan(added, zero, (_parts(lhs, size), _parts(gradient, size)))
    return _transform(_transposed(_G), sums.reshape(4, 4, *zero.shape[1:]))


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


def _tiles(images: Float[Array, "N H W I"]) -> Float[Array, "4 4 N h w I"]:
    """B D B' of every tile."""
    h, w = images.shape[1:3]
    x = jnp.pad(images, ((0, 0), (1, 1 + h % 2), (1, 1 + w % 2), (0, 0)))
    h, w = h + h % 2, w + w % 2
    rows = _combine(_B, [x[:, i : i + h : 2] for i in range(4)])
    return _combine(_B, [rows[:, :, :, j : j + w : 2] for j in range(4)])


def _as_rows(tiles: Float[Array, "4 4 N h w C"]) -> Float[Array, "16 T C"]:
    return tiles.reshape(16, -1, tiles.shape[-1])


def _transform(matrix: Matrix, grid: Array) -> Array:
    """matrix @ grid @ matrix' of the first two axes, which then change places."""
    half = _combine(matrix, list(grid))
    return _combine(matrix, [half[:, i] for i in range(half.shape[1])])


def _combine(matrix: Matrix, arrays: Sequence[Array]) -> Array:
    """Sums of arrays, weighted by each of the matrix's rows, on a new first axis."""

    def weighted(row: Sequence[float]) -> Array:
        terms = [a if c == 1 else c * a for c, a in zip(row, arrays, strict=True) if c]
        return sum(terms[1:], start=terms[0])

    return jnp.stack([weighted(row) for row in matrix])


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))
