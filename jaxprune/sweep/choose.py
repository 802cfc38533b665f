"""Which way to evaluate a sweep's pairs: the fastest that the network allows.

Axes: N images, P channels, K masks.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct
from jaxtyping import Array

from jaxprune.channels import taps
from jaxprune.channels.fills import AtReader, Fill
from jaxprune.channels.flow import ChannelFlow, channel_flow
from jaxprune.channels.head import Head, batch_of, make_head
from jaxprune.channels.masking import masked_network
from jaxprune.errors import InputError
from jaxprune.mesh import round_up
from jaxprune.sweep.changed import ChangedPairs
from jaxprune.sweep.evaluation import EveryPair, Plan, chunk_size
from jaxprune.sweep.reader import Reader, find_reader
from jaxprune.sweep.running_sum import STEP, RunningSum
from jaxprune.sweep.trunk import TappedLayer

Evaluation = EveryPair | ChangedPairs | RunningSum


def choose_evaluation(
    tapped: TappedLayer, plan: Plan, mask_chunk: int | None, every_pair: bool
) -> tuple[Evaluation, int]:
    """How to evaluate the masks, and the number of images to give it at once."""
    flow = find_flow(tapped, plan.fill)
    if flow is not None and not every_pair:
        images = tapped.images
        reader = find_reader(tapped.apply, tapped.variables, images, flow)
        if reader is not None:
            return _running_sum(tapped, plan, reader, mask_chunk)
    return _by_mask(tapped, plan, flow, mask_chunk, every_pair)


def find_flow(tapped: TappedLayer, fill: Fill) -> ChannelFlow | None:
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
    apply, output = tapped.apply, reader.layer.output
    head = reader_head(tapped, reader)
    around = elements_of(head.shapes_around(tapped.variables, 2))
    # A batch keeps what the reader returns and what goes around for every image, and
    # the changes of its input; a pair has its own of the former, and STEP changes.
    returned = math.prod(output.shape[1:]) + around
    elements = math.prod(tapped.mean_feature_map.shape)
    images = min(len(tapped.own), chunk_size(max(returned, elements // 4)))
    held = STEP * len(reader.features) * math.prod(output.shape[1:-1])
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
    at_readers: Mapping[str, AtReader] = plan.nested
    if not plan.fill.moments and flow is not None:
        at_readers = plan.fill.at_readers(flow, plan.masks[0])
    weights = (tapped.variables, at_readers)
    head = masked_head(tapped, plan.fill, weights)
    around = elements_of(head.shapes_around(weights, 2))
    elements = math.prod(tapped.mean_feature_map.shape) + around
    batch_size = tapped.batch_size
    chunk = min(len(plan.ks), mask_chunk or chunk_size(elements * batch_size))
    every = EveryPair(head, weights, tapped.mesh, plan, chunk)
    if every_pair or plan.fill.values is None:
        return every, batch_size
    return ChangedPairs(head, tapped.mesh, plan, every, chunk * batch_size), batch_size


def reader_head(tapped: TappedLayer, reader: Reader) -> Head:
    """(variables, images, what the reader returns) -> logits."""
    apply, name = tapped.apply, reader.layer.name
    output = ShapeDtypeStruct(reader.layer.output.shape[1:], np.dtype(np.float32))

    def whole(variables: Any, images: Array, output: Array) -> Array:
        return taps.run_from(apply, variables, images, name, output)

    return make_head(
        whole, tapped.variables, tapped.images, lambda n: (batch_of(output, n),)
    )


def masked_head(tapped: TappedLayer, fill: Fill, weights: Any) -> Head:
    """((variables, at readers), images, feature map, mask) -> logits."""
    whole = partial(_masked_logits, tapped.apply, tapped.name, fill.values)
    feature_map = ShapeDtypeStruct(tapped.mean_feature_map.shape, tapped.dtype)
    keep = ShapeDtypeStruct((tapped.channels,), np.dtype(bool))
    return make_head(
        whole, weights, tapped.images, lambda n: (batch_of(feature_map, n), keep)
    )


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


def elements_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of one image in arrays of these shapes."""
    return sum(math.prod(shape[1:]) for shape in shapes)
