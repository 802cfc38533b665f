"""What smaller networks will take, said before the work begins.

All stages are passes of the network over images, and some work of Python's and the
compiler's for each layer. A pass is timed; how many there are, and what a layer takes,
was measured on a VGG and an EfficientNet (docs/measurements.md, "Whole networks"). It
is meant to be right within a factor of two.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxprune._base.mesh import Sharded
from jaxprune.cli.baseline import PRECISION, Baseline
from jaxprune.costs.cost import FEWEST, LONGEST
from jaxprune.costs.machine import bytes_in_use
from jaxprune.graph.network import Network
from jaxprune.shrinking.refit import ELEMENTS

# Passes over the calibration images: of the analysis, and of the fit of a network.
_ANALYSIS_PASSES, _FIT_PASSES = 4.0, 3.0
# Seconds of a layer besides: of the analysis, of its times at many widths, of its fit.
_ANALYSED, _TIMED, _FITTED = 4.0, 3.0, 3.0
# Passes over the evaluated images for a network: the masked one, and the smaller one.
_EVALUATED = 2.0
# Time of both networks together, in that of the whole one.
_BOTH = 1.6
# Bytes of memory for each element of a fit's patches: they are copied.
_PATCHES = 24
# Programs that are compiled for a network: the same two, and both that are timed.
_COMPILED = 4.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do.

    Attributes:
      image: seconds of the whole network for an image.
      compilation: seconds of its compilation.
      calibration: calibration images.
      evaluated: images that every network is evaluated on.
      layers: layers of the network.
      batches: images of the calls that are timed.
      repeats: timed calls of each.
      networks: number of networks, None where it is not known.
      timed: whether layers are timed at many widths.
      bytes: of memory that is in use now, and what comes on top at the most.
    """

    image: float
    compilation: float
    calibration: int
    evaluated: int
    layers: int
    batches: Sequence[int]
    repeats: int
    networks: int | None
    timed: bool
    bytes: int

    @property
    def analysis(self) -> float:
        """Seconds of loss curves, and of layers' times where they are asked for."""
        passes = _ANALYSIS_PASSES * self.calibration * self.image
        return passes + self.layers * (_ANALYSED + _TIMED * self.timed)

    @property
    def network(self) -> float:
        """Seconds of one smaller network."""
        fit = _FIT_PASSES * self.calibration * self.image + self.layers * _FITTED
        evaluation = _EVALUATED * self.evaluated * self.image
        return fit + evaluation + self._timing + _COMPILED * self.compilation

    @property
    def _timing(self) -> float:
        """Seconds of calls of the whole network and the smaller one, in turns."""
        total = 0.0
        for batch in self.batches:
            both = _BOTH * batch * self.image
            most = max(min(self.repeats * both, LONGEST), FEWEST * both)
            total += both + most  # a call of each before any is timed
        return total

    def __str__(self) -> str:
        """In words, for people."""
        analysis, network = _minutes(self.analysis), _minutes(self.network)
        if self.networks is None:
            parts = f"some {analysis} of analysis, then {network} for each network"
        else:
            whole = _minutes(self.analysis + self.networks * self.network)
            several = f"each of {self.networks} networks"
            which = "the network" if self.networks == 1 else several
            parts = f"some {whole}: {analysis} of analysis, then {network} for {which}"
        return f"{parts}; up to some {self.bytes / 1e9:.1f} GB of memory"


def work(
    whole: Baseline,
    program: Sharded,
    calibration: int,
    batches: Sequence[int],
    repeats: int,
    networks: int | None,
    *,
    timed: bool,
) -> Work:
    """What there is to do, once two calls of the whole network are timed.

    Args:
      whole: the whole network.
      program: it, compiled here for all that follows.
      calibration: see `Work`.
      batches: see `Work`.
      repeats: see `Work`.
      networks: see `Work`.
      timed: see `Work`.
    """

    def seconds() -> float:
        started = time.perf_counter()
        _, found = next(whole.outputs(program, whole.network.params))
        jax.block_until_ready(found)
        return time.perf_counter() - started

    with jax.default_matmul_precision(PRECISION):
        first, again = seconds(), seconds()
    called = whole.cost.working_bytes * max(batches) // whole.cost.batch
    elements = min(ELEMENTS, calibration * _largest_patches(whole.network))
    return Work(
        image=again / whole.batch_size,
        compilation=max(0, first - again),
        calibration=calibration,
        evaluated=len(whole.own),
        layers=len(whole.network.layers),
        batches=batches,
        repeats=repeats,
        networks=networks,
        timed=timed,
        bytes=bytes_in_use() + max(called, _PATCHES * elements),
    )


def _largest_patches(network: Network) -> int:
    """Elements of an image's patches under a kernel, of the layer that has most."""
    found = [1]
    for layer in network.layers.values():
        _, *rest = layer.program.shape(layer.product)
        positions = math.prod(rest) // layer.channels
        found.append(positions * layer.products_per_output)
    return max(found)


def _minutes(seconds: float) -> str:
    """Seconds, or minutes from two on.

    >>> _minutes(94.0), _minutes(125.0), _minutes(619.0)
    ('95 s', '2 min', '10 min')
    """
    if seconds < 120:
        return f"{5 * max(1, round(seconds / 5))} s"
    return f"{round(seconds / 60)} min"
