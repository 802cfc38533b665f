"""The convolution for tiny feature maps on CPU, where XLA's own is slow.

XLA's CPU convolution reaches a hundredth of the machine's matrix rate on 2 x 2 maps
with many channels. There, gathering each output position's receptive field and
multiplying once (im2col) is as fast as any matrix product. GPU and TPU keep XLA's.

    nn.Conv(512, (3, 3), conv_general_dilated=jaxprune.conv.conv_general_dilated)
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

# Largest output (height x width) for which the matrix product wins: XLA's is 80
# times slower at 2 x 2, and faster at 4 x 4 (BUILD_NOTES.md has the table).
_MAX_POSITIONS = 9


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`lax.conv_general_dilated`, by matrix product where that is faster on CPU.

    Takes what `nn.Conv` passes. The algorithm is chosen by shape when tracing and by
    platform when lowering, so a jitted function can be exported for any platform.
    """

    def xla(lhs: Array, rhs: Array) -> Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)

    shape = jnp.shape(lhs)
    if not _is_plain(shape, window_strides, padding, options):
        return xla(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=_im2col, default=xla)


def _is_plain(
    shape: tuple[int, ...],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    options: dict[str, Any],
) -> bool:
    """Whether this is a stride-1 SAME convolution with a tiny output."""
    return (
        len(shape) == 4
        and shape[1] * shape[2] <= _MAX_POSITIONS
        and padding == "SAME"
        and set(strides) == {1}
        and set(options.get("lhs_dilation") or [1]) == {1}
        and set(options.get("rhs_dilation") or [1]) == {1}
        and options.get("feature_group_count", 1) == 1
    )


def _im2col(lhs: Array, rhs: Array) -> Array:
    """SAME convolution, stride 1, NHWC x HWIO -> NHWC, as one matrix product."""
    kernel_h, kernel_w, features_in, features_out = rhs.shape
    n, h, w, _ = lhs.shape
    pad_h, pad_w = kernel_h - 1, kernel_w - 1
    padded = jnp.pad(
        lhs,
        (
            (0, 0),
            (pad_h // 2, pad_h - pad_h // 2),
            (pad_w // 2, pad_w - pad_w // 2),
            (0, 0),
        ),
    )
    patches = jnp.concatenate(
        [padded[:, i : i + h, j : j + w] for i in range(kernel_h) for j in range(kernel_w)],
        axis=-1,
    )
    rows = patches.reshape(n * h * w, kernel_h * kernel_w * features_in)
    return (rows @ rhs.reshape(-1, features_out)).reshape(n, h, w, features_out)
