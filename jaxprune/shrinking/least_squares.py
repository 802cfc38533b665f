"""Ridge regression on rows, and the patches that a convolution's kernel meets.

Axes: n rows, k features, T taps, U targets.
"""

from typing import Any

import numpy as np
from flax.linen.linear import canonicalize_padding
from jax import lax
from jaxtyping import Float
from scipy import linalg

_WRAPPED = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


def centred(rows: np.ndarray) -> Float[np.ndarray, "n F"]:
    """Rows less their mean, in float32."""
    rows = rows.astype(np.float32)
    return rows - rows.mean(0)


class Ridge:
    """Ridge regression on centred rows; the ridge in units of the mean eigenvalue."""

    def __init__(self, z: Float[np.ndarray, "n k"], ridge: float):
        self.z = z
        gram = (z.T @ z).astype(np.float64)
        penalty = ridge * np.trace(gram) / len(gram)
        gram[np.diag_indices_from(gram)] += penalty or 1.0
        self.factor = linalg.cho_factor(gram, overwrite_a=True, check_finite=False)

    def solve(self, y: Float[np.ndarray, "n U"]) -> Float[np.ndarray, "k U"]:
        """The coefficients for centred targets."""
        product = (self.z.T @ y).astype(np.float64)
        solved = linalg.cho_solve(self.factor, product, check_finite=False)
        return solved.astype(np.float32)


def least_squares(
    z: Float[np.ndarray, "n k"], y: Float[np.ndarray, "n U"], ridge: float
) -> Float[np.ndarray, "k U"]:
    """Ridge regression of centred rows; the ridge in units of the mean eigenvalue."""
    return Ridge(z, ridge).solve(y)


def patches(
    module: Any, x: np.ndarray, pick: np.ndarray, output_shape: tuple[int, ...]
) -> Float[np.ndarray, "n Tk"]:
    """What the kernel of a convolution meets at the picked positions of its output."""
    spatial = len(module.kernel_size)
    x = x.reshape(-1, *x.shape[-spatial - 1 :])
    strides, dilation = (
        np.broadcast_to(1 if value is None else value, spatial)
        for value in (module.strides, module.kernel_dilation)
    )
    reach = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, dilation, strict=True)]
    padding = canonicalize_padding(module.padding, spatial)
    mode: Any = "constant"
    if isinstance(padding, str) and padding in _WRAPPED:
        mode = _WRAPPED[padding]
        padding = [((r - 1) // 2, r // 2) for r in reach]
    elif padding == "CAUSAL":
        padding = [(r - 1, 0) for r in reach]
    elif isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    x = np.pad(x, [(0, 0), *padding, (0, 0)], mode=mode)
    shape = (-1, *output_shape[-spatial - 1 : -1])
    image, *places = np.unravel_index(pick, (len(x), *shape[1:]))

    def at(tap: tuple[int, ...]) -> np.ndarray:
        steps = zip(places, strides, tap, dilation, strict=True)
        return x[image, *(place * s + t * d for place, s, t, d in steps)]

    columns = [at(tap) for tap in np.ndindex(*module.kernel_size)]
    return np.concatenate(columns, axis=1)
