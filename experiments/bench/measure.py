"""What a measurement is given, and what it gives back."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxprune.adapters.linen import at_path
from jaxprune.cli.run_directory import Run
from jaxprune.data.splits import Split

# Training steps in one timed run of training.
STEPS = 3


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
      run: the network and its data.
      variables: its weights.
      split: all images.
      some: the images that slow loops are measured on.
      layer: the layer whose channels are pruned.
      loop_ks: values of K that slow loops are measured for.
    """

    run: Run
    variables: Any
    split: Split
    some: Split
    layer: str
    loop_ks: Sequence[int]

    @property
    def channels(self) -> int:
        """Channels of the layer, P."""
        return len(at_path(self.variables["params"], self.layer)["bias"])

    @property
    def share_of_images(self) -> float:
        """What part of all images the slow loops are measured on."""
        return len(self.some) / len(self.split)

    @property
    def share_of_loop(self) -> float:
        """What part of the loop over every K and image is measured."""
        return len(self.loop_ks) / self.channels * self.share_of_images


def batch_size(split: Split) -> int:
    """Images at once, for everyone: what keeps the device busy, or all there are."""
    return min(128 if jax.default_backend() == "cpu" else 2048, len(split))


def peak_memory_of_jax() -> float:
    """MiB, the most so far: of the device where it tells, or of the process."""
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        return memory["peak_bytes_in_use"] / 2**20
    return peak_memory_of_process()


def peak_memory_of_process() -> float:
    """MiB of main memory, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class Prepared:
    """A measurement that is loaded, compiled and warmed up.

    Attributes:
      turn: makes one timed run. Returns its `seconds`, and other facts for the row.
      share: part of the work that a turn does; its seconds are divided by it.
      extrapolated: whether the seconds that a turn returns are already extrapolated.
      compile_seconds: time that compilation took.
      facts: for the row.
      peak_memory: MiB so far.
    """

    turn: Callable[[], dict[str, Any]]
    share: float = 1.0
    extrapolated: bool = False
    compile_seconds: float = 0.0
    facts: dict[str, Any] | None = None
    peak_memory: Callable[[], float] = peak_memory_of_jax


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def turn_of(function: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """The turn that times one call of a function."""
    return lambda: {"seconds": timed(function)}


def trunk_and_heads(
    bench: Bench, trunk: Callable[[], Any], heads: Callable[[], Any]
) -> Callable[[], dict[str, Any]]:
    """The turn that times a trunk once and heads for a few K, both on some images.

    Its seconds are those for all images, the trunk once and the head for every K.
    """
    every = bench.channels / len(bench.loop_ks)

    def turn() -> dict[str, Any]:
        seconds = timed(trunk) + every * timed(heads)
        return {"seconds": seconds / bench.share_of_images}

    return turn
