"""A convolution read by another layer, with an independent version in plain lax.

The independent version takes a function that edits the consumer's input, and knows
nothing of masks, fills or interceptors.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from random_data import random_split, random_variables

P = 10
CONSUMERS = {
    "dense": {},
    "same": {"padding": "SAME"},
    "valid": {"padding": "VALID"},
    "stride": {"strides": (2, 1), "padding": ((1, 0), (2, 1))},
    "dilation": {"kernel_dilation": (2, 2), "padding": "SAME"},
}


class Read(nn.Module):
    """conv 'first' -> BatchNorm -> ReLU -> max-pool -> 'consumer' -> ReLU -> 'out'."""

    consumer: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(P, (3, 3), name="first", dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=True, name="bn", dtype=self.dtype)(x)
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        if self.consumer == "dense":
            x = nn.Dense(12, name="consumer", dtype=self.dtype)(x.reshape(len(x), -1))
        else:
            options = {
                **CONSUMERS[self.consumer],
                "name": "consumer",
                "dtype": self.dtype,
            }
            x = nn.Conv(7, (3, 3), **options)(x)
        x = nn.relu(x).reshape(len(x), -1)
        return nn.Dense(4, name="out", dtype=self.dtype)(x)


def read(consumer, *, dtype=jnp.float32):
    """(model, apply on uint8 images, variables, split)"""
    model = Read(consumer, dtype=dtype)
    split = random_split(n=30, shape=(8, 8, 3))
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    logits = apply(variables, jnp.asarray(split.images))
    bias = variables["params"]["out"]["bias"]
    bias -= np.asarray(logits, np.float32).mean(0)
    return model, apply, variables, split


def consumer_input(variables, images):
    """What the consumer is given, [N, H, W, P], before a flatten."""
    p, s = variables["params"], variables["batch_stats"]["bn"]
    y = conv(images / 255.0, p["first"], padding="SAME")
    y = (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["bn"]["scale"] + p["bn"]["bias"]
    n, h, w, c = y.shape
    return np.maximum(y, 0).reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def logits_from(variables, consumer, x):
    """The network's logits from what the consumer is given."""
    p = variables["params"]
    if consumer == "dense":
        x = x.reshape(len(x), -1) @ p["consumer"]["kernel"] + p["consumer"]["bias"]
    else:
        x = conv(x, p["consumer"], **CONSUMERS[consumer])
    x = np.maximum(x, 0).reshape(len(x), -1)
    return x @ p["out"]["kernel"] + p["out"]["bias"]


def conv(x, p, *, padding, strides=(1, 1), kernel_dilation=(1, 1)):
    with jax.enable_x64(True):
        y = lax.conv_general_dilated(
            jnp.asarray(x, jnp.float64), jnp.asarray(p["kernel"], jnp.float64), strides,
            padding, rhs_dilation=kernel_dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return np.asarray(y) + p["bias"]


def predicted(x, calibration, keep, ridge, *, flat):
    """`x` [N, H, W, P] with pruned channels from an explicit ridge regression.

    Args:
      x: what the consumer is given.
      calibration: the same for calibration images.
      keep: mask of channels.
      ridge: in units of the mean variance.
      flat: whether the consumer is dense, so that features of all positions predict.
    """
    if flat:
        rows = calibration.reshape(len(calibration), -1)
        members = np.tile(keep, rows.shape[1] // len(keep))
        return _regressed(x.reshape(len(x), -1), rows, members, ridge).reshape(x.shape)
    rows = calibration.reshape(-1, x.shape[-1])
    return _regressed(x.reshape(-1, x.shape[-1]), rows, keep, ridge).reshape(x.shape)


def _regressed(x, rows, keep, ridge):
    mean = rows.mean(0)
    centred = rows - mean
    penalty = ridge * len(rows) * centred.var(0).mean()
    gram = centred[:, keep].T @ centred[:, keep] + penalty * np.eye(keep.sum())
    a = np.linalg.solve(gram, centred[:, keep].T @ centred[:, ~keep])
    x = x.copy()
    x[:, ~keep] = mean[~keep] + (x[:, keep] - mean[keep]) @ a
    return x
