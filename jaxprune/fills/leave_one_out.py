"""One channel more under the linear fill, whichever it is.

With Q = (C + lambda I)^{-1} over the channels that are kept, a channel's residual given
all other kept ones is Q_JJ^{-1} (Q (x - m))_J, J its features. With the prediction in
its place, the pruned channels predicted from what is there are those of the regression
on the kept channels without it (block elimination, see `jaxprune.fills.linear`): one
matrix serves every channel that may go next.

Axes: P channels, G groups of Q features of a consumer, R features of each channel.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxprune.fills.linear import Moments, Regression, channel_blocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LeftOut:
    """A consumer's input with one more channel pruned than before, or none.

    Attributes:
      before: predicts the channels pruned before.
      kept: mask of the channels kept before, [P].
      mean: of the features, [G, Q].
      precision: Q over the kept features, 0 elsewhere, [G, Q, Q].
      scales: Q_JJ^{-1} of each kept channel, 0 of the others, [G, P, R, R].
    """

    before: Regression
    kept: Any
    mean: Any
    precision: Any
    scales: Any

    def __call__(self, x: Array, keep: Any) -> Array:
        """The input [..., F]; `keep` [P] has all of `kept`, or all but one."""
        features = self.before.features
        channels = x[..., features].astype(jnp.float32)
        centred = channels - jnp.float32(self.mean)
        moved = jnp.einsum(
            "...gp,gpq->...gq", centred, jnp.float32(self.precision),
            precision="highest",
        )  # fmt: skip
        by_channel = moved.reshape(*moved.shape[:-1], -1, len(keep))
        residual = jnp.einsum(
            "...grp,gprs->...gsp", by_channel, jnp.float32(self.scales),
            precision="highest",
        )  # fmt: skip
        gone = (self.kept & ~keep)[self.before.owner]
        left = channels - jnp.where(gone, residual.reshape(moved.shape), 0)
        x = x.at[..., features].set(left.astype(x.dtype))
        return self.before(x, self.kept)


def leave_out(moments: Moments, kept: Bool[np.ndarray, " P"]) -> LeftOut:
    """A consumer's input once one more of the kept channels is pruned."""
    features = kept[moments.owner]
    inside = np.ix_(features, features)
    precision = np.zeros_like(moments.covariance)
    for q, covariance in zip(precision, moments.ridged, strict=True):
        q[inside] = np.linalg.inv(covariance[inside])
    blocks = channel_blocks(precision, moments.channels)
    scales = np.zeros_like(blocks)
    scales[:, kept] = np.linalg.inv(blocks[:, kept])
    return LeftOut(moments.regress(kept), kept, moments.mean, precision, scales)
