"""The cost of a network: parameters, multiply-adds, bytes, time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from jaxprune._base.batch import size_of
from jaxprune._base.errors import InputError
from jaxprune.adapters.networks import takes_network
from jaxprune.costs.multiply_adds import multiply_adds
from jaxprune.graph.network import Network


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
      parameters: weights, BatchNorm statistics, rows of offset maps; no indices.
      multiply_adds: of all convolutions and dot products, for one input.
      file_bytes: of the variables as safetensors.
      memory_bytes: of the variables in memory.
      working_bytes: further memory of the compiled program, at `batch` inputs.
      batch: inputs that `working_bytes` is for.
    """

    parameters: int
    multiply_adds: int
    file_bytes: int
    memory_bytes: int
    working_bytes: int
    batch: int


@takes_network
def cost(network: Network, x: Any = None) -> Cost:
    """Counts what a network costs.

    Args:
      network: the network, or in its place a function or `apply`, and its variables.
      x: a batch of inputs, by default the network's example; as many of them take
        `working_bytes`.

    Raises:
      InputError: the network does not run on them, or there are none.
    """
    network = network if x is None else network.with_example(x)
    counted = multiply_adds(network)
    if not size_of(network.example):
        raise InputError("x must be a batch of one input or more, got none")
    arrays = {
        name: np.array(value, order="C") for name, value in network.arrays.items()
    }
    program = jax.jit(lambda params, x: network.function(params, x))
    compiled = program.lower(network.params, network.example).compile()
    memory = compiled.memory_analysis()
    return Cost(
        parameters=sum(
            array.size
            for array in arrays.values()
            if jnp.issubdtype(array.dtype, jnp.inexact)
        ),
        multiply_adds=counted,
        file_bytes=len(safetensors.save(arrays)),
        memory_bytes=sum(array.nbytes for array in arrays.values()),
        working_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
        batch=size_of(network.example),
    )


# Timed calls end when they have taken so many seconds, and are as many at least.
LONGEST, FEWEST = 20.0, 3


@dataclass(frozen=True)
class Latency:
    """Seconds for one call: median, and the quartiles as its spread."""

    median: float
    lower_quartile: float
    upper_quartile: float


def latencies(
    functions: Sequence[Callable[[Any], Any]], x: Any, repeats: int
) -> list[Latency]:
    """Times functions of the same inputs, in turn, so that all meet the same noise.

    Args:
      functions: compiled functions; each is called once before it is timed.
      x: their inputs.
      repeats: timed calls of each; fewer, but three, where they take over LONGEST.
    """
    for function in functions:
        jax.block_until_ready(function(x))
    seconds: list[list[float]] = []
    while len(seconds) < repeats:
        row = []
        for function in functions:
            started = time.perf_counter()
            jax.block_until_ready(function(x))
            row.append(time.perf_counter() - started)
        seconds.append(row)
        if len(seconds) >= FEWEST and np.sum(seconds) > LONGEST:
            break
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75], axis=0)
    return [
        Latency(float(m), float(a), float(b))
        for m, a, b in zip(middle, low, high, strict=True)
    ]
