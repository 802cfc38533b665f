"""The whole network over a split: what smaller networks are measured against."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cluster
from experiments.job import Job
from jaxprune.channels import taps
from jaxprune.compaction import cost
from jaxprune.compaction.network import Compact
from jaxprune.compaction.proof import Proof, compare
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.errors import InputError
from jaxprune.mesh import Sharded
from jaxprune.networks.predict import compiled, predict

FLAGS = flags.FLAGS
# Images that the rounding bound is worked out for, and how much more sensitive to
# rounding any other may be than the most sensitive of them.
_EXAMPLES, _MARGIN = 16, 4.0

# The bound knows float32's rounding: no matrix unit may round factors more coarsely.
PRECISION = "highest"


def splits(run: Job) -> tuple[Split, Split]:
    """The images that networks are measured on, and those that fits are made on.

    Raises:
      InputError: they have images in common, which --allow_overlap would allow.
    """
    split, calibration = (
        datasets.choose_split(run.splits, which)
        for which in (FLAGS.eval_split, FLAGS.calibration_split)
    )
    shared = datasets.overlap(run.splits, FLAGS.calibration_split, FLAGS.eval_split)
    if shared and not FLAGS.allow_overlap:
        raise InputError(
            f"--calibration_split={FLAGS.calibration_split} holds {shared} images of "
            f"--eval_split={FLAGS.eval_split}: choose others, or --allow_overlap"
        )
    return split, calibration


class Whole:
    """The whole network.

    Attributes:
      run: the run directory's job.
      variables: the whole network's variables.
      split: the images.
      batch_size: images in a batch.
      example: scaled images, of which some are the split's first and last.
      apply: the whole network on scaled images.
      cost: of the whole network.
    """

    def __init__(self, run: Job, variables: Any, split: Split, batch_size: int):
        self.run, self.variables, self.split = run, variables, split
        self.batch_size = batch_size
        index = np.linspace(0, len(split) - 1, min(_EXAMPLES, len(split))).astype(int)
        self.example = run.scale(jnp.asarray(split.read(np.unique(index))))
        self.apply = partial(run.model.apply, **run.call)
        images = jnp.broadcast_to(self.example[:1], (32, *self.example.shape[1:]))
        self.cost = cost.cost(self.apply, variables, images)

    def program(self, apply: taps.Apply) -> Sharded:
        """Another network as `evaluate` runs it; `apply` takes scaled images."""
        return compiled(
            lambda variables, images: apply(variables, self.run.scale(images)),
            cluster.local_mesh(),
        )

    def evaluate(self, program: Sharded, variables: Any, what: str) -> np.ndarray:
        """A network's logits [N, C].

        At full precision, so that networks can be compared.
        """
        with (
            cluster.progress(total=len(self.split), unit="img", desc=what) as bar,
            jax.default_matmul_precision(PRECISION),
        ):
            return predict(
                program, variables, self.split, batch_size=self.batch_size,
                mesh=cluster.local_mesh(), on_images=bar.update,
            )  # fmt: skip

    def accuracy(self, logits: np.ndarray) -> float:
        """Share of predictions that are right, in [0, 1]."""
        return float((logits.argmax(-1) == self.split.labels).mean())

    def prove(self, masked: np.ndarray, small: Compact) -> Proof:
        """Compares a compact network with the masked one's logits on all images.

        The bound is the largest of the examples', times a margin for images that are
        more sensitive than they.
        """
        program = self.program(small.apply)
        after = self.evaluate(program, small.variables, "compact network")
        assert small.proof is not None
        bound = np.full(masked.shape, _MARGIN * small.proof.bound)
        return compare(masked, after, bound, self.split.labels)

    def figures(
        self, small: Compact, batches: Sequence[int], repeats: int
    ) -> dict[str, Any]:
        """Sizes and times, before and after."""
        images = jnp.broadcast_to(self.example[:1], (32, *self.example.shape[1:]))
        after = cost.cost(small.apply, small.variables, images)
        sizes: dict[str, Any] = {}
        for name in ("parameters", "multiply_adds", "file_bytes", "memory_bytes",
                     "working_bytes"):  # fmt: skip
            sizes[f"{name}_before"] = getattr(self.cost, name)
            sizes[name] = getattr(after, name)
        programs = [
            partial(jax.jit(lambda v, x, apply=apply: apply(v, x)), jax.device_put(v))
            for apply, v in (
                (self.apply, self.variables),
                (small.apply, small.variables),
            )
        ]
        latency = {}
        for batch in batches:
            x = jnp.resize(self.example, (batch, *self.example.shape[1:]))
            pair = cost.latencies(programs, x, repeats)
            latency[str(batch)] = {
                "before": asdict(pair[0]),
                "after": asdict(pair[1]),
                "speedup": pair[0].median / pair[1].median,
            }
        return {
            **sizes,
            "theoretical_speedup": self.cost.multiply_adds / after.multiply_adds,
            "latency": latency,
        }
