"""The sweep: the network's predictions for every k, with the k lowest channels pruned.

    trunk:  images -> feature map                 once per image
    around: images -> what passes the layer by    once per image
    head:   feature map, around, mask -> logits   once per pair that changes anything

Axes: N images, P channels, K masks.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jaxtyping import Array, Float

from jaxprune import arguments, processes
from jaxprune.channels import taps
from jaxprune.channels.fills import AtReader, Fill, resolve_fill
from jaxprune.channels.flow import ChannelFlow, channel_flow
from jaxprune.channels.head import batch_of, make_head
from jaxprune.channels.masking import masked_network
from jaxprune.errors import InputError
from jaxprune.mesh import round_up
from jaxprune.ranking.order import check_ks, pruning_order
from jaxprune.sweep.changed import ChangedPairs
from jaxprune.sweep.evaluation import EveryPair, Plan, chunk_size
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.running_sum import STEP, Reader, RunningSum, find_reader
from jaxprune.sweep.saved import check_about
from jaxprune.sweep.trunk import Progress, TappedLayer, ignore

Evaluation = EveryPair | ChangedPairs | RunningSum


def sweep_layer(
    tapped: TappedLayer,
    scores: Float[np.ndarray, " P"],
    *,
    fill: str | np.ndarray | Fill = "zero",
    ks: Sequence[int] | None = None,
    mask_chunk: int | None = None,
    every_pair: bool = False,
    about: dict[str, Any] | None = None,
    on_pairs: Progress = ignore,
) -> SweepResult:
    """Predictions of the network with the k lowest-scoring channels pruned.

    Masks are nested, so an (image, k) pair whose newly pruned channels held their fill
    already has the prediction before it; only the others are evaluated.

    Args:
      tapped: the layer's feature maps, and the network they were computed with.
      scores: score of every channel; the lowest is pruned first.
      fill: what a pruned channel becomes: a name, its value for every channel, or what
        `linear_fill` returns; see `jaxprune.channels.fills`.
      ks: strictly ascending numbers of pruned channels; by default 0 .. P-1. The
        first is the baseline that losses are measured from.
      mask_chunk: masks of a batch evaluated at once; by default chosen from the
        network.
      every_pair: evaluates every pair, whether it changes or not, in the plainest way.
      about: facts to keep in the result.
      on_pairs: called with the number of (image, k) pairs done since the last call.

    Raises:
      InputError: facts that cannot be kept, unknown fill, scores that are not finite
        or not one for each channel, unusable ks or mask_chunk, or channels that the
        fill cannot be put in place of because they join others before the next layer.
    """
    check_about({} if about is None else about)
    if mask_chunk is not None:
        arguments.check_count("mask_chunk", mask_chunk)
    resolved = resolve_fill(
        fill, layer=tapped.name, bias=tapped.bias, mean=tapped.channel_means
    )
    ks = check_ks(range(tapped.channels) if ks is None else ks, tapped.channels)
    plan = Plan(_order(tapped, scores), ks, resolved)
    started = time.perf_counter()
    evaluate, batch_size = _evaluation(tapped, plan, mask_chunk, every_pair)
    predictions, losses, evaluated = _predict(
        tapped, evaluate, batch_size, ks, on_pairs
    )
    seconds = time.perf_counter() - started
    how = _how(tapped, evaluate, predictions.size, evaluated, seconds)
    return SweepResult(
        ks=ks,
        order=plan.order,
        scores=scores,
        predictions=predictions,
        labels=tapped.split.labels,
        mean_feature_map=_three_axes(tapped.mean_feature_map),
        class_names=tapped.split.class_names,
        cross_entropy=losses,
        about={**_fill_facts(resolved), **how, **(about or {})},
    )


def _predict(
    tapped: TappedLayer,
    evaluate: Evaluation,
    batch_size: int,
    ks: tuple[int, ...],
    on_pairs: Progress,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Predictions [K, N] and mean losses [K] of all processes' images.

    And the number of pairs evaluated here.
    """
    dtype = np.uint8 if len(tapped.split.class_names) <= 256 else np.uint16
    predictions = np.empty((len(ks), len(tapped.own)), dtype)
    losses = np.zeros(len(ks))
    evaluated = 0
    for batch, feature_map in tapped.batches(batch_size):
        images = slice(batch.start, batch.start + batch.size)
        predicted = evaluate(batch, feature_map)
        predictions[:, images] = predicted.classes
        losses += predicted.losses.sum(axis=1, dtype=np.float64)
        evaluated += predicted.evaluated
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
) -> dict[str, Any]:
    """How the pairs were evaluated, and what it took."""
    compilation = sum(f.compile_seconds for f in evaluate.functions)
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


def _evaluation(
    tapped: TappedLayer, plan: Plan, mask_chunk: int | None, every_pair: bool
) -> tuple[Evaluation, int]:
    """How to evaluate the masks, and the number of images to give it at once."""
    flow = _flow(tapped, plan.fill)
    if flow is not None and not every_pair:
        images = tapped.images
        reader = find_reader(tapped.apply, tapped.variables, images, flow)
        if reader is not None:
            return _running_sum(tapped, plan, reader, mask_chunk)
    return _by_mask(tapped, plan, flow, mask_chunk, every_pair)


def _flow(tapped: TappedLayer, fill: Fill) -> ChannelFlow | None:
    """Where the channels go; None where that cannot be followed and need not be."""
    try:
        return channel_flow(tapped.apply, tapped.variables, tapped.images, tapped.name)
    except InputError:
        if fill.values is None:
            raise
        return None


def _running_sum(
    tapped: TappedLayer, plan: Plan, reader: Reader, mask_chunk: int | None
) -> tuple[RunningSum, int]:
    """The evaluation where one layer reads the channels."""
    apply, name = tapped.apply, reader.layer.name
    output = ShapeDtypeStruct(reader.layer.output.shape[1:], np.dtype(np.float32))

    def whole(variables: Any, images: Array, output: Array) -> Array:
        return taps.run_from(apply, variables, images, name, output)

    head = make_head(
        whole, tapped.variables, tapped.images, lambda n: (batch_of(output, n),)
    )
    around = _elements(head.shapes_around(tapped.variables, 2))
    # A batch keeps what the reader returns and what goes around for every image, and
    # the changes of its input; a pair has its own of the former, and STEP changes.
    returned = math.prod(output.shape) + around
    elements = math.prod(tapped.mean_feature_map.shape)
    images = min(len(tapped.own), chunk_size(max(returned, elements // 4)))
    held = STEP * len(reader.features) * math.prod(output.shape[:-1])
    most = chunk_size(max(returned, held))
    pairs = mask_chunk * tapped.batch_size if mask_chunk else most
    running = RunningSum(
        apply, tapped.variables, tapped.name, reader, head, tapped.mesh, plan,
        min(pairs, STEP * images),
    )  # fmt: skip
    return running, round_up(images, tapped.mesh.size)


def _by_mask(
    tapped: TappedLayer,
    plan: Plan,
    flow: ChannelFlow | None,
    mask_chunk: int | None,
    every_pair: bool,
) -> tuple[Evaluation, int]:
    """The evaluation that runs the whole head for each pair."""
    at_readers: dict[str, AtReader] = {}
    if plan.fill.moments:
        moments = plan.fill.moments.items()
        at_readers = {name: m.nest(plan.order) for name, m in moments}
    elif flow is not None:
        at_readers = plan.fill.at_readers(flow, plan.masks[0])
    whole = partial(_masked_logits, tapped.apply, tapped.name, plan.fill.values)
    feature_map = ShapeDtypeStruct(tapped.mean_feature_map.shape, tapped.dtype)
    keep = ShapeDtypeStruct((tapped.channels,), np.dtype(bool))
    weights = (tapped.variables, at_readers)
    head = make_head(
        whole, weights, tapped.images, lambda n: (batch_of(feature_map, n), keep)
    )
    around = _elements(head.shapes_around(weights, 2))
    elements = math.prod(feature_map.shape) + around
    batch_size = tapped.batch_size
    chunk = min(len(plan.ks), mask_chunk or chunk_size(elements * batch_size))
    every = EveryPair(head, weights, tapped.mesh, plan, chunk)
    if every_pair or plan.fill.values is None:
        return every, batch_size
    return ChangedPairs(head, tapped.mesh, plan, every, chunk * batch_size), batch_size


def _masked_logits(
    apply: taps.Apply,
    layer: str,
    values: Any,
    weights: Any,
    images: Array,
    feature_map: Array,
    keep: Array,
) -> Array:
    variables, at_readers = weights
    return masked_network(
        apply, layer, values, at_readers, variables, images, feature_map, keep
    )


def _elements(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of one image in arrays of these shapes."""
    return sum(math.prod(shape[1:]) for shape in shapes)


def _three_axes(feature_map: np.ndarray) -> np.ndarray:
    """[H, W, P], with H = W = 1 or W = 1 where the layer has fewer axes."""
    p = feature_map.shape[-1]
    height = feature_map.shape[0] if feature_map.ndim > 1 else 1
    return feature_map.reshape(height, -1, p).astype(np.float32)
