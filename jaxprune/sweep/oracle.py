"""The measured cost of pruning: the loss under any mask, and with one channel more.

Axes: N images, B images of a batch, P channels, K masks.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import (
    MASK,
    REPLICATED,
    SPREAD,
    Sharded,
    replicate,
    round_up,
)
from jaxprune.data.splits import Batch
from jaxprune.evaluation.masks import (
    chunks,
    fetch,
    mask_program,
)
from jaxprune.evaluation.program import Plan
from jaxprune.evaluation.running_sum import ReadNetwork
from jaxprune.fills.fill import Fill, LinearFill
from jaxprune.graph.sizes import chunk_size
from jaxprune.ranking.statistics import Losses
from jaxprune.sweep.activations import Progress, TappedLayer, ignore
from jaxprune.sweep.strategy import AtLayer, InSum, choose_place
from jaxprune.tasks.task import Task

# What is taken off a sum leaves 16 of float32's 24 bits, or is worked out without it.
_FAR_LARGER = 2**8


class MaskLosses:
    """The exact mean loss with some channels pruned, and with one more.

    All masks go through one batched program. Called with a mask [P], see `Losses`.

    Attributes:
      functions: compiled programs.
    """

    def __init__(self, tapped: TappedLayer, fill: Fill, *, on_pairs: Progress = ignore):
        """Compiles nothing yet.

        Args:
          tapped: the feature maps of the images, their targets, and the task.
          fill: the fill of pruned channels.
          on_pairs: called with the number of (image, mask) pairs done.

        Raises:
          InputError: channels that the fill cannot be put in place of.
        """
        self._tapped, self._on_pairs = tapped, on_pairs
        self._programs = _Programs(tapped, _choose(tapped, fill))
        self._plain: _Programs | None = None  # where sums lose digits
        if isinstance(self._programs.way, _ByConsumer):
            place = choose_place(tapped, fill, sums=False)
            assert isinstance(place, AtLayer)
            self._plain = _Programs(tapped, _ByMask(tapped, fill, place))
        used = [self._programs, self._plain] if self._plain else [self._programs]
        self.functions = [f for programs in used for f in programs.functions]

    def __call__(self, kept: Bool[np.ndarray, " P"]) -> Losses:
        """The loss with the channels that are kept, and without each of them."""
        masks = _one_less(kept)
        total = np.zeros(len(masks))
        for start, losses in self._sums(kept, masks):
            total[start : start + len(losses)] += losses
        total = processes.total(total) / len(self._tapped.split)
        without = np.full(len(kept), np.inf)
        without[kept] = total[1:]
        return Losses(float(total[0]), without)

    @property
    def own_images(self) -> int:
        """This process's share of the images."""
        return len(self._tapped.own)

    @property
    def greedy_masks(self) -> int:
        """Masks that `criteria.greedy_oracle` measures: P + 1, P, ..., 3."""
        p = self._tapped.channels
        return (p + 4) * (p - 1) // 2

    def check_greedy(self, most: float) -> float:
        """Estimated seconds of `criteria.greedy_oracle`, from a chunk of masks.

        Args:
          most: seconds that it may take.

        Raises:
          InputError: it would take longer.
        """
        kept = np.ones(self._tapped.channels, bool)
        few = _one_less(kept)[: self._programs.chunk]
        took = 0.0
        for _ in range(2):  # the first compiles
            started = time.perf_counter()
            next(self._sums(kept, few), None)
            took = time.perf_counter() - started
        longest = max(float(part[0]) for part in processes.gather(np.array([took])))
        batches = math.ceil(self.own_images / self._tapped.batch_size)
        seconds = longest * batches * self.greedy_masks / len(few)
        if seconds > most:
            images = len(self._tapped.split)
            raise InputError(
                f"greedy_oracle would take about {_duration(seconds)}: "
                f"{self.greedy_masks:,} masks of {images} images; "
                f"{int(images * most / seconds)} images take {_duration(most)}"
            )
        return seconds

    def _sums(
        self, kept: Bool[np.ndarray, " P"], masks: Bool[np.ndarray, "K P"]
    ) -> Iterator[tuple[int, Float[np.ndarray, " k"]]]:
        """Where in `masks` a chunk starts, and its losses added up over a batch."""
        tapped, programs, plain = self._tapped, self._programs, self._plain
        weights = programs.weights(kept)
        plain_weights: Any = None
        for batch, maps in tapped.batches(tapped.batch_size):
            found = programs.losses(weights, batch, maps, masks)
            for start, losses in found:
                lost = np.flatnonzero(np.isnan(losses).any(1))
                if plain and len(lost):
                    plain_weights = plain_weights or plain.weights(kept)
                    again = plain.losses(
                        plain_weights, batch, maps, masks[start + lost]
                    )
                    losses[lost] = np.concatenate([part for _, part in again])
                self._on_pairs(losses.size)
                yield start, losses.sum(1, dtype=np.float64)


class _Programs:
    """One way to the losses, compiled.

    Attributes:
      way: to outputs.
      chunk: masks in one evaluation.
      functions: compiled programs.
    """

    def __init__(self, tapped: TappedLayer, way: "_ByMask | _ByConsumer"):
        self.way, self._mesh = way, tapped.mesh
        chunk = min(tapped.channels, chunk_size(way.elements * tapped.batch_size))
        self.chunk = round_up(chunk, tapped.mesh.shape[MASK])

        def one(weights: Any, state: Any, targets: Any, mask: Array) -> Array:
            return way.loss(weights, state, mask, targets, tapped.task)

        in_specs = (REPLICATED, SPREAD, SPREAD)
        self._begin = Sharded(way.begin, tapped.mesh, in_specs, SPREAD)
        self._losses = mask_program(one, tapped.mesh)
        self.functions = [self._begin, self._losses]

    def weights(self, kept: Bool[np.ndarray, " P"]) -> Any:
        """The way's, on every device."""
        return replicate(self.way.weights(kept), self._mesh)

    def losses(
        self, weights: Any, batch: Batch, maps: Any, masks: Bool[np.ndarray, "K P"]
    ) -> Iterator[tuple[int, Float[np.ndarray, "k B"]]]:
        """Where in `masks` a chunk starts, and its losses of a batch's real images."""
        state = self._begin(weights, batch.images, maps)
        outputs = (
            self._losses(weights, (state, batch.targets), some)
            for some in chunks(masks, self.chunk)
        )
        starts = range(0, len(masks), self.chunk)
        for start, output in zip(starts, fetch(outputs), strict=True):
            yield start, np.array(output[: len(masks) - start, : batch.size])


class _ByMask:
    """Runs the whole network behind the layer for every mask.

    Attributes:
      elements: numbers that an image and a mask take.
    """

    def __init__(self, tapped: TappedLayer, fill: Fill, place: AtLayer):
        self._arrays, self._fill, self._constants = tapped.arrays, fill, place.constants
        self._head, self.elements = place.head, place.elements

    def weights(self, kept: Bool[np.ndarray, " P"]) -> Any:
        """The arrays, and what becomes of the consumers' features."""
        if isinstance(self._fill, LinearFill):
            return self._arrays, self._fill.left_out(kept)
        return self._arrays, self._constants

    def begin(self, weights: Any, images: Array, maps: Array) -> Any:
        """The part that a batch's masks share."""
        return self._head.around(weights, images), maps

    def loss(
        self, weights: Any, state: Any, mask: Array, targets: Any, task: Task
    ) -> Array:
        """Of a batch under a mask."""
        around, maps = state
        return task.loss(self._head.outputs(weights, around, maps, mask), targets)


class _ByConsumer:
    """Where one layer alone reads the channels: its sum, less one channel's part.

    Where that part is far larger than what is left, its rounding is left, too. Such a
    loss is nan, and to be worked out in another way.

    Attributes:
      elements: numbers that an image and a mask take.
    """

    def __init__(self, tapped: TappedLayer, fill: Fill, place: InSum):
        plan = Plan(np.arange(tapped.channels), (0,), fill)
        self._network = ReadNetwork(
            tapped.network, tapped.name, place.consumer, fill, place.head, tapped.task
        )
        self._weights = self._network.weights(tapped.arrays, plan)
        self._held = len(place.consumer.features)
        self.elements = max(place.returned, place.held)

    def weights(self, kept: Bool[np.ndarray, " P"]) -> Any:
        """The arrays, the consumer's rows, and what is kept."""
        return self._weights | {"kept": kept}

    def begin(self, weights: Any, images: Array, maps: Array) -> Any:
        """The way around, the consumer's sum, and its change by each channel."""
        network, kept = self._network, weights["kept"]
        # The channels in their own order; of two ranks, those that go have the first.
        read = network.read(weights, images, maps, kept.astype(int), 1)
        part = read.part[..., : len(kept), :]
        return network.head.around(weights["arrays"], images), read.pruned, part

    def loss(
        self, weights: Any, state: Any, mask: Array, targets: Any, task: Task
    ) -> Array:
        """Of a batch under a mask that has all that is kept, or all but one."""
        around, total, part = state
        missing = weights["kept"] & ~mask
        j = jnp.argmax(missing)
        gone = jnp.where(missing.any(), part[..., j, :], 0)
        gone = self._product(weights, gone, j * self._held)
        left = total - gone
        outputs = self._network.outputs(weights["arrays"], around, left)
        lost = _largest(gone) > _FAR_LARGER * _largest(left)
        return jnp.where(lost, jnp.nan, task.loss(outputs, targets))

    def _product(self, weights: Any, x: Array, start: Any) -> Array:
        """The consumer's product with some features, from row `start` of its kernel."""
        rows = lax.dynamic_slice_in_dim(weights["kernel"], start, x.shape[-1], -2)
        return self._network.consumer.product(rows, x)


def _largest(y: Array) -> Float[Array, " B"]:
    """The largest absolute number of each image."""
    return jnp.abs(y).reshape(len(y), -1).max(1)


def _choose(tapped: TappedLayer, fill: Fill) -> _ByMask | _ByConsumer:
    """The fastest way that the network and the fill allow."""
    # Under the linear fill what becomes of a channel depends on which others are kept.
    place = choose_place(tapped, fill, sums=not isinstance(fill, LinearFill))
    if isinstance(place, InSum):
        return _ByConsumer(tapped, fill, place)
    return _ByMask(tapped, fill, place)


def _one_less(kept: Bool[np.ndarray, " P"]) -> Bool[np.ndarray, "K P"]:
    """The mask itself, then without each of the channels that it keeps."""
    masks = np.tile(kept, (1 + kept.sum(), 1))
    masks[1 + np.arange(kept.sum()), np.flatnonzero(kept)] = False
    return masks


def _duration(seconds: float) -> str:
    """In seconds, minutes or hours, two digits or more."""
    for unit, length in (("seconds", 1), ("minutes", 60)):
        if seconds < 120 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} hours"
