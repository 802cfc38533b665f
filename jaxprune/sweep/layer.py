"""The sweep: the network's predictions for every k, with the k lowest channels pruned.

    trunk:  images -> feature map                 once per image
    around: images -> what passes the layer by    once per image
    head:   feature map, around, mask -> logits   once per pair that changes anything

Axes: N images, P channels, K masks.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxprune._base import arguments, processes
from jaxprune._base.errors import InputError
from jaxprune.evaluation.every_pair import Plan
from jaxprune.fills.fill import Fill, resolve_fill
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.results import thumbnails
from jaxprune.results.result import SweepResult
from jaxprune.results.saved import check_about
from jaxprune.sweep.activations import Progress, TappedLayer, ignore
from jaxprune.sweep.checkpoint import SweepCheckpoint, SweepCheckpointer, exact_sums
from jaxprune.sweep.strategy import Evaluation, choose_evaluation


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
) -> SweepResult:
    """Predictions of the network with the k lowest-scoring channels pruned.

    Masks are nested, so an (image, k) pair whose newly pruned channels held their fill
    already has the prediction before it; only the others are evaluated.

    Args:
      tapped: the layer's feature maps, and the network they were computed with.
      scores: score of every channel; the lowest is pruned first.
      fill: what a pruned channel becomes: a name, its value for every channel, or what
        `linear_fill` returns; see `jaxprune.fills.fill`.
      ks: strictly ascending numbers of pruned channels; by default 0 .. P-1. The
        first is the baseline that losses are measured from.
      mask_chunk: masks of a batch evaluated at once; by default chosen from the
        network.
      every_pair: evaluates every pair, whether it changes or not, in the plainest way.
      about: facts to keep in the result.
      checkpoint: where finished images are kept while the sweep is under way, and taken
        from if it was before.
      on_pairs: called with the number of (image, k) pairs done since the last call.

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
) -> Iterator[tuple[str, SweepResult]]:
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
    )
    ks = check_ks(range(tapped.channels) if ks is None else ks, tapped.channels)
    plans = {name: Plan(_order(tapped, s), ks, resolved) for name, s in scores.items()}
    way = _Way(mask_chunk, every_pair, checkpoint)
    return _sweep(tapped, plans, scores, about, way, on_pairs)


class _Way(NamedTuple):
    """How to evaluate, see `sweep_layer`."""

    mask_chunk: int | None
    every_pair: bool
    checkpoint: SweepCheckpoint | None

    def checkpointer(
        self, tapped: TappedLayer, plan: Plan, order: int
    ) -> SweepCheckpointer | None:
        """Of one of the orders."""
        if self.checkpoint is None or not plan.ks:
            return None
        name = f"{self.checkpoint.name}-{order}"
        return SweepCheckpointer(replace(self.checkpoint, name=name), tapped, plan)


def _sweep(
    tapped: TappedLayer,
    plans: Mapping[str, Plan],
    scores: Mapping[str, Float[np.ndarray, " P"]],
    about: Mapping[str, dict[str, Any]],
    way: _Way,
    on_pairs: Progress,
) -> Iterator[tuple[str, SweepResult]]:
    """The results, each mask evaluated when the first order comes to it."""
    awaited = Counter(key for plan in plans.values() for key in _keys(plan))
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    evaluate: Evaluation | None = None
    for number, (name, plan) in enumerate(plans.items()):
        started = time.perf_counter()
        keys = _keys(plan)
        new = [i for i, key in enumerate(keys) if key not in known]
        ours = replace(plan, ks=tuple(plan.ks[i] for i in new))
        if evaluate is None:
            evaluate, batch_size = choose_evaluation(tapped, ours, *way[:2])
        elif new:
            evaluate = evaluate.reordered(ours)
        compiled = _compile_seconds(evaluate)
        checkpointer = way.checkpointer(tapped, ours, number)
        with checkpointer or nullcontext():
            found, losses, evaluated = _predict(
                tapped, evaluate, batch_size, (ours.ks, checkpointer), on_pairs
            )
        on_pairs(len(tapped.own) * (len(keys) - len(new)))
        for i, row, means in zip(new, found, losses.T, strict=True):
            known[keys[i]] = row.copy(), means
        rows, every_means = zip(*(known[key] for key in keys), strict=True)
        predictions, (mean, mean_square) = np.stack(rows), np.transpose(every_means)
        awaited.subtract(keys)
        known = {key: made for key, made in known.items() if awaited[key]}
        seconds = time.perf_counter() - started
        compilation = _compile_seconds(evaluate) - compiled
        facts = _how(
            tapped, evaluate, predictions.size, evaluated, seconds, compilation
        )
        flip = thumbnails.shown(predictions == tapped.split.labels)
        pictures = thumbnails.of_split(tapped.split, flip)
        yield (
            name,
            SweepResult(
                ks=plan.ks,
                order=plan.order,
                scores=scores[name],
                predictions=predictions,
                labels=tapped.split.labels,
                mean_feature_map=_three_axes(tapped.mean_feature_map),
                class_names=tapped.split.class_names,
                cross_entropy=mean,
                cross_entropy_std=np.sqrt(np.maximum(mean_square - mean**2, 0)),
                thumbnail_images=pictures.images,
                thumbnails=pictures.pixels,
                about={**_fill_facts(plan.fill), **facts, **about[name]},
            ),
        )


def _keys(plan: Plan) -> list[bytes]:
    """Each mask, short."""
    return [row.tobytes() for row in np.packbits(plan.masks, axis=1)]


def _compile_seconds(evaluate: Evaluation) -> float:
    return sum(f.compile_seconds for f in evaluate.functions)


def _predict(
    tapped: TappedLayer,
    evaluate: Evaluation,
    batch_size: int,
    what: tuple[tuple[int, ...], SweepCheckpointer | None],
    on_pairs: Progress,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Predictions [K, N] of all processes' images, and means [2, K].

    The means are those of losses and of their squares. And the number of pairs
    evaluated here.
    """
    ks, checkpointer = what
    dtype = np.uint8 if len(tapped.split.class_names) <= 256 else np.uint16
    predictions = np.empty((len(ks), len(tapped.own)), dtype)
    losses = np.zeros((2, len(ks)))
    evaluated = 0
    if not ks:
        return predictions, losses, 0
    left, start = [], 0
    for known in checkpointer.finished() if checkpointer else ():
        left.append((start, known.first))
        start = known.end
        predictions[:, known.first : known.end] = known.classes
        losses += known.losses
        evaluated += known.evaluated
        on_pairs((known.end - known.first) * len(ks))
    for first, end in [*left, (start, len(tapped.own))]:
        for batch, feature_map in tapped.batches(batch_size, first, end):
            predicted = evaluate(batch, feature_map)
            images = slice(batch.start, batch.start + batch.size)
            predictions[:, images] = predicted.classes
            sums = exact_sums(predicted.losses)
            losses += sums
            evaluated += predicted.evaluated
            if checkpointer:
                checkpointer.add(batch, predicted, sums)
            on_pairs(batch.size * len(ks))
    everyone = np.concatenate(processes.gather(predictions.T)).T
    return everyone, processes.total(losses) / len(tapped.split), evaluated


def _fill_facts(fill: Fill) -> dict[str, Any]:
    facts: dict[str, Any] = {"fill": fill.name}
    return facts | ({"fill_facts": dict(fill.facts)} if fill.facts else {})


def _how(
    tapped: TappedLayer,
    evaluate: Evaluation,
    pairs: int,
    evaluated: int,
    seconds: float,
    compilation: float,
) -> dict[str, Any]:
    """How the pairs were evaluated, and what it took."""
    return {
        "layer": tapped.name,
        "batch_size": tapped.batch_size,
        "pairs": pairs,
        "pairs_evaluated": int(processes.total(np.array([evaluated]))[0]),
        "evaluation": type(evaluate).__name__,
        "seconds": {
            "trunk": round(tapped.trunk_seconds, 3),
            "head": round(seconds - compilation, 3),
            "compilation": round(tapped.compile_seconds + compilation, 3),
        },
    }


def _order(tapped: TappedLayer, scores: Float[np.ndarray, " P"]) -> np.ndarray:
    """Channels in the order in which they are pruned."""
    if np.shape(scores) != (tapped.channels,):
        raise InputError(
            f"scores must be {tapped.channels} numbers, one for each channel of "
            f"'{tapped.name}', got shape {np.shape(scores)}"
        )
    return pruning_order(scores)


def _three_axes(feature_map: np.ndarray) -> np.ndarray:
    """[H, W, P], with H = W = 1 or W = 1 where the layer has fewer axes."""
    p = feature_map.shape[-1]
    height = feature_map.shape[0] if feature_map.ndim > 1 else 1
    return feature_map.reshape(height, -1, p).astype(np.float32)
