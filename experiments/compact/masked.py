"""What compact networks are compared with: the whole network, with channels masked."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cluster
from experiments.compact.plan import Plan
from experiments.job import Job
from jaxprune.channels import masking, taps
from jaxprune.channels.flow import channel_flow
from jaxprune.compaction import cost
from jaxprune.data.splits import Split, batches
from jaxprune.mesh import Sharded
from jaxprune.networks.predict import compiled, predict

# Images that the rounding bound is worked out for.
_EXAMPLES = 16

# The bound knows float32's rounding: no matrix unit may round factors more coarsely.
_PRECISION = "highest"


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
        self.flow = channel_flow(
            self.apply, variables, self.example, plan.choices.layer
        )
        ks = sorted({0, *plan.ks})
        with jax.default_matmul_precision(_PRECISION):
            logits = self._masked_logits([self._pruning(plan, k) for k in ks])
        self.logits = dict(zip(ks, logits, strict=True))
        self.accuracy = float((self.logits[0].argmax(-1) == split.labels).mean())
        images = jnp.broadcast_to(self.example[:1], (32, *self.example.shape[1:]))
        self.cost = cost.cost(self.apply, variables, images)

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

    def program(self, apply: taps.Apply) -> Sharded:
        """Another network as `evaluate` runs it; `apply` takes scaled images."""
        return compiled(
            lambda variables, images: apply(variables, self.run.scale(images)),
            cluster.local_mesh(),
        )

    def evaluate(self, program: Sharded, variables: Any, what: str) -> np.ndarray:
        """Another network's logits [N, C].

        At full precision, so that they can be compared with `logits`.
        """
        with (
            cluster.progress(total=len(self.split), unit="img", desc=what) as bar,
            jax.default_matmul_precision(_PRECISION),
        ):
            return predict(
                program, variables, self.split, batch_size=self.batch_size,
                mesh=cluster.local_mesh(), on_images=bar.update,
            )  # fmt: skip
