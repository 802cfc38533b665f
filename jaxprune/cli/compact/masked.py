"""The masked network that compact networks are compared with."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.cli import cluster
from jaxprune.cli.baseline import PRECISION, Baseline
from jaxprune.cli.compact.plan import Plan
from jaxprune.cli.run_directory import Run
from jaxprune.data.splits import Split, batches
from jaxprune.fills.masked import Pruning, make_pruning, run_masked
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.sweep.taps import capture_map


class Masked(Baseline):
    """The whole network and its masked versions over a split.

    The trunk up to the pruned layer runs once for all K.

    Attributes:
      group: of the layer's channels.
      logits: K -> the masked network's logits [N, C]; K = 0 is the whole network.
      baseline: the whole network's accuracy, in [0, 1].
    """

    def __init__(
        self, run: Run, variables: Any, split: Split, plan: Plan, batch_size: int
    ):
        super().__init__(run, variables, split, batch_size)
        self.group = self.network.graph().channels_of(plan.choices.layer)
        ks = sorted({0, *plan.ks})
        with jax.default_matmul_precision(PRECISION):
            logits = self._masked_logits([self._pruning(plan, k) for k in ks])
        self.logits = dict(zip(ks, logits, strict=True))
        self.baseline = self.accuracy(self.logits[0])

    def _pruning(self, plan: Plan, k: int) -> Pruning:
        return make_pruning(self.network, self.group, plan.keep(k), plan.fill)

    def _masked_logits(self, prunings: Sequence[Pruning]) -> list[np.ndarray]:
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

        parts: list[list[np.ndarray]] = [[] for _ in prunings]
        arrays = jax.device_put(network.arrays)
        with cluster.progress(total=len(self.split), unit="img", desc="masked") as bar:
            for batch in batches(self.split, self.batch_size):
                maps = trunk(arrays, batch.images)
                for part, pruning in zip(parts, prunings, strict=True):
                    logits = head(arrays, batch.images, maps, pruning.mask)
                    part.append(np.asarray(logits, np.float32)[: batch.size])
                bar.update(batch.size)
        return [np.concatenate(part) for part in parts]
