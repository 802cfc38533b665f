"""Ridge regression on rows, and the patches that a convolution's kernel meets.

Axes: n rows, k features, T taps, U targets.
"""

import numpy as np
from jaxtyping import Float
from scipy import linalg

from jaxprune.graph.layers import Layer


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
    layer: Layer, x: Float[np.ndarray, "N *positions k"], pick: np.ndarray
) -> Float[np.ndarray, "n Tk"]:
    """The patches under a convolution's kernel at the chosen output positions.

    Args:
      layer: the convolution, of which the positions of operand and result come in the
        order of the kernel's, and nothing lies between the operand's elements.
      x: its operand; not all of its features need be there.
      pick: rows of the result [N *positions, U].
    """
    params = layer.equation.params
    kernel = layer.program.shape(layer.kernel_value)
    sizes = [kernel[axis] for axis in layer.axes.taps]
    x = np.pad(x, [(0, 0), *params["padding"], (0, 0)])
    shape = layer.program.shape(layer.product)
    positions = [shape[a] for a in params["dimension_numbers"].out_spec[2:]]
    image, *places = np.unravel_index(pick, (len(x), *positions))

    def at(tap: tuple[int, ...]) -> np.ndarray:
        steps = zip(
            places, params["window_strides"], tap, params["rhs_dilation"], strict=True
        )
        return x[image, *(place * s + t * d for place, s, t, d in steps)]

    return np.concatenate([at(tap) for tap in np.ndindex(*sizes)], axis=1)
