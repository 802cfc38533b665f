"""The sweep: the network's outputs for every k, with the k lowest channels pruned.

    trunk:  images -> feature map                  once per image
    around: images -> what passes the layer by     once per image
    head:   feature map, around, mask -> outputs   once per pair that changes anything

Axes: N images, P channels, K masks.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxprune._base import arguments, processes
from jaxprune._base.batch import ahead
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import each_in_usual_options, usual_options
from jaxprune.data.splits import Batch
from jaxprune.evaluation.program import Evaluation, Judged, Plan
from jaxprune.fills.fill import Fill, resolve_fill
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.results.load import AnyResult
from jaxprune.results.saved import check_about
from jaxprune.sweep.activations import Progress, TappedLayer, ignore
from jaxprune.sweep.checkpoint import SweepCheckpoint, SweepCheckpointer, exact_sums
from jaxprune.sweep.outcome import Values, make_result
from jaxprune.sweep.strategy import choose_evaluation
from jaxprune.tasks.task import LOSS


@usual_options()
def sweep_layer(
    tapped: TappedLayer,
    scores: Float[np.ndarray, " P"],
    *,
    fill: str | np.ndarray | Fill = "zero",
    ks: Sequence[int] | None = None,
    mask_chunk: int | None = None,
    every_pair: bool = False,
    about: dict[str, Any] | None = None,
    checkpoint: SweepCheckpoint | None = None,
    on_pairs: Progress = ignore,
) -> AnyResult:
    """Measures the network with the k lowest-scoring channels pruned, by its task.

    Masks are nested, so an (image, k) pair whose newly pruned channels held their fill
    already has the output before it; only the others are evaluated.

    Args:
      tapped: the layer's feature maps, and the network they were computed with.
      scores: score of every channel; the lowest is pruned first.
      fill: the value of a pruned channel: a name, a number for every channel, or what
        `linear_fill` returns; see `jaxprune.fills.fill`.
      ks: strictly ascending numbers of pruned channels; by default 0 .. P-1. The
        first is the baseline that losses are measured from.
      mask_chunk: masks of a batch evaluated at once; by default chosen from the
        network.
      every_pair: evaluates every pair, whether it changes or not, in the plainest way.
      about: facts to keep in the result.
      checkpoint: place where finished images are kept while the sweep is under way; a
        sweep that was stopped goes on from there.
      on_pairs: called with the number of (image, k) pairs done since the last call.

    Returns:
      Of a classification a `SweepResult`, of other tasks a `TaskResult`.

    Raises:
      InputError: facts that cannot be kept, unknown fill, scores that are not finite
        or not one for each channel, unusable ks or mask_chunk, or channels that the
        fill cannot be put in place of because they join others before the next layer.
    """
    (found,) = sweep_orders(
        tapped, {"": scores}, fill=fill, ks=ks, mask_chunk=mask_chunk,
        every_pair=every_pair, about={"": about or {}}, checkpoint=checkpoint,
        on_pairs=on_pairs,
    )  # fmt: skip
    return found[1]


@usual_options()
def sweep_orders(
    tapped: TappedLayer,
    scores: Mapping[str, Float[np.ndarray, " P"]],
    *,
    fill: str | np.ndarray | Fill = "zero",
    ks: Sequence[int] | None = None,
    mask_chunk: int | None = None,
    every_pair: bool = False,
    about: Mapping[str, dict[str, Any]] | None = None,
    checkpoint: SweepCheckpoint | None = None,
    on_pairs: Progress = ignore,
) -> Iterator[tuple[str, AnyResult]]:
    """`sweep_layer` for several scores, such as those of several criteria.

    They share what was compiled, and a mask that several orders come to is evaluated
    once: K = 0, and wherever they agree on the set that is pruned. The other arguments
    are those of `sweep_layer`.

    Args:
      scores: scores of every channel, by the order's name.
      about: facts to keep in each result, by the order's name.

    Returns:
      Name and result of each, one after another as they are done.

    Raises:
      InputError: see `sweep_layer`; before anything is evaluated.
    """
    arguments.check_kind("tapped", tapped, TappedLayer, "what tap_layer returns")
    arguments.check_kind("scores", scores, Mapping, "a dictionary of scores by name")
    if checkpoint is not None:
        arguments.check_kind(
            "checkpoint", checkpoint, SweepCheckpoint, "a SweepCheckpoint"
        )
    about = {name: (about or {}).get(name, {}) for name in scores}
    for kept in about.values():
        check_about(kept)
    if mask_chunk is not None:
        arguments.check_count("mask_chunk", mask_chunk)
    resolved = resolve_fill(
        fill, layer=tapped.name, bias=tapped.bias, mean=tapped.channel_means
    ).among(tapped.network.layers)
    ks = check_ks(range(tapped.channels) if ks is None else ks, tapped.channels)
    plans = {name: Plan(_order(tapped, s), ks, resolved) for name, s in scores.items()}

    def results() -> Generator[tuple[str, AnyResult], None, None]:
        evaluated, masks = _Evaluated(tapped, mask_chunk, every_pair), _Masks(plans)
        for number, (name, plan) in enumerate(plans.items()):
            kept = checkpoint and replace(
                checkpoint, name=f"{checkpoint.name}-{number}"
            )
            yield (
                name,
                _sweep(
                    evaluated, masks, plan, scores[name], about[name], kept, on_pairs
                ),
            )

    return each_in_usual_options(results())


class _Masks:
    """Results of masks: each is evaluated once, and kept while an order still needs it.

    Attributes:
      waiting: number of times that each mask is still needed.
      found: values of all images, and mean losses, of masks.
    """

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        self.waiting = Counter(k for plan in plans.values() for k in self._keys(plan))
        self.found: dict[bytes, tuple[Values, np.ndarray]] = {}

    @staticmethod
    def _keys(plan: Plan) -> list[bytes]:
        masks = plan.masks if plan.ks else np.zeros((0, 1), bool)
        return [row.tobytes() for row in np.packbits(masks, axis=1)]

    def missing(self, plan: Plan) -> Plan:
        """The plan with those of its K alone that have not been evaluated."""
        keys = zip(plan.ks, self._keys(plan), strict=True)
        return replace(plan, ks=tuple(k for k, key in keys if key not in self.found))

    def add(self, plan: Plan, values: Values, losses: np.ndarray) -> None:
        """Results of a plan's masks: values [K, N, ...], mean losses [2, K]."""
        for k, key in enumerate(self._keys(plan)):
            row = {name: array[k].copy() for name, array in values.items()}
            self.found[key] = row, losses[:, k]

    def take(self, plan: Plan) -> tuple[Values, np.ndarray]:
        """The results of all masks of a plan; forgets what no later plan needs."""
        keys = self._keys(plan)
        rows, means = zip(*(self.found[key] for key in keys), strict=True)
        self.waiting.subtract(keys)
        for key in keys:
            if not self.waiting[key]:
                del self.found[key]
        values = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return values, np.transpose(means)


def _sweep(
    evaluated: "_Evaluated",
    masks: _Masks,
    plan: Plan,
    scores: Float[np.ndarray, " P"],
    about: dict[str, Any],
    checkpoint: SweepCheckpoint | None,
    on_pairs: Progress,
) -> AnyResult:
    """The result of one order; masks that an earlier one has evaluated are taken."""
    tapped, started = evaluated.tapped, time.perf_counter()
    new = masks.missing(plan)
    compiled = evaluated.compile_seconds
    values, losses, pairs = evaluated(new, checkpoint, on_pairs)
    on_pairs(len(tapped.own) * (len(plan.ks) - len(new.ks)))
    masks.add(new, values, losses)
    values, losses = masks.take(plan)
    seconds = time.perf_counter() - started
    compilation = evaluated.compile_seconds - compiled
    facts = {
        "layer": tapped.name,
        "batch_size": tapped.batch_size,
        "pairs": len(plan.ks) * len(tapped.split),
        "pairs_evaluated": int(processes.total(np.array([pairs]))[0]),
        "evaluation": evaluated.kind,
        "maps": tapped.maps.kind,
        "seconds": {
            "trunk": round(tapped.trunk_seconds, 3),
            "head": round(seconds - compilation, 3),
            "compilation": round(tapped.compile_seconds + compilation, 3),
        },
    }
    about = {**_fill_facts(plan.fill), **facts, **about}
    return make_result(tapped, plan, scores, values, losses, about)


class _Evaluated:
    """Masks of one layer, evaluated for all of its images.

    Attributes:
      tapped: the layer.
      mask_chunk: see `sweep_layer`.
      every_pair: see `sweep_layer`.
    """

    def __init__(self, tapped: TappedLayer, mask_chunk: int | None, every_pair: bool):
        self.tapped, self.mask_chunk, self.every_pair = tapped, mask_chunk, every_pair
        self._evaluate: Evaluation | None = None
        self._batch_size = 0

    @property
    def kind(self) -> str:
        """Name of the way that pairs are evaluated."""
        assert self._evaluate is not None
        return type(self._evaluate.way).__name__

    @property
    def compile_seconds(self) -> float:
        """Seconds that compilation has taken."""
        evaluate = self._evaluate
        return 0.0 if evaluate is None else evaluate.program.compile_seconds

    def __call__(
        self, plan: Plan, checkpoint: SweepCheckpoint | None, on_pairs: Progress
    ) -> tuple[Values, np.ndarray, int]:
        """Values [K, N, ...] of all processes' images, and means [2, K].

        The means are those of losses and of their squares. And the number of pairs
        evaluated here.
        """
        if self._evaluate is None:
            self._evaluate, self._batch_size = choose_evaluation(
                self.tapped, plan, self.mask_chunk, self.every_pair
            )
        elif plan.ks:
            self._evaluate = self._evaluate.reordered(plan)
        checkpointer = None
        if checkpoint is not None and plan.ks:
            checkpointer = SweepCheckpointer(checkpoint, self.tapped, plan)
        with checkpointer or nullcontext():
            return self._all_images(plan.ks, checkpointer, on_pairs)

    def _judged(
        self, evaluate: Evaluation, first: int, end: int
    ) -> Iterator[tuple[Batch, Judged]]:
        """Batches from image `first` to `end`; the next one starts meanwhile."""
        started = (
            (batch, evaluate.start(batch, feature_map))
            for batch, feature_map in self.tapped.batches(self._batch_size, first, end)
        )
        for batch, found in ahead(started):
            yield batch, evaluate.finish(batch, found)

    def _all_images(
        self,
        ks: tuple[int, ...],
        checkpointer: SweepCheckpointer | None,
        on_pairs: Progress,
    ) -> tuple[Values, np.ndarray, int]:
        tapped, evaluate = self.tapped, self._evaluate
        assert evaluate is not None
        values: Values = {}
        losses = np.zeros((2, len(ks)))
        evaluated = 0
        if not ks:
            return values, losses, 0

        def keep(first: int, end: int, found: Values) -> None:
            for name, array in found.items():
                shape = (len(ks), len(tapped.own), *array.shape[2:])
                held = values.setdefault(name, np.empty(shape, array.dtype))
                held[:, first:end] = array

        left, start = [], 0
        for known in checkpointer.finished() if checkpointer else ():
            left.append((start, known.first))
            start = known.end
            keep(known.first, known.end, known.values)
            losses += known.losses
            evaluated += known.evaluated
            on_pairs((known.end - known.first) * len(ks))
        for first, end in [*left, (start, len(tapped.own))]:
            for batch, judged in self._judged(evaluate, first, end):
                sums = exact_sums(judged.values[LOSS])
                kept = tapped.task.kept(judged.values)
                keep(batch.start, batch.start + batch.size, kept)
                losses += sums
                evaluated += judged.evaluated
                if checkpointer:
                    checkpointer.add(batch, kept, sums, judged.evaluated)
                on_pairs(batch.size * len(ks))
        # Every process has the same names in the same order.
        everyone = {
            name: np.concatenate(processes.gather(values[name].swapaxes(0, 1)))
            for name in sorted(values)
        }
        together = {name: array.swapaxes(0, 1) for name, array in everyone.items()}
        return together, processes.total(losses) / len(tapped.split), evaluated


def _fill_facts(fill: Fill) -> dict[str, Any]:
    facts: dict[str, Any] = {"fill": fill.name}
    return facts | ({"fill_facts": dict(fill.facts)} if fill.facts else {})


def _order(tapped: TappedLayer, scores: Float[np.ndarray, " P"]) -> np.ndarray:
    """Channels in the order in which they are pruned."""
    if np.shape(scores) != (tapped.channels,):
        raise InputError(
            f"scores must be {tapped.channels} numbers, one for each channel of "
            f"'{tapped.name}', got shape {np.shape(scores)}"
        )
    return pruning_order(scores)
