"""What a network costs: parameters, multiply-adds, bytes, time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array
from safetensors import numpy as safetensors

from jaxprune import arguments
from jaxprune.channels import taps
from jaxprune.channels.taps import at_path


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
      parameters: weights, BatchNorm statistics, rows of offset maps; no indices.
      multiply_adds: of the convolutions and dense layers, for one input.
      file_bytes: of the variables as safetensors.
      memory_bytes: of the variables in memory.
      working_bytes: what the compiled program needs besides, at `batch` inputs.
      batch: inputs that `working_bytes` is for.
    """

    parameters: int
    multiply_adds: int
    file_bytes: int
    memory_bytes: int
    working_bytes: int
    batch: int


def cost(apply: taps.Apply, variables: Any, x: Array) -> Cost:
    """Counts what the network costs for inputs like `x`.

    Raises:
      InputError: the network does not run on them.
    """
    arguments.check_variables(variables)
    taps.list_layers(apply, variables, x)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in flatten_dict(variables, sep="/").items()
    }
    compiled = jax.jit(lambda v, x: apply(v, x)).lower(variables, x).compile()
    memory = compiled.memory_analysis()
    return Cost(
        parameters=sum(
            leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ),
        multiply_adds=multiply_adds(apply, variables, x[:1]),
        file_bytes=len(safetensors.save(arrays)),
        memory_bytes=sum(leaf.nbytes for leaf in leaves),
        working_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
        batch=len(x),
    )


def multiply_adds(apply: taps.Apply, variables: Any, x: Array) -> int:
    """Multiply-adds of all convolutions and dense layers for the inputs `x`.

    Products with the zeros of a padded border are counted, as is usual.
    """
    total = 0
    for layer in taps.list_layers(apply, variables, x):
        if isinstance(layer.module, nn.Conv | nn.Dense):
            kernel = at_path(variables["params"], layer.name)["kernel"]
            positions = int(np.prod(layer.output.shape[:-1]))
            total += positions * int(np.prod(kernel.shape))
    return total


@dataclass(frozen=True)
class Latency:
    """Seconds for one call: median, and the quartiles as its spread."""

    median: float
    lower_quartile: float
    upper_quartile: float


def latencies(
    functions: Sequence[Callable[[Array], Array]], x: Array, repeats: int
) -> list[Latency]:
    """Times functions of the same inputs, in turn, so that all meet the same noise.

    Args:
      functions: compiled functions; each is called once before it is timed.
      x: their inputs.
      repeats: timed calls of each.
    """
    for function in functions:
        jax.block_until_ready(function(x))
    seconds = np.empty((len(functions), repeats))
    for j in range(repeats):
        for i, function in enumerate(functions):
            started = time.perf_counter()
            jax.block_until_ready(function(x))
            seconds[i, j] = time.perf_counter() - started
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75], axis=1)
    return [
        Latency(float(m), float(a), float(b))
        for m, a, b in zip(middle, low, high, strict=True)
    ]
