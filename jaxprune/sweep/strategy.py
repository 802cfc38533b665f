"""Which way to evaluate a sweep's pairs: the fastest that the network allows.

Axes: N images, P channels, K masks.
"""

import math
from collections.abc import Mapping, Sequence

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import round_up
from jaxprune.evaluation.changed_pairs import ChangedPairs
from jaxprune.evaluation.consumer import Consumer, find_consumer
from jaxprune.evaluation.every_pair import EveryPair, Plan, chunk_size
from jaxprune.evaluation.head import Head, make_head
from jaxprune.evaluation.masked_head import make_masked_head
from jaxprune.evaluation.running_sum import STEP, RunningSum
from jaxprune.fills.fill import AtConsumer, ConstantFill, Fill
from jaxprune.graph.groups import PruningGroup
from jaxprune.sweep.activations import TappedLayer

Evaluation = EveryPair | ChangedPairs | RunningSum


def choose_evaluation(
    tapped: TappedLayer, plan: Plan, mask_chunk: int | None, every_pair: bool
) -> tuple[Evaluation, int]:
    """How to evaluate the masks, and the number of images to give it at once."""
    group = find_group(tapped, plan.fill)
    if group is not None and not every_pair:
        consumer = find_consumer(tapped.network, group)
        if consumer is not None:
            return _running_sum(tapped, plan, consumer, mask_chunk)
    return _by_mask(tapped, plan, group, mask_chunk, every_pair)


def find_group(tapped: TappedLayer, fill: Fill) -> PruningGroup | None:
    """The layer's channels; None where they cannot be followed and need not be."""
    try:
        group = tapped.network.graph().channels_of(tapped.name)
    except InputError:
        if not isinstance(fill, ConstantFill):
            raise
        return None
    fill.check(group)
    return group


def _running_sum(
    tapped: TappedLayer, plan: Plan, consumer: Consumer, mask_chunk: int | None
) -> tuple[RunningSum, int]:
    """The evaluation where one layer reads the channels."""
    output = consumer.output_shape
    head = consumer_head(tapped, consumer)
    around = elements_of(head.shapes_around(2))
    # A batch keeps what the consumer returns and what goes around for every image, and
    # the changes of its input; a pair has its own of the former, and STEP changes.
    returned = math.prod(output) + around
    elements = math.prod(tapped.mean_feature_map.shape)
    images = min(len(tapped.own), chunk_size(max(returned, elements // 4)))
    held = STEP * len(consumer.features) * math.prod(output[:-1])
    most = chunk_size(max(returned, held))
    pairs = mask_chunk * tapped.batch_size if mask_chunk else most
    running = RunningSum(
        tapped.network, tapped.arrays, tapped.name, consumer, head, tapped.mesh, plan,
        min(pairs, STEP * images),
    )  # fmt: skip
    return running, round_up(images, tapped.mesh.size)


def _by_mask(
    tapped: TappedLayer,
    plan: Plan,
    group: PruningGroup | None,
    mask_chunk: int | None,
    every_pair: bool,
) -> tuple[Evaluation, int]:
    """The evaluation that runs the whole head for each pair."""
    at_consumers: Mapping[str, AtConsumer] = plan.nested
    if not at_consumers and group is not None:
        at_consumers = plan.fill.at_consumers(group, plan.masks[0])
    weights = (tapped.arrays, at_consumers)
    head = make_masked_head(tapped.network, tapped.images, tapped.name, plan.fill)
    around = elements_of(head.head.shapes_around(2))
    elements = math.prod(tapped.mean_feature_map.shape) + around
    batch_size = tapped.batch_size
    chunk = min(len(plan.ks), mask_chunk or chunk_size(elements * batch_size))
    every = EveryPair(head, weights, tapped.mesh, plan, chunk)
    if every_pair or not isinstance(plan.fill, ConstantFill):
        return every, batch_size
    return ChangedPairs(head, tapped.mesh, plan, every, chunk * batch_size), batch_size


def consumer_head(tapped: TappedLayer, consumer: Consumer) -> Head:
    """The network's end from what the consumer returns."""
    name = consumer.layer.name
    return make_head(
        tapped.network, tapped.images, lambda graph: graph.layer(name).output
    )


def elements_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of one image in arrays of these shapes."""
    return sum(math.prod(shape[1:]) for shape in shapes)
