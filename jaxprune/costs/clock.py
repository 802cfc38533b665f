"""Seconds of layers and networks on this machine, kept by device and version.

Axes: M networks.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field

from jaxprune._base.journal import Journal
from jaxprune.costs.machine import machine
from jaxprune.graph.network import Network

# Seconds that a program is timed for, the fewest calls, and runs of a layer in a call.
_SECONDS, _CALLS, _TIMES = 0.03, 3, 4
# Seconds after which fewer calls do.
_ENOUGH = 0.5
# Rounds in which networks are timed, one after another.
_ROUNDS = 10


_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Clock:
    """Times layers, and keeps what it has timed in a file.

    Attributes:
      overhead: seconds of a call that does nothing.
    """

    def __init__(self, folder: Path | None):
        here = machine()
        name = re.sub(r"[^\w.]+", "_", "-".join(here.values()))
        path = folder and folder / f"latency-{name}.json"
        self._journal = Journal(path, here) if path else None
        self.known: dict[str, float] = {}
        if self._journal:
            self.known = self._journal.recover(dict[str, _Seconds])
        one = jnp.zeros(1)
        nothing = jax.jit(lambda x: x + 1)
        self.overhead = _median(lambda: nothing(one))

    def time(
        self,
        product: Callable[[Array, Array], Array],
        kernel: jax.ShapeDtypeStruct,
        x: jax.ShapeDtypeStruct,
        described: str,
    ) -> float:
        """Of a product of a kernel of ones and an operand of zeros.

        Args:
          product: (kernel, operand) -> result.
          kernel: its shape and type.
          x: of the operand.
          described: text that tells this product from others of these shapes.
        """
        key = f"{described} {kernel.dtype} {list(kernel.shape)} {list(x.shape)}"
        if key not in self.known:
            program = jax.jit(partial(_repeatedly, product))
            operands = jnp.ones(kernel.shape, kernel.dtype), jnp.zeros(x.shape, x.dtype)
            self.known[key] = self.measure(lambda: program(*operands)) / _TIMES
        return self.known[key]

    def measure(self, run: Callable[[], Any]) -> float:
        """Seconds of a call, its overhead taken off."""
        return max(_median(run) - self.overhead, 0.0)

    def measure_in_turns(
        self, networks: Sequence[Network], x: Any
    ) -> Float[np.ndarray, " M"]:
        """Median seconds of each network's call, over rounds."""

        def call(network: Network) -> Callable[[], Any]:
            program = jax.jit(lambda params, x: network.function(params, x))
            params = jax.device_put(network.params)
            return lambda: program(params, x)

        calls = [call(network) for network in networks]
        for run in calls:
            jax.block_until_ready(run())
        rounds = [[_seconds(run) for run in calls] for _ in range(_ROUNDS)]
        return np.maximum(np.median(rounds, axis=0) - self.overhead, 0)

    def save(self) -> None:
        """Keeps the times; where that cannot be, they are measured again next time."""
        if self._journal:
            with suppress(OSError):
                self._journal.path.parent.mkdir(parents=True, exist_ok=True)
                self._journal.keep(self.known)


def _repeatedly(
    product: Callable[[Array, Array], Array], kernel: Array, x: Array
) -> Array:
    """A product several times over, in memory that is there already, as in a network.

    By itself a call spends up to half its time on getting memory from the system.
    """
    output = jax.eval_shape(product, kernel, x)

    def once(_: Any, carry: Any) -> Any:
        kernel, x, _ = carry
        # Nothing may be moved out of the loop: not what is done to the kernel either.
        return jax.lax.optimization_barrier((kernel, x, product(kernel, x)))

    start = kernel, x, jnp.zeros(output.shape, output.dtype)
    return jax.lax.fori_loop(0, _TIMES, once, start)[-1]


def _median(run: Callable[[], Any]) -> float:
    """Median seconds of a call, once it is compiled."""
    jax.block_until_ready(run())
    seconds: list[float] = []
    while (took := sum(seconds)) < _SECONDS or (
        len(seconds) < _CALLS and took < _ENOUGH
    ):
        seconds.append(_seconds(run))
    return float(np.median(seconds))


def _seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started
