"""The whole network over a split: what smaller networks are measured against."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune._base import processes
from jaxprune._base.batch import on_device, size_of, take
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import Sharded, round_up
from jaxprune.cli import cluster
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import ImageSettings
from jaxprune.compaction.network import Compact
from jaxprune.compaction.proof import Comparison, Proof
from jaxprune.costs import cost
from jaxprune.data import datasets
from jaxprune.data.splits import Batch, Split
from jaxprune.evaluation.predict import compiled, outputs
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.graph.trace import shape_of
from jaxprune.results.task_figures import score_figures
from jaxprune.tasks.classes import Classification
from jaxprune.tasks.task import Task

# Images that a network is traced for, and compared on equation by equation.
_EXAMPLES = 8
# Networks are compared: no matrix unit may round factors more coarsely than float32.
PRECISION = "highest"

# A network's outputs for all images, batch by batch.
Outputs = Iterator[tuple[Batch, Any]]


class Judged(NamedTuple):
    """What is known of a network's outputs, for each of N images.

    Attributes:
      terms: what each score of the task is made of, by its name: [N], or [N, S].
      losses: [N].
      predictions: the likeliest class [N, ...]; None where outputs are no logits, or
        they are not kept.
    """

    terms: dict[str, np.ndarray]
    losses: np.ndarray
    predictions: np.ndarray | None


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
      own: this process's share of them.
      task: what the network's outputs are for.
      batch_size: images in a batch.
      keeps_predictions: whether they are kept of each image.
      example: scaled images, of which some are the split's first and last.
      network: the whole network on scaled images, with these as its example.
      cost: of the whole network.
    """

    def __init__(
        self,
        run: Run,
        variables: Any,
        split: Split,
        batch_size: int,
        keeps_predictions: bool = False,
    ):
        self.run, self.variables, self.split = run, variables, split
        self.keeps_predictions = keeps_predictions
        self.own = split.select(processes.own(len(split)))
        self.batch_size = round_up(batch_size, run.mesh.size)
        index = np.linspace(0, len(split) - 1, min(_EXAMPLES, len(split))).astype(int)
        self.example = run.scale(on_device(split.read(np.unique(index))))
        self.network = run.whole.with_params(variables).with_example(self.example)
        self.task = self._for_targets(run.task, split.read_targets(np.unique(index)))
        self.cost = cost.cost(self.network, self._batch)

    def _for_targets(self, task: Task, targets: Any) -> Task:
        """The task for the split's targets.

        Args:
          task: the task.
          targets: of the example.

        Raises:
          InputError: outputs that the task does not take, or a target.
        """
        if task.imitates or isinstance(task, Classification):
            return task
        network = task.applied(self.network)
        outputs = jax.eval_shape(network.function, network.params, self.example)
        task.check(outputs, jax.tree.map(shape_of, targets))
        return task.for_targets(outputs, self.split.all_targets())

    @property
    def _batch(self) -> Any:
        """A batch of the size that costs are told for."""
        return take(self.example, np.zeros(32, int))

    def program(self, function: Callable[[Any, Any], Any]) -> Sharded:
        """A network as it is evaluated here: (weights, images) -> outputs."""
        return compiled(
            lambda weights, images: function(weights, self.run.scale(images)),
            self.run.mesh,
        )

    def outputs(self, program: Sharded, weights: Any) -> Outputs:
        """A network's outputs, batch by batch."""
        mesh = self.run.mesh
        return outputs(program, weights, self.own, self.batch_size, mesh)

    def judged(self, made: Outputs, what: str) -> Judged:
        """What is known of a network's outputs."""
        parts: list[Judged] = []
        with self._at_full_precision(what) as bar:
            for batch, found in made:
                parts.append(self._judged_batch(batch, found))
                bar.update(batch.size)
        return _joined(parts)

    def prove(
        self, masked: Outputs, small: Compact, unproved: bool = False
    ) -> tuple[Proof, Judged]:
        """Compares a compact network with the masked one on all images.

        Args:
          masked: outputs of the masked network.
          small: the compact network.
          unproved: see `Comparison`.

        Returns:
          The comparison, and what is known of the compact network's outputs.
        """
        coarsest = self.network.graph(self.example).program.coarsest
        comparison = self.comparison(coarsest, unproved=unproved)
        what = "compact and masked network"
        judged = self.compare(comparison, masked, self.small_outputs(small), what)
        proof = comparison.proof()
        if small.proof is not None:
            proof = replace(
                proof, equations=small.proof.equations,
                bound_used=small.proof.bound_used,
                not_proved=proof.not_proved or small.proof.not_proved,
            )  # fmt: skip
        return proof, judged

    def small_outputs(self, small: Compact) -> Outputs:
        """The outputs of a compact network, batch by batch."""
        return self.outputs(self.program(small.function), dict(small.arrays))

    def comparison(self, coarsest: Any = None, unproved: bool = False) -> Comparison:
        """An empty comparison of outputs of the task."""
        logits = self.task.part if self.task.logits else None
        return Comparison(logits, coarsest, unproved=unproved)

    def compare(
        self, comparison: Comparison, first: Outputs, second: Outputs, what: str
    ) -> Judged:
        """Fills a comparison; what is known of the second network's outputs."""
        classes = isinstance(self.task, Classification)
        parts: list[Judged] = []
        with self._at_full_precision(what) as bar:
            for (batch, before), (_, after) in zip(first, second, strict=True):
                rows = slice(batch.size)
                labels = batch.targets[rows] if classes else None
                first_rows, second_rows = take((before, after), rows)
                comparison.add(first_rows, second_rows, labels)
                parts.append(self._judged_batch(batch, after))
                bar.update(batch.size)
        comparison.join_processes()
        return _joined(parts)

    @contextmanager
    def _at_full_precision(self, what: str) -> Iterator[Any]:
        """A bar over the images, of networks that are to be compared."""
        with (
            cluster.progress(total=len(self.own), unit="img", desc=what) as bar,
            jax.default_matmul_precision(PRECISION),
        ):
            yield bar

    def _judged_batch(self, batch: Batch, found: Any) -> Judged:
        """What is known of a batch, without what fills it up."""
        targets = batch.targets
        if self.task.imitates:
            targets = self._whole(self.network.params, batch.images)
        filled_up = jax.tree.map(np.asarray, self._judge(found, targets))
        judged: Judged = take(filled_up, slice(batch.size))
        return judged

    @cached_property
    def _whole(self) -> Sharded:
        return self.program(with_fast_convolutions(self.network).function)

    @cached_property
    def _judge(self) -> Callable[[Any, Any], Any]:
        """(outputs, targets) -> what is known of them."""
        task = self.task

        def judge(found: Any, targets: Any) -> Judged:
            if task.imitates:
                targets = task.part(targets)
            found = task.part(found)
            terms: Any = task.terms(found, targets)
            losses: Any = task.loss(found, targets).astype(np.float32)
            predictions = None
            if task.logits and self.keeps_predictions:
                classes = np.min_scalar_type(found.shape[-1])
                predictions = found.argmax(-1).astype(classes)
            return Judged(terms, losses, predictions)

        return jax.jit(judge)

    def value(self, judged: Judged) -> float:
        """The task's first score."""
        name, score = next(iter(self.task.scores.items()))
        terms = judged.terms[name]
        if score.combine is None:
            return float(terms.mean(dtype=np.float64))
        sums = terms.sum(0, dtype=np.float64)
        return float(score.combine(sums[None])[0])

    def scores(self, whole: Judged, smaller: Judged) -> dict[str, float]:
        """Scores of the whole network and of a smaller one.

        By "baseline_" and the score's name, and by its name; "largest_drop" is how much
        of the first may have been lost, with 95 % confidence.
        """
        found: dict[str, float] = {}
        for name, score in self.task.scores.items():
            both = np.stack([whole.terms[name], smaller.terms[name]])
            figures = score_figures(both, score.combine, score.higher_is_better)
            before, after = figures.value.tolist()
            found |= {f"baseline_{name}": before, name: after}
            found.setdefault("largest_drop", float(figures.drop_limit[1]))
        return found

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


def _joined(parts: Sequence[Judged]) -> Judged:
    """What is known of all batches, of all processes."""

    def join(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(processes.gather(np.concatenate(arrays)))

    joined: Judged = jax.tree.map(join, *parts)
    return joined


def in_turns(
    programs: Sequence[Callable[[Any], Any]],
    example: Any,
    batches: Sequence[int],
    repeats: int,
) -> dict[str, dict[str, Any]]:
    """Times of a program before and after, by batch size."""
    found = {}
    for batch in batches:
        x = take(example, np.arange(batch) % size_of(example))
        before, after = cost.latencies(programs, x, repeats)
        found[str(batch)] = {
            "before": asdict(before),
            "after": asdict(after),
            "speedup": before.median / after.median,
        }
    return found
