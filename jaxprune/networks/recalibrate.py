"""BatchNorm statistics estimated again, without training."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxprune import arguments
from jaxprune.channels import taps
from jaxprune.errors import InputError


def recalibrate(apply: taps.Apply, variables: Any, inputs: Iterable[Array]) -> Any:
    """Variables with each BatchNorm's mean and variance as they are over `inputs`.

    Every batch is normalised by its own statistics, as in training; dropout is off. The
    mean and variance that are kept are those over all batches together.

    Args:
      apply: the network in training mode, `partial(model.apply, train=True)`.
      variables: its variables; only "batch_stats" changes.
      inputs: batches of one size.

    Raises:
      InputError: no inputs, or the network has no BatchNorm.
    """

    arguments.check_variables(variables)
    arguments.check_kind("inputs", inputs, Iterable, "batches of inputs")

    def moments(variables: Any, x: Array) -> dict[str, tuple[Array, Array]]:
        found: dict[str, tuple[Array, Array]] = {}

        def note(call: taps.Call) -> Any:
            if isinstance(call.module, nn.Dropout):
                return call.input
            if isinstance(call.module, nn.BatchNorm):
                x = call.input.astype(jnp.float32)
                axes = tuple(range(x.ndim - 1))
                found[call.name] = (x.mean(axes), jnp.square(x).mean(axes))
            return call.run()

        taps.intercept(apply, note)(variables, x, mutable=["batch_stats"])
        return found

    step = jax.jit(moments)
    total: dict[str, np.ndarray] = {}
    count = 0
    for x in inputs:
        arguments.check_finite("a batch of inputs", x)
        for name, pair in step(variables, x).items():
            total[name] = total.get(name, 0) + np.asarray(pair, np.float64)
        count += 1
    if not total:
        raise InputError("there is nothing to recalibrate: no inputs, or no BatchNorm")
    flat = flatten_dict(variables["batch_stats"], sep="/")
    for name, (mean, square) in ((n, t / count) for n, t in total.items()):
        flat[f"{name}/mean"] = mean.astype(np.float32)
        flat[f"{name}/var"] = np.maximum(square - mean**2, 0).astype(np.float32)
    return {**variables, "batch_stats": unflatten_dict(flat, sep="/")}
