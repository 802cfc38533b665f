r"""The linear fill: what the kept channels say for a pruned one.

Let x be the channels at the input of a layer that reads them, m their mean and C their
covariance over calibration images and positions. A pruned channel p becomes its ridge
regression on the kept channels k,

    x_p = m_p + A' (x_k - m_k),     A = (C_kk + lambda I)^{-1} C_kp,

so the consumer's kernel W needs only the rows W_k + A W_p, and a constant. lambda is
`ridge` times the mean variance. Nothing is trained and no label is used.

When channels are pruned one after another, in a given order, the regressions of all K
follow from one Cholesky factor G of C + lambda I, its channels in the reverse order:
E = diag(G) G^{-1} turns x - m into residuals, each channel less what those pruned later
predict for it, and W~ = E^{-T} W are the rows that the residuals meet. With K channels
pruned the consumer returns m'W + sum_{j kept} r_j W~_j, for every K. (Block
elimination; Goodnight's sweep operator, 1979.)

Kin: He, Zhang and Sun 2017 (channel pruning by LASSO and least squares), Luo et al.
2017 (ThiNet), Kim et al. 2020 (Neuron Merging).

A consumer may hold a channel in R features, one for each position in front of a
flatten. Up to TOGETHER features these are regressed together, every feature on those of
all positions of the kept channels; beyond, each position by itself.

Axes: N images, P channels, F input features of a consumer, R features of each channel,
G groups that are regressed apart, Q features in each: G = 1 and Q = R P, or G = R and
Q = P. Position by position, channel by channel, both are laid out alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import linalg

from jaxprune._base.threads import few_threads

# Features of a consumer that are regressed together at the most: their covariance takes
# 8 F^2 bytes, and its factor F^3 / 3 multiply-adds.
TOGETHER = 2048


def group_features(
    owner: Int[np.ndarray, " F"], channels: int
) -> Int[np.ndarray, "R P"] | None:
    """Which input features hold each channel; the r-th of each are a position's.

    Args:
      owner: the channel that each feature holds, negative where it holds none.
      channels: their number, P.

    Returns:
      None where channels hold different numbers of features, or none.
    """
    counts = np.bincount(owner[owner >= 0], minlength=channels)
    if counts.min() != counts.max():
        return None
    features = np.argsort(np.where(owner < 0, channels, owner), kind="stable")
    return features[: counts.sum()].reshape(channels, -1).T


def regressed_together(
    features: Int[np.ndarray, "R P"],
) -> Int[np.ndarray, "G Q"]:
    """The features in groups, each of which has one covariance."""
    return features.reshape(1, -1) if features.size <= TOGETHER else features


def channel_blocks(
    matrix: Float[np.ndarray, "*G Q Q"], channels: int
) -> Float[np.ndarray, "*G P R R"]:
    """Of a matrix over a group's features, the rows and columns of each channel."""
    held = matrix.shape[-1] // channels
    shape = (*matrix.shape[:-2], held, channels, held, channels)
    return np.einsum("...rpsp->...prs", matrix.reshape(shape))


@dataclass(frozen=True)
class Moments:
    """Of a consumer's input over calibration images and positions.

    Attributes:
      features: the input features that hold the channels.
      channels: their number, P.
      mean: of each feature.
      covariance: of the features of each group.
      gram: W W' of the consumer's rows for them, summed over a convolution's taps.
      ridge: added to the variances, in units of their mean in each group.
    """

    features: Int[np.ndarray, "G Q"]
    channels: int
    mean: Float[np.ndarray, "G Q"]
    covariance: Float[np.ndarray, "G Q Q"]
    gram: Float[np.ndarray, "G Q Q"]
    ridge: float

    @property
    def owner(self) -> Int[np.ndarray, " Q"]:
        """The channel of each feature of a group."""
        return np.arange(self.features.shape[1]) % self.channels

    @property
    def ridged(self) -> Float[np.ndarray, "G Q Q"]:
        """C + lambda I; the identity where nothing varies."""
        features = self.features.shape[1]
        variance = np.trace(self.covariance, axis1=1, axis2=2) / features
        penalty = np.where(variance > 0, self.ridge * variance, 1.0)
        return self.covariance + penalty[:, None, None] * np.eye(features)

    def regress(self, keep: Bool[np.ndarray, " P"]) -> "Regression":
        """Every pruned channel on the kept ones."""
        keep = keep[self.owner]
        kept, pruned = np.flatnonzero(keep), np.flatnonzero(~keep)
        coefficients = np.zeros_like(self.covariance)
        for a, c in zip(coefficients, self.ridged, strict=True):
            with few_threads(len(kept)):
                factor = linalg.cho_factor(c[np.ix_(kept, kept)])
            a[np.ix_(kept, pruned)] = linalg.cho_solve(factor, c[np.ix_(kept, pruned)])
        predicted = np.einsum("rp,rpq->rq", self.mean, coefficients)
        constants = np.where(keep, 0, self.mean - predicted)
        return Regression(self.features, self.owner, coefficients, constants)

    def nest(self, order: Int[np.ndarray, " P"]) -> "Nested":
        """The regressions of all K, when channels are pruned in this order."""
        rank = np.argsort(order)[self.owner]
        last = np.argsort(-rank, kind="stable")
        residual, back = np.empty_like(self.covariance), np.empty_like(self.covariance)
        for r, c in enumerate(self.ridged):
            with few_threads(len(last)):
                factor = linalg.cholesky(c[np.ix_(last, last)], lower=True)
            scale = np.diag(factor)
            inverse = linalg.solve_triangular(factor, np.eye(len(last)), lower=True)
            residual[r][np.ix_(last, last)] = (scale[:, None] * inverse).T
            back[r][np.ix_(last, last)] = (factor / scale).T
        return Nested(self.features, self.owner, self.mean, residual, back)


# What is inside a compiled program has no type to check: JAX puts placeholders there.
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regression:
    """Pruned channels as affine functions of the kept ones.

    Attributes:
      features: the input features that hold the channels, [G, Q].
      owner: the channel of each, [Q].
      coefficients: A, from kept features to pruned ones, [G, Q, Q]; 0 elsewhere.
      constants: constant of a pruned feature, [G, Q]; 0 for the others.
    """

    features: Any
    owner: Any
    coefficients: Any
    constants: Any

    def __call__(self, x: Array, keep: Any) -> Array:
        """The consumer's input [..., F] with pruned channels predicted."""

        def predict(channels: Array) -> Array:
            wide = _wide(channels)
            coefficients = jnp.asarray(self.coefficients, wide)
            constants = jnp.asarray(self.constants, wide)
            return _multiply(channels, coefficients) + constants

        return _put(x, self.features, keep[self.owner], predict)

    def magnitude(self, x: Array, keep: Any) -> Array:
        """The same of absolute values: the size of the sums that are rounded."""
        absolute = jnp.abs(self.coefficients), jnp.abs(self.constants)
        return Regression(self.features, self.owner, *absolute)(jnp.abs(x), keep)

    def predict(self, constants: Float[np.ndarray, "*N F"]) -> np.ndarray:
        """Features that are constants, the pruned ones predicted, in float64."""
        held = constants[..., self.features]
        sent = np.einsum("...rp,rpq->...rq", held, self.coefficients) + self.constants
        found = np.array(constants, np.float64)
        found[..., self.features] = sent
        return found

    def fold(self, kernel: Float[np.ndarray, "*taps F U"]) -> np.ndarray:
        """The kernel with W_k + A W_p in the rows of kept channels, in float64."""
        rows = kernel[..., self.features, :].astype(np.float64)
        moved = np.einsum("rpq,...rqu->...rpu", self.coefficients, rows, optimize=True)
        folded = kernel.astype(np.float64)
        folded[..., self.features, :] += moved
        return folded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nested:
    """The regressions of all K in one order of pruning.

    Attributes:
      features: the input features that hold the channels, [G, Q].
      owner: the channel of each, [Q].
      mean: of each of them, [G, Q].
      residual: E', so that (x - m) @ residual are the residuals, [G, Q, Q].
      back: its inverse, [G, Q, Q].
    """

    features: Any
    owner: Any
    mean: Any
    residual: Any
    back: Any

    def residuals(self, x: Array) -> Float[Array, "*N G Q"]:
        """Of a consumer's input [..., F]."""
        wide = _wide(x)
        centred = x[..., self.features].astype(wide) - jnp.asarray(self.mean, wide)
        return _multiply(centred, jnp.asarray(self.residual, wide))

    def kernel(self, kernel: Float[np.ndarray, "*taps F U"]) -> np.ndarray:
        """W~: the rows [..., G, Q, U] that the residuals meet."""
        rows = kernel[..., self.features, :].astype(np.float64)
        return np.einsum("rpq,...rqu->...rpu", self.back, rows, optimize=True)

    def __call__(self, x: Array, keep: Any) -> Array:
        """The consumer's input with pruned channels predicted; `keep` may be traced.

        The pruned channels must be the first ones of the order.
        """

        keep = keep[self.owner]

        def predict(channels: Array) -> Array:
            residuals = jnp.where(keep, self.residuals(x), 0)
            wide = _wide(x)
            predicted = _multiply(residuals, jnp.asarray(self.back, wide))
            return predicted + jnp.asarray(self.mean, wide)

        return _put(x, self.features, keep, predict)


def _wide(x: Array) -> Any:
    """The type that predictions are worked out in: float32 at least."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _multiply(x: Array, matrices: Array) -> Array:
    """x [..., G, Q] times a matrix for each of G."""
    x = x.astype(matrices.dtype)
    return jnp.einsum("...rp,rpq->...rq", x, matrices, precision="highest")


def _put(
    x: Array, features: Any, keep: Any, predict: Callable[[Array], Array]
) -> Array:
    """`x` [..., F] with what `predict` makes of its channels where they are pruned."""
    channels = x[..., features]
    predicted = predict(channels).astype(x.dtype)
    return x.at[..., features].set(jnp.where(keep, channels, predicted))
