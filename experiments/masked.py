"""What compact networks are compared with: the whole network, with channels masked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cluster
from experiments.job import Job
from jaxprune.channels import flow as dependence
from jaxprune.channels import masking, taps
from jaxprune.compaction import cost
from jaxprune.data.splits import Split, batches
from jaxprune.ranking import order as ranking
from jaxprune.sweep.layer import masked_logits

# Images that the rounding bound is worked out for.
_EXAMPLES = 16

# The bound knows float32's rounding: no matrix unit may round factors more coarsely.
_PRECISION = "highest"


@dataclass(frozen=True)
class Plan:
    """What to prune.

    Attributes:
      layer: whose channels.
      criterion: that ranked them.
      fill: what they become.
      order: channels, the first to be pruned first.
      mean: of every channel, [P].
      ks: numbers of channels to prune.
      curve: the saved sweep's K and accuracies, where there is a sweep.
    """

    layer: str
    criterion: str
    fill: str
    order: np.ndarray
    mean: np.ndarray
    ks: tuple[int, ...]
    curve: tuple[Sequence[int], Sequence[float]] | None = None

    @property
    def name(self) -> str:
        """The beginning of the names of what is written."""
        layer = self.layer.replace("/", ".")
        return f"compact-{layer}-{self.criterion}-{self.fill}"

    @property
    def values(self) -> masking.Fill:
        """What `compact` is to be given as fill."""
        return self.mean if self.fill == "mean" else self.fill

    def keep(self, k: int) -> np.ndarray:
        """The mask with the k lowest channels pruned."""
        return ranking.prefix_masks(self.order, [k])[0]


class Masked:
    """The whole network and its masked versions over a split.

    The trunk up to the pruned layer runs once for all K.

    Attributes:
      run: the run directory's job.
      variables: the whole network's variables.
      split: the images.
      batch_size: images in a batch.
      example: scaled images, of which some are the split's first and last.
      apply: the whole network on scaled images.
      flow: where the layer's channels go.
      logits: K -> the masked network's logits [N, C]; K = 0 is the whole network.
      accuracy: the whole network's, in [0, 1].
      cost: of the whole network.
    """

    def __init__(
        self, run: Job, variables: Any, split: Split, plan: Plan, batch_size: int
    ):
        self.run, self.variables, self.split = run, variables, split
        self.batch_size = batch_size
        index = np.linspace(0, len(split) - 1, min(_EXAMPLES, len(split))).astype(int)
        self.example = run.scale(jnp.asarray(split.read(np.unique(index))))
        self.apply = partial(run.model.apply, train=False)
        self.flow = dependence.channel_flow(
            self.apply, variables, self.example, plan.layer
        )
        ks = sorted({0, *plan.ks})
        with jax.default_matmul_precision(_PRECISION):
            logits = self._masked_logits([self._pruning(plan, k) for k in ks])
        self.logits = dict(zip(ks, logits, strict=True))
        self.accuracy = float((self.logits[0].argmax(-1) == split.labels).mean())
        images = jnp.broadcast_to(self.example[:1], (32, *self.example.shape[1:]))
        self.cost = cost.cost(self.apply, variables, images)

    def _pruning(self, plan: Plan, k: int) -> masking.Pruning:
        return masking.make_pruning(
            self.variables, self.flow, plan.keep(k), plan.values
        )

    def _masked_logits(self, prunings: Sequence[masking.Pruning]) -> list[np.ndarray]:
        apply, layer = self.run.apply, self.flow.layer

        @jax.jit
        def trunk(variables: Any, images: Any) -> Any:
            return taps.capture(apply, variables, images, layer)

        head = jax.jit(partial(masked_logits, apply, layer, self.flow))
        parts: list[list[np.ndarray]] = [[] for _ in prunings]
        with cluster.progress(total=len(self.split), unit="img", desc="masked") as bar:
            for batch in batches(self.split, self.batch_size):
                maps = trunk(self.variables, batch.images)
                for part, p in zip(parts, prunings, strict=True):
                    logits = head(p.values, self.variables, batch.images, maps, p.keep)
                    part.append(np.asarray(logits, np.float32)[: batch.size])
                bar.update(batch.size)
        return [np.concatenate(part) for part in parts]

    def evaluate(self, apply: taps.Apply, variables: Any, what: str) -> np.ndarray:
        """Another network's logits [N, C]; `apply` takes scaled images.

        At full precision, so that they can be compared with `logits`.
        """
        function = jax.jit(lambda v, images: apply(v, self.run.scale(images)))
        parts = []
        with cluster.progress(total=len(self.split), unit="img", desc=what) as bar:
            for batch in batches(self.split, self.batch_size):
                with jax.default_matmul_precision(_PRECISION):
                    logits = function(variables, batch.images)
                part = np.asarray(logits, np.float32)
                parts.append(part[: batch.size])
                bar.update(batch.size)
        return np.concatenate(parts)
