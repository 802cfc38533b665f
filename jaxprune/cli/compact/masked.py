"""The masked network that compact networks are compared with."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.cli.baseline import Baseline, Outputs
from jaxprune.cli.compact.plan import Plan
from jaxprune.cli.run_directory import Run
from jaxprune.data.splits import Split, batches
from jaxprune.fills.masked import make_pruning, run_masked
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.sweep.taps import capture_map

# Bytes of feature maps that are kept for the next K.
_KEPT = 2**30


class Masked(Baseline):
    """The whole network and its masked versions over a split.

    The trunk up to the pruned layer runs once for all K, as far as its feature maps
    fit into memory.

    Attributes:
      plan: layer, fill and order of the channels.
      group: of the layer's channels.
      judged_whole: what is known of the whole network's outputs.
      baseline: the whole network's first score.
    """

    def __init__(
        self, run: Run, variables: Any, split: Split, plan: Plan, batch_size: int
    ):
        super().__init__(run, variables, split, batch_size)
        self.plan = plan
        if plan.choices.tap == "relu":
            self.network = self.network.with_relu(plan.choices.layer)
        self.group = self.network.graph().channels_of(plan.choices.layer)
        self._maps: dict[int, np.ndarray] = {}
        self._bytes = 0
        self.judged_whole = self.judged(self.masked(0), "whole network")
        self.baseline = self.value(self.judged_whole)

    def masked(self, k: int) -> Outputs:
        """The outputs of the network with k channels masked, batch by batch."""
        plan, halves = self.plan, self._halves
        pruning = make_pruning(self.network, self.group, plan.keep(k), plan.fill)
        for batch in batches(self.split, self.batch_size):
            maps = self._maps.get(batch.start)
            if maps is None:
                maps = halves.trunk(halves.arrays, batch.images)
                self._keep(batch.start, maps)
            yield batch, halves.head(halves.arrays, batch.images, maps, pruning.mask)

    def _keep(self, start: int, maps: Any) -> None:
        if self._bytes + maps.nbytes <= _KEPT:
            self._maps[start] = np.asarray(maps)
            self._bytes += maps.nbytes

    @cached_property
    def _halves(self) -> "_Halves":
        network, layer = with_fast_convolutions(self.network), self.group.name

        @jax.jit
        def trunk(arrays: Any, images: Any) -> Any:
            return capture_map(network, arrays, self.run.scale(images), layer)

        @jax.jit
        def head(arrays: Any, images: Any, maps: Any, mask: Any) -> Any:
            x = self.run.scale(images)
            found = network.graph(x).layer(layer)
            given = {found.output: found.from_outputs(maps)}
            return run_masked(network, arrays, x, [mask], given=given)

        return _Halves(trunk, head, jax.device_put(network.arrays))


class _Halves(NamedTuple):
    """The masked network before and behind the feature maps, and its arrays."""

    trunk: Callable[..., Any]
    head: Callable[..., Any]
    arrays: Any
