"""Which way to evaluate a sweep's pairs: the fastest that the network allows.

Axes: N images, P channels, K masks.
"""

import math
from collections.abc import Mapping, Sequence

from jaxprune.errors import InputError
from jaxprune.fills.fill import AtReader, ConstantFill, Fill
from jaxprune.graph.groups import PruningGroup
from jaxprune.mesh import round_up
from jaxprune.sweep.changed import ChangedPairs
from jaxprune.sweep.evaluation import EveryPair, Plan, chunk_size
from jaxprune.sweep.head import Head, make_head
from jaxprune.sweep.masked_head import make_masked_head
from jaxprune.sweep.reader import Reader, find_reader
from jaxprune.sweep.running_sum import STEP, RunningSum
from jaxprune.sweep.trunk import TappedLayer

Evaluation = EveryPair | ChangedPairs | RunningSum


def choose_evaluation(
    tapped: TappedLayer, plan: Plan, mask_chunk: int | None, every_pair: bool
) -> tuple[Evaluation, int]:
    """How to evaluate the masks, and the number of images to give it at once."""
    group = find_group(tapped, plan.fill)
    if group is not None and not every_pair:
        reader = find_reader(tapped.network, group)
        if reader is not None:
            return _running_sum(tapped, plan, reader, mask_chunk)
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
    tapped: TappedLayer, plan: Plan, reader: Reader, mask_chunk: int | None
) -> tuple[RunningSum, int]:
    """The evaluation where one layer reads the channels."""
    output = reader.output_shape
    head = reader_head(tapped, reader)
    around = elements_of(head.shapes_around(2))
    # A batch keeps what the reader returns and what goes around for every image, and
    # the changes of its input; a pair has its own of the former, and STEP changes.
    returned = math.prod(output) + around
    elements = math.prod(tapped.mean_feature_map.shape)
    images = min(len(tapped.own), chunk_size(max(returned, elements // 4)))
    held = STEP * len(reader.features) * math.prod(output[:-1])
    most = chunk_size(max(returned, held))
    pairs = mask_chunk * tapped.batch_size if mask_chunk else most
    running = RunningSum(
        tapped.network, tapped.arrays, tapped.name, reader, head, tapped.mesh, plan,
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
    at_readers: Mapping[str, AtReader] = plan.nested
    if not at_readers and group is not None:
        at_readers = plan.fill.at_readers(group, plan.masks[0])
    weights = (tapped.arrays, at_readers)
    head = make_masked_head(tapped.network, tapped.images, tapped.name, plan.fill)
    around = elements_of(head.head.shapes_around(2))
    elements = math.prod(tapped.mean_feature_map.shape) + around
    batch_size = tapped.batch_size
    chunk = min(len(plan.ks), mask_chunk or chunk_size(elements * batch_size))
    every = EveryPair(head, weights, tapped.mesh, plan, chunk)
    if every_pair or not isinstance(plan.fill, ConstantFill):
        return every, batch_size
    return ChangedPairs(head, tapped.mesh, plan, every, chunk * batch_size), batch_size


def reader_head(tapped: TappedLayer, reader: Reader) -> Head:
    """The network's end from what the reader returns."""
    name = reader.layer.name
    return make_head(
        tapped.network, tapped.images, lambda graph: graph.layer(name).output
    )


def elements_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """Of one image in arrays of these shapes."""
    return sum(math.prod(shape[1:]) for shape in shapes)
