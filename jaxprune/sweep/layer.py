"""The sweep: the network's predictions for every k, with the k lowest channels pruned.

    trunk:  images -> feature map                 once per image
    around: images -> what passes the layer by    once per image
    head:   feature map, around, mask -> logits   once per pair that changes anything

Axes: N images, P channels, K masks.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune import mesh as meshes
from jaxprune import processes
from jaxprune.channels import masking, taps
from jaxprune.channels.flow import ChannelFlow, channel_flow
from jaxprune.channels.head import Head, make_head
from jaxprune.errors import InputError, check_choice
from jaxprune.ranking import order as ranking
from jaxprune.sweep.evaluation import (
    ChangedPairs,
    EveryPair,
    chunk_size,
    fill_channels,
)
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.running_sum import STEP, RunningSum, find_dense_reader
from jaxprune.sweep.trunk import Progress, TappedLayer, ignore

# What a pruned channel becomes at the tapped layer: (bias [P], mean [P]) -> fill [P].
# None drops it: no constant there does that, so the layers that read it read 0.
FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {
    "zero": lambda bias, mean: np.zeros_like(mean),
    "bias": lambda bias, mean: bias,
    "mean": lambda bias, mean: mean,
    "drop": lambda bias, mean: None,
}

Evaluation = EveryPair | ChangedPairs | RunningSum


def sweep_layer(
    tapped: TappedLayer,
    variables: Any,
    scores: Float[np.ndarray, " P"],
    *,
    fill: str = "zero",
    ks: Sequence[int] | None = None,
    mask_chunk: int | None = None,
    dense: bool = False,
    about: dict[str, Any] | None = None,
    on_pairs: Progress = ignore,
) -> SweepResult:
    """Predictions of the network with the k lowest-scoring channels pruned.

    Masks are nested, so an (image, k) pair whose newly pruned channels held their fill
    already has the prediction before it; only the others are evaluated.

    Args:
      tapped: the layer's feature maps.
      variables: the network's variables.
      scores: score of every channel; the lowest is pruned first.
      fill: one of FILLS, what a pruned channel becomes.
      ks: strictly ascending numbers of pruned channels; by default 0 .. P-1. The
        first is the baseline that losses are measured from.
      mask_chunk: masks of a batch evaluated at once; by default chosen from the
        network.
      dense: evaluates every pair all the same, by the plainest way.
      about: facts to keep in the result.
      on_pairs: called with the number of (image, k) pairs done since the last call.

    Raises:
      InputError: unknown fill, scores that are not finite or not one for each channel,
        unusable ks or mask_chunk, or channels that cannot be dropped because they join
        others before the next layer.
    """
    check_choice("fill", fill, FILLS)
    order = _rank(tapped, scores)
    ks = ranking.check_ks(range(len(order)) if ks is None else ks, len(order))
    mean = tapped.mean_feature_map.reshape(-1, len(order)).mean(0).astype(np.float32)
    values = FILLS[fill](tapped.bias, mean)
    started = time.perf_counter()
    variables = meshes.replicate(variables, tapped.mesh)
    evaluate, batch_size = _evaluation(
        tapped, variables, order, ks, values, mask_chunk, dense
    )
    classes = tapped.split.class_names
    dtype = np.uint8 if len(classes) <= 256 else np.uint16
    predictions = np.empty((len(ks), len(tapped.own)), dtype)
    for batch, feature_map in tapped.batches(batch_size):
        images = slice(batch.start, batch.start + batch.size)
        predicted = evaluate(variables, batch.images, feature_map, batch.size)
        predictions[:, images] = predicted[:, : batch.size]
        on_pairs(batch.size * len(ks))
    how = _how(tapped, evaluate, time.perf_counter() - started)
    return SweepResult(
        ks=ks,
        order=order,
        scores=scores,
        predictions=np.concatenate(processes.gather(predictions.T)).T,
        labels=tapped.split.labels,
        mean_feature_map=_three_axes(tapped.mean_feature_map),
        class_names=classes,
        about={
            "layer": tapped.name,
            "fill": fill,
            "batch_size": tapped.batch_size,
            "pairs": len(ks) * len(tapped.split),
            **how,
            **(about or {}),
        },
    )


def _how(tapped: TappedLayer, evaluate: Evaluation, seconds: float) -> dict[str, Any]:
    """How the pairs were evaluated, and what it took."""
    compilation = sum(f.compile_seconds for f in evaluate.functions)
    return {
        "pairs_evaluated": int(processes.total(np.array([evaluate.evaluated]))[0]),
        "evaluation": type(evaluate).__name__,
        "seconds": {
            "trunk": round(tapped.trunk_seconds, 3),
            "head": round(seconds - compilation, 3),
            "compilation": round(tapped.compile_seconds + compilation, 3),
        },
    }


def _rank(tapped: TappedLayer, scores: Float[np.ndarray, " P"]) -> np.ndarray:
    """Channels in the order in which they are pruned."""
    channels = tapped.mean_feature_map.shape[-1]
    if np.shape(scores) != (channels,):
        raise InputError(
            f"scores must be {channels} numbers, one for each channel of "
            f"'{tapped.name}', got shape {np.shape(scores)}"
        )
    return ranking.rank_channels(scores)


def _evaluation(
    tapped: TappedLayer,
    variables: Any,
    order: np.ndarray,
    ks: tuple[int, ...],
    fill: np.ndarray | None,
    mask_chunk: int | None,
    dense: bool,
) -> tuple[Evaluation, int]:
    """How to evaluate the masks, and the number of images to give it at once."""
    if mask_chunk is not None and mask_chunk < 1:
        raise InputError(f"mask_chunk must be at least 1, got {mask_chunk}")
    apply, layer, mesh = tapped.apply, tapped.name, tapped.mesh
    batch_size = tapped.batch_size
    head = _head(tapped, variables, fill)
    around = [math.prod(shape[1:]) for shape in head.shapes_around(variables, 2)]
    elements = math.prod(tapped.mean_feature_map.shape) + sum(around)
    chunk = min(len(ks), mask_chunk or chunk_size(elements * batch_size))
    reader = None
    if not dense and not around:
        reader = find_dense_reader(apply, variables, tapped.example, layer)
    if reader is not None:
        images = min(len(tapped.own), chunk_size(max(reader.units, elements // 4)))
        most = chunk_size(max(reader.units, STEP * reader.features.shape[1]))
        pairs = min(STEP * images, mask_chunk * batch_size if mask_chunk else most)
        running = RunningSum(apply, layer, reader, mesh, order, ks, fill, pairs)
        return running, meshes.round_up(images, mesh.size)
    every = EveryPair(head, mesh, ranking.prefix_masks(order, ks), chunk)
    if dense or fill is None:
        return every, batch_size
    pairs = chunk * batch_size
    return ChangedPairs(head, mesh, order, ks, fill, every, pairs), batch_size


def _head(tapped: TappedLayer, variables: Any, fill: np.ndarray | None) -> Head:
    """The network behind the layer, given what goes around it and the kept channels."""
    apply, layer, image = tapped.apply, tapped.name, tapped.example
    flow = values = None
    if fill is None:
        flow = channel_flow(apply, variables, image, layer)
    else:
        values = jnp.asarray(fill)
    return make_head(
        partial(masked_logits, apply, layer, flow, values),
        variables,
        tapped.examples,
        jax.ShapeDtypeStruct(tapped.mean_feature_map.shape, tapped.dtype),
    )


def masked_logits(
    apply: taps.Apply,
    layer: str,
    flow: ChannelFlow | None,
    fill: Array | None,
    variables: Any,
    images: Array,
    feature_map: Array,
    kept: Array,
) -> Array:
    """Logits [B, classes] of the network when the channels that are kept are left.

    Args:
      apply: the network.
      layer: where the feature map is put.
      flow: where its channels go; only to drop channels.
      fill: [P], what a channel becomes that is not kept; None drops it.
      variables: the network's variables.
      images: [B, ...].
      feature_map: [B, ..., P].
      kept: [P] or, with a fill, [B, P].
    """
    if fill is not None:
        feature_map = fill_channels(feature_map, kept, fill)
    else:
        assert flow is not None
        apply = masking.drop_channels(apply, flow, kept)
    return taps.replace(apply, variables, images, layer, feature_map)


def _three_axes(feature_map: np.ndarray) -> np.ndarray:
    """[H, W, P], with H = W = 1 or W = 1 where the layer has fewer axes."""
    p = feature_map.shape[-1]
    height = feature_map.shape[0] if feature_map.ndim > 1 else 1
    return feature_map.reshape(height, -1, p).astype(np.float32)
