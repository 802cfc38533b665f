"""Where masks act, for sweeps and for measured costs, and how a sweep evaluates pairs.

Axes: N images, P channels, K masks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import round_up
from jaxprune.evaluation.changed_pairs import ChangedPairs
from jaxprune.evaluation.consumer import Consumer, find_consumer
from jaxprune.evaluation.every_pair import EveryPair
from jaxprune.evaluation.head import Head, make_head
from jaxprune.evaluation.masked_head import MaskedHead, make_masked_head
from jaxprune.evaluation.program import Evaluation, Plan, Way
from jaxprune.evaluation.running_sum import STEP, ReadNetwork, RunningSum
from jaxprune.fills.fill import AtConsumer, ConstantFill, Fill, LinearFill
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.sizes import chunk_size
from jaxprune.sweep.activations import TappedLayer
from jaxprune.sweep.maps import OnDevice


@dataclass(frozen=True)
class AtLayer:
    """Masks that act at the layer: all of the network behind it runs for each.

    Attributes:
      head: from the layer's output on.
      constants: the consumers' changes, where no mask changes these.
      elements: numbers that an image and a mask take.
    """

    head: MaskedHead
    constants: Mapping[str, AtConsumer]
    elements: int


@dataclass(frozen=True)
class InSum:
    """Masks that act in what the channels' one consumer returns, a sum over them.

    Attributes:
      consumer: the consumer.
      head: from what it returns on.
      returned: numbers of an image that it returns, or that go around it.
      held: numbers of an image that one channel's part is worked out from.
    """

    consumer: Consumer
    head: Head
    returned: int
    held: int


def choose_place(tapped: TappedLayer, fill: Fill, sums: bool) -> AtLayer | InSum:
    """Where masks act: in a consumer's sum, if `sums` and if the network allows it.

    Raises:
      InputError: channels that the fill cannot be put in place of.
    """
    group = _find_group(tapped, fill)
    if sums and group is not None:
        consumer = find_consumer(tapped.network, group)
        if consumer is not None:
            return _in_sum(tapped, consumer)
    return _at_layer(tapped, fill, group)


def _find_group(tapped: TappedLayer, fill: Fill) -> PruningGroup | None:
    """The layer's channels; None where they cannot be followed and need not be."""
    try:
        group = tapped.network.graph().channels_of(tapped.name)
    except InputError:
        if not isinstance(fill, ConstantFill):
            raise
        return None
    fill.check(group)
    return group


def _in_sum(tapped: TappedLayer, consumer: Consumer) -> InSum:
    name, output = consumer.layer.name, consumer.output_shape
    head = make_head(
        tapped.network, tapped.images, lambda graph: graph.layer(name).output
    )
    returned = math.prod(output) + _elements_of(head.shapes_around(2))
    returned = max(returned, tapped.output_elements)
    held = len(consumer.features) * math.prod(output[:-1])
    return InSum(consumer, head, returned, held)


def _at_layer(tapped: TappedLayer, fill: Fill, group: PruningGroup | None) -> AtLayer:
    constants: Mapping[str, AtConsumer] = {}
    if group is not None and not isinstance(fill, LinearFill):
        constants = fill.at_consumers(group, np.ones(tapped.channels, bool))
    head = make_masked_head(tapped.network, tapped.images, tapped.name, fill)
    elements = math.prod(tapped.mean_feature_map.shape)
    elements += _elements_of(head.head.shapes_around(2))
    return AtLayer(head, constants, max(elements, tapped.output_elements))


def _elements_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of one image in arrays of these shapes."""
    return sum(math.prod(shape[1:]) for shape in shapes)


def choose_evaluation(
    tapped: TappedLayer, plan: Plan, mask_chunk: int | None, every_pair: bool
) -> tuple[Evaluation, int]:
    """How to evaluate the masks, and the number of images to give it at once."""
    place = choose_place(tapped, plan.fill, sums=not every_pair)
    way: Way
    if isinstance(place, InSum):
        way, batch_size = _running_sum(tapped, plan, place, mask_chunk)
    else:
        batch_size = tapped.batch_size
        way = _by_mask(tapped, plan, place, mask_chunk, every_pair)
    return Evaluation(way, tapped.arrays, tapped.mesh, plan), batch_size


def _running_sum(
    tapped: TappedLayer, plan: Plan, place: InSum, mask_chunk: int | None
) -> tuple[RunningSum, int]:
    """The evaluation where one layer reads the channels."""
    devices = tapped.mesh.size
    if isinstance(tapped.maps, OnDevice):
        images = tapped.batch_size
    else:
        # A batch keeps what the consumer returns and what goes around for every image,
        # and the changes of its input: in all a quarter of what it might, so that it is
        # soon done.
        one = max(4 * place.returned, math.prod(tapped.mean_feature_map.shape))
        images = round_up(min(len(tapped.own), chunk_size(one)), devices)
    # A pair has its own of what the consumer returns, and STEP changes.
    most = chunk_size(max(place.returned, STEP * place.held))
    pairs = mask_chunk * tapped.batch_size if mask_chunk else most
    network = ReadNetwork(
        tapped.network, tapped.name, place.consumer, plan.fill, place.head, tapped.task
    )
    pairs = min(-(-pairs // devices), STEP * images // devices)
    return RunningSum(network, pairs), images


def _by_mask(
    tapped: TappedLayer,
    plan: Plan,
    place: AtLayer,
    mask_chunk: int | None,
    every_pair: bool,
) -> EveryPair | ChangedPairs:
    """The evaluation that runs the whole head for each pair."""
    head, batch_size = place.head, tapped.batch_size
    chunk = min(len(plan.ks), mask_chunk or chunk_size(place.elements * batch_size))
    if every_pair or not isinstance(plan.fill, ConstantFill):
        return EveryPair(head, place.constants, tapped.task, chunk)
    pairs = -(-chunk * batch_size // tapped.mesh.size)
    return ChangedPairs(head, place.constants, tapped.task, pairs)
