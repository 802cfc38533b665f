"""The whole network over a split: what smaller networks are measured against."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import Sharded
from jaxprune.cli import cluster
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import ImageSettings
from jaxprune.compaction.network import Compact
from jaxprune.compaction.proof import Proof, compare
from jaxprune.costs import cost
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.evaluation.predict import compiled, predict

# Images that a network is traced for, and compared on equation by equation.
_EXAMPLES = 8
# Networks are compared: no matrix unit may round factors more coarsely than float32.
PRECISION = "highest"


def splits(run: Run, settings: ImageSettings) -> tuple[Split, Split]:
    """The images that networks are measured on, and those that fits are made on.

    Raises:
      InputError: they have images in common, which --allow_overlap would allow.
    """
    split, calibration = (
        datasets.choose_split(run.splits, which)
        for which in (settings.eval_split, settings.calibration_split)
    )
    shared = datasets.overlap(
        run.splits, settings.calibration_split, settings.eval_split
    )
    if shared and not settings.allow_overlap:
        raise InputError(
            f"--calibration_split={settings.calibration_split} holds {shared} images "
            f"of --eval_split={settings.eval_split}: choose others, or --allow_overlap"
        )
    return split, calibration


class Baseline:
    """The whole network.

    Attributes:
      run: the run directory's job.
      variables: the whole network's variables.
      split: the images.
      batch_size: images in a batch.
      example: scaled images, of which some are the split's first and last.
      network: the whole network on scaled images, with these as its example.
      cost: of the whole network.
    """

    def __init__(self, run: Run, variables: Any, split: Split, batch_size: int):
        self.run, self.variables, self.split = run, variables, split
        self.batch_size = batch_size
        index = np.linspace(0, len(split) - 1, min(_EXAMPLES, len(split))).astype(int)
        self.example = run.scale(jnp.asarray(split.read(np.unique(index))))
        self.network = run.whole.with_params(variables).with_example(self.example)
        self.cost = cost.cost(self.network, self._batch)

    @property
    def _batch(self) -> jax.Array:
        """A batch of the size that costs are told for."""
        return jnp.broadcast_to(self.example[:1], (32, *self.example.shape[1:]))

    def program(self, function: Callable[[Any, Any], Any]) -> Sharded:
        """A network as `evaluate` runs it: (weights, scaled images) -> logits."""
        return compiled(
            lambda weights, images: function(weights, self.run.scale(images)),
            self.run.mesh,
        )

    def evaluate(self, program: Sharded, weights: Any, what: str) -> np.ndarray:
        """A network's logits [N, C].

        At full precision, so that networks can be compared.
        """
        with (
            cluster.progress(total=len(self.split), unit="img", desc=what) as bar,
            jax.default_matmul_precision(PRECISION),
        ):
            return predict(
                program, weights, self.split, batch_size=self.batch_size,
                mesh=self.run.mesh, on_images=bar.update,
            )  # fmt: skip

    def accuracy(self, logits: np.ndarray) -> float:
        """Share of predictions that are right, in [0, 1]."""
        return float((logits.argmax(-1) == self.split.labels).mean())

    def prove(
        self, masked: np.ndarray, small: Compact, unproved: bool = False
    ) -> Proof:
        """Compares a compact network with the masked one's logits on all images."""
        program = self.program(small.function)
        after = self.evaluate(program, dict(small.arrays), "compact network")
        coarsest = self.network.graph(self.example).program.coarsest
        proof = compare(masked, after, self.split.labels, coarsest, unproved=unproved)
        if small.proof is None:
            return proof
        return replace(
            proof, equations=small.proof.equations, bound_used=small.proof.bound_used,
            not_proved=proof.not_proved or small.proof.not_proved,
        )  # fmt: skip

    def figures(
        self, small: Compact, batches: Sequence[int], repeats: int
    ) -> dict[str, Any]:
        """Sizes and times, before and after."""
        after = cost.cost(small.network, self._batch)
        sizes: dict[str, Any] = {}
        for name in ("parameters", "multiply_adds", "file_bytes", "memory_bytes",
                     "working_bytes"):  # fmt: skip
            sizes[f"{name}_before"] = getattr(self.cost, name)
            sizes[name] = getattr(after, name)
        programs = [
            partial(jax.jit(network.function), jax.device_put(network.params))
            for network in (self.network, small.network)
        ]
        return {
            **sizes,
            "theoretical_speedup": self.cost.multiply_adds / after.multiply_adds,
            "latency": in_turns(programs, self.example, batches, repeats),
        }


def in_turns(
    programs: Sequence[Callable[[jax.Array], Any]],
    example: jax.Array,
    batches: Sequence[int],
    repeats: int,
) -> dict[str, dict[str, Any]]:
    """Times of a program before and after, by batch size."""
    found = {}
    for batch in batches:
        x = jnp.resize(example, (batch, *example.shape[1:]))
        before, after = cost.latencies(programs, x, repeats)
        found[str(batch)] = {
            "before": asdict(before),
            "after": asdict(after),
            "speedup": before.median / after.median,
        }
    return found
