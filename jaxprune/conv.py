"""A convolution, and a pooling, that are fast on CPU too.

XLA's CPU convolution reaches a hundredth of the machine's matrix rate on 2 x 2 maps
with many channels, and its gradient for the kernel is slow where there are few input
channels or large maps. Winograd's algorithm, or matrix products over shifted views, do
better there (the table is in docs/measurements.md). GPU and TPU keep XLA's own.

    nn.Conv(512, (3, 3), conv_general_dilated=jaxprune.conv.conv_general_dilated)
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxprune._base import winograd

# Winograd's algorithm pays from this number of channels in and out, where there are
# enough tiles of 2 x 2 that transforming the kernel costs little beside them.
_WINOGRAD_CHANNELS = 32
_WINOGRAD_TILES = 256
# Largest height x width for which one matrix product over gathered receptive fields
# beats XLA's forward pass on CPU.
_MAX_GATHERED_POSITIONS = 9
# Up to this number of input channels, a kernel row's shifted views are joined before
# they are multiplied: a matrix that is too narrow wastes the matrix unit.
_FEW_CHANNELS = 16
# By this scope a traced network shows where it has used this convolution.
SCOPE = "jaxprune.conv"


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`lax.conv_general_dilated`, faster on CPU for stride-1 SAME convolutions.

    Takes all that `nn.Conv` passes, and hands what it has nothing better for to XLA.
    The algorithm is chosen by shape when tracing and by platform when lowering, so a
    jitted function can be exported for any platform. Where it has its own algorithm
    it can be differentiated in reverse mode only.
    """
    if _is_plain(lhs, rhs, window_strides, padding, options):
        with jax.named_scope(SCOPE):
            return _same_conv(lhs, rhs, options.get("precision"))
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def with_offset(
    function: Callable[..., Array], rows: Any, index: Any
) -> Callable[..., Array]:
    """`function` with the map rows[index] [H, W, C] added to what it returns.

    For the `conv_general_dilated` of `nn.Conv` and the `dot_general` of `nn.Dense`:
    what removed channels sent to the layer, which at a padded border differs from
    position to position, as a bias does not. It has few different rows.

    Args:
      function: function that computes the layer's product.
      rows: the different rows [R, C].
      index: the row of each position [H, W].
    """

    def shifted(*args: Any, **kwargs: Any) -> Array:
        y = function(*args, **kwargs)
        return y + jnp.asarray(rows)[jnp.asarray(index)].astype(y.dtype)

    return shifted


def max_pool_2x2(x: Float[Array, "N H W C"]) -> Float[Array, "N H//2 W//2 C"]:
    """Maximum of each 2 x 2 square, stride 2; an odd last row or column is left out.

    The same values as `nn.max_pool`, as elementwise maxima of four views, whose
    gradient is 10 times faster on CPU than that of a window reduction. Equal maxima
    share their gradient evenly.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    columns = jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
    return jnp.maximum(columns[:, ::2], columns[:, 1::2])


def _is_plain(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    options: dict[str, Any],
) -> bool:
    """Whether this is a 2D, stride-1, SAME, undilated, ungrouped, odd convolution."""
    numbers = options.get("dimension_numbers")
    nhwc = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    return (
        lhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) == nhwc
        and set(strides) == {1}
        and all(size % 2 for size in rhs.shape[:2])
        and (padding == "SAME" or _is_same(padding, rhs))
        and set(options.get("lhs_dilation") or [1]) == {1}
        and set(options.get("rhs_dilation") or [1]) == {1}
        and options.get("feature_group_count", 1) == 1
        and options.get("batch_group_count", 1) == 1
        and options.get("preferred_element_type") is None
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
    )


def _is_same(padding: str | Sequence[tuple[int, int]], rhs: Array) -> bool:
    """Whether padding by numbers leaves a map's size as it is."""
    halves = [(size // 2, size // 2) for size in rhs.shape[:2]]
    return not isinstance(padding, str) and [tuple(p) for p in padding] == halves


def _suits_winograd(lhs: Array, rhs: Array) -> bool:
    n, h, w, _ = lhs.shape
    return (
        rhs.shape[:2] == (3, 3)
        and min(rhs.shape[2:]) >= _WINOGRAD_CHANNELS
        and lhs.dtype in (jnp.float32, jnp.float64)
        and isinstance(n, int)  # a symbolic batch may be 1
        and n * ((h + 1) // 2) * ((w + 1) // 2) >= _WINOGRAD_TILES
    )


def _xla(lhs: Array, rhs: Array, precision: Any) -> Array:
    return lax.conv_general_dilated(
        lhs,
        rhs,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same_conv(lhs: Array, rhs: Array, precision: Any) -> Array:
    xla = partial(_xla, precision=precision)
    if _suits_winograd(lhs, rhs):
        fast = partial(winograd.convolve, precision=precision)
        return lax.platform_dependent(lhs, rhs, cpu=fast, default=xla)
    if lhs.shape[1] * lhs.shape[2] > _MAX_GATHERED_POSITIONS:
        return xla(lhs, rhs)
    gathered = partial(_gathered_conv, precision=precision)
    return lax.platform_dependent(lhs, rhs, cpu=gathered, default=xla)


def _forward(lhs: Array, rhs: Array, precision: Any) -> tuple[Array, tuple]:
    return _same_conv(lhs, rhs, precision), (lhs, rhs)


def _backward(precision: Any, saved: tuple, gradient: Array) -> tuple[Array, Array]:
    lhs, rhs = saved
    flipped = rhs[::-1, ::-1].swapaxes(2, 3)

    def xla_kernel_gradient(lhs: Array, gradient: Array) -> Array:
        transpose = jax.linear_transpose(partial(_xla, lhs, precision=precision), rhs)
        return transpose(gradient)[0]

    if _suits_winograd(lhs, rhs):
        fast = partial(winograd.kernel_gradient, precision=precision)
    else:
        fast = partial(_kernel_gradient, size=rhs.shape[:2], precision=precision)
    kernel_gradient = lax.platform_dependent(
        lhs, gradient, cpu=fast, default=xla_kernel_gradient
    )
    return _same_conv(gradient, flipped, precision), kernel_gradient


_same_conv.defvjp(_forward, _backward)


def _pad(x: Array, size: tuple[int, ...]) -> Array:
    return jnp.pad(x, ((0, 0), *((s // 2, s // 2) for s in size), (0, 0)))


def _gathered_conv(lhs: Array, rhs: Array, precision: Any) -> Array:
    """Each position's receptive field as one row, times the kernel (im2col)."""
    n, h, w, _ = lhs.shape
    padded = _pad(lhs, rhs.shape[:2])
    shifts = product(range(rhs.shape[0]), range(rhs.shape[1]))
    views = [padded[:, i : i + h, j : j + w] for i, j in shifts]
    rows = jnp.concatenate(views, axis=-1).reshape(n * h * w, -1)
    kernel = rhs.reshape(-1, rhs.shape[-1])
    return jnp.matmul(rows, kernel, precision=precision).reshape(n, h, w, -1)


def _kernel_gradient(
    lhs: Array, gradient: Array, size: tuple[int, ...], precision: Any
) -> Array:
    """Kernel gradient [kh, kw, I, O]: one product per shift, or per kernel row."""
    (_, h, w, c), (kh, kw) = lhs.shape, size
    padded = _pad(lhs, size)
    rows = gradient.reshape(-1, gradient.shape[-1])

    def product_with(view: Array) -> Array:
        columns = view.reshape(-1, view.shape[-1])
        return jnp.matmul(columns.T, rows, precision=precision)

    if c <= _FEW_CHANNELS:
        joined = jnp.concatenate([padded[:, :, j : j + w] for j in range(kw)], axis=-1)
        parts = [product_with(joined[:, i : i + h]) for i in range(kh)]
    else:
        shifts = product(range(kh), range(kw))
        parts = [product_with(padded[:, i : i + h, j : j + w]) for i, j in shifts]
    return jnp.stack(parts).reshape(kh, kw, c, -1)
