"""What compact networks are compared with: the whole network, with channels masked."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments import cluster
from experiments.compact.plan import Plan
from experiments.job import Job
from experiments.whole import PRECISION, Whole
from jaxprune.channels import masking, taps
from jaxprune.channels.flow import channel_flow
from jaxprune.data.splits import Split, batches


class Masked(Whole):
    """The whole network and its masked versions over a split.

    The trunk up to the pruned layer runs once for all K.

    Attributes:
      flow: where the layer's channels go.
      logits: K -> the masked network's logits [N, C]; K = 0 is the whole network.
      baseline: the whole network's accuracy, in [0, 1].
    """

    def __init__(
        self, run: Job, variables: Any, split: Split, plan: Plan, batch_size: int
    ):
        super().__init__(run, variables, split, batch_size)
        self.flow = channel_flow(
            self.apply, variables, self.example, plan.choices.layer
        )
        ks = sorted({0, *plan.ks})
        with jax.default_matmul_precision(PRECISION):
            logits = self._masked_logits([self._pruning(plan, k) for k in ks])
        self.logits = dict(zip(ks, logits, strict=True))
        self.baseline = self.accuracy(self.logits[0])

    def _pruning(self, plan: Plan, k: int) -> masking.Pruning:
        return masking.make_pruning(self.variables, self.flow, plan.keep(k), plan.fill)

    def _masked_logits(self, prunings: Sequence[masking.Pruning]) -> list[np.ndarray]:
        apply, layer = self.run.apply, self.flow.layer

        @jax.jit
        def trunk(variables: Any, images: Any) -> Any:
            return taps.capture(apply, variables, images, layer)

        head = jax.jit(partial(masking.masked_network, apply, layer))
        fills = [(p.fill.values, p.fill.at_readers(p.flow, p.keep)) for p in prunings]
        parts: list[list[np.ndarray]] = [[] for _ in prunings]
        with cluster.progress(total=len(self.split), unit="img", desc="masked") as bar:
            for batch in batches(self.split, self.batch_size):
                maps = trunk(self.variables, batch.images)
                for part, fill, p in zip(parts, fills, prunings, strict=True):
                    logits = head(*fill, self.variables, batch.images, maps, p.keep)
                    part.append(np.asarray(logits, np.float32)[: batch.size])
                bar.update(batch.size)
        return [np.concatenate(part) for part in parts]
