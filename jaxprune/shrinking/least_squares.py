"""Ridge regression on rows, and the patches that a convolution's kernel meets.

However many rows a few hundred images have, neighbouring positions say nearly the same.
So the ridge is the one that predicts images best that are left out, and not one number
for all layers: in a network that is narrow already too small a ridge learns the images
by heart, and in a wide one too large a ridge gives away what is known.

Axes: n rows, k features, T taps, U targets.
"""

import itertools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg

from jaxprune._base.threads import few_threads
from jaxprune.graph.layers import Layer

# Parts that images are divided into; those that are left out, one after another.
_PARTS, _LEFT_OUT = 4, 2
# Ridges that are tried, and how far they may go down and up from the first.
_STEP, _LOWEST, _HIGHEST = 10.0, 1e-3, 1e6


def centred(rows: np.ndarray) -> Float[np.ndarray, "n F"]:
    """Rows less their mean, in float32."""
    rows = rows.astype(np.float32)
    return rows - rows.mean(0)


def parts_of(images: int, seed: int) -> Int[np.ndarray, " N"]:
    """The part of each image, drawn at random."""
    return np.random.default_rng(seed).permutation(images) % _PARTS


class Ridge:
    """Ridge regression on centred rows; the ridge in units of the mean eigenvalue.

    Attributes:
      ridge: the one that is used.

    Args:
      z: the rows.
      ridge: the first one that is tried, or the only one.
      parts: of the images, that each row comes from.
    """

    def __init__(
        self,
        z: Float[np.ndarray, "n k"],
        ridge: float,
        parts: Int[np.ndarray, " n"] | None = None,
    ):
        self.z, self.ridge = z, ridge
        left_out = [] if parts is None else [parts == i for i in range(_LEFT_OUT)]
        rest = np.ones(len(z), bool) if parts is None else parts >= _LEFT_OUT
        self._rows = [*left_out, rest]
        self._grams = [self._product(rows, z) for rows in self._rows]
        self._gram = np.sum(self._grams, axis=0)
        self._factor: Any = None

    def choose(self, y: Float[np.ndarray, "n U"]) -> None:
        """Takes the ridge that predicts targets best in parts that are left out."""
        products = [self._product(rows, y) for rows in self._rows]
        product = np.sum(products, axis=0)
        left_out = list(zip(self._grams, products, strict=True))[:-1]

        def tried(ridge: float) -> tuple[float, Any]:
            """The error, and the factor for all images."""
            total = 0.0
            try:  # rows are multiplied in float32: too small a ridge is lost in that
                whole = self._factored(self._gram, ridge)
                for gram, of_part in left_out:
                    factor = self._factored(self._gram - gram, ridge)
                    found = _solved(factor, product - of_part)
                    total += float((found * (gram @ found - 2 * of_part)).sum())
            except linalg.LinAlgError:
                return np.inf, None
            return total, whole

        first = best = self.ridge
        least, self._factor = tried(first)
        for step in (_STEP, 1 / _STEP):
            ridge = best * step
            while 0.9 * _LOWEST <= ridge / first <= 1.1 * _HIGHEST:
                error, factor = tried(ridge)
                if error >= least and least < np.inf:
                    break
                best, least, self._factor = ridge, error, factor
                ridge *= step
        self.ridge = best

    def solve(self, y: Float[np.ndarray, "n U"]) -> Float[np.ndarray, "k U"]:
        """The coefficients for centred targets."""
        if self._factor is None:
            self._factor = self._factored(self._gram, self.ridge)
        product = (self.z.T @ y).astype(np.float64)
        return _solved(self._factor, product).astype(np.float32)

    def _product(self, rows: np.ndarray, y: np.ndarray) -> np.ndarray:
        if rows.all():
            return (self.z.T @ y).astype(np.float64)
        return (self.z[rows].T @ y[rows]).astype(np.float64)

    def _factored(self, gram: np.ndarray, ridge: float) -> Any:
        ridged = gram.copy()
        penalty = ridge * np.trace(gram) / len(gram)
        ridged[np.diag_indices_from(ridged)] += penalty or 1.0
        with few_threads(len(ridged)):
            return linalg.cho_factor(ridged, overwrite_a=True, check_finite=False)


def _solved(factor: Any, product: np.ndarray) -> np.ndarray:
    found: np.ndarray = linalg.cho_solve(factor, product, check_finite=False)
    return found


def patches(
    layer: Layer,
    x: Float[np.ndarray, "N *positions F"],
    pick: np.ndarray,
    keep: Bool[np.ndarray, " F"] | None = None,
) -> Float[np.ndarray, "n Tk"]:
    """The patches under a kernel at the chosen output positions.

    Args:
      layer: a dense layer; or a convolution, of which the positions of operand and
        result come in the order of the kernel's, and nothing lies between the operand's
        elements.
      x: its operand; not all of its features need be there.
      pick: rows of the result [N *positions, U].
      keep: features that patches are to have; by default all.
    """
    keep = np.ones(x.shape[-1], bool) if keep is None else keep
    if layer.kind == "dense":
        return x.reshape(-1, x.shape[-1])[pick][:, keep]
    params = layer.equation.params
    kernel = layer.program.shape(layer.kernel_value)
    sizes = [kernel[axis] for axis in layer.axes.taps]
    if any(itertools.chain(*params["padding"])):
        x = np.pad(x, [(0, 0), *params["padding"], (0, 0)])
    shape = layer.program.shape(layer.product)
    positions = [shape[a] for a in params["dimension_numbers"].out_spec[2:]]
    image, *places = np.unravel_index(pick, (len(x), *positions))

    def at(tap: tuple[int, ...]) -> np.ndarray:
        steps = zip(
            places, params["window_strides"], tap, params["rhs_dilation"], strict=True
        )
        return x[image, *(place * s + t * d for place, s, t, d in steps)][:, keep]

    return np.concatenate([at(tap) for tap in np.ndindex(*sizes)], axis=1)
