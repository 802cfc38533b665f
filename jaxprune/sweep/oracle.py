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
from jaxprune.evaluation.every_pair import (
    Plan,
    chunk_size,
    chunks,
    fetch,
    mask_program,
)
from jaxprune.evaluation.running_sum import ReadNetwork
from jaxprune.fills.fill import Fill, LinearFill
from jaxprune.ranking.statistics import Losses
from jaxprune.sweep.activations import Progress, TappedLayer, ignore
from jaxprune.sweep.strategy import AtLayer, InSum, choose_place


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
        self._way = way = _choose(tapped, fill)
        mesh = tapped.mesh
        chunk = min(tapped.channels, chunk_size(way.elements * tapped.batch_size))
        self._chunk = round_up(chunk, mesh.shape[MASK])

        def one(weights: Any, state: Any, targets: Any, mask: Array) -> Array:
            return tapped.task.loss(way.outputs(weights, state, mask), targets)

        self._begin = Sharded(way.begin, mesh, (REPLICATED, SPREAD, SPREAD), SPREAD)
        self._losses = mask_program(one, mesh)
        self.functions = [self._begin, self._losses]

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
        few = _one_less(kept)[: self._chunk]
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
        tapped = self._tapped
        weights = replicate(self._way.weights(kept), tapped.mesh)
        starts = range(0, len(masks), self._chunk)
        for batch, maps in tapped.batches(tapped.batch_size):
            state = self._begin(weights, batch.images, maps)
            outputs = (
                self._losses(weights, (state, batch.targets), some)
                for some in chunks(masks, self._chunk)
            )
            for start, output in zip(starts, fetch(outputs), strict=True):
                losses = output[: len(masks) - start, : batch.size]
                self._on_pairs(losses.size)
                yield start, losses.sum(1, dtype=np.float64)


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

    def outputs(self, weights: Any, state: Any, mask: Array) -> Any:
        """Under a mask."""
        around, maps = state
        return self._head.outputs(weights, around, maps, mask)


class _ByConsumer:
    """Where one layer alone reads the channels: its sum, less one channel's part.

    Attributes:
      elements: numbers that an image and a mask take.
    """

    def __init__(self, tapped: TappedLayer, fill: Fill, place: InSum):
        plan = Plan(np.arange(tapped.channels), (0,), fill)
        self._network = ReadNetwork(
            tapped.network, tapped.name, place.consumer, plan, place.head, tapped.task
        )
        self._weights = self._network.weights(tapped.arrays)
        self._held = len(place.consumer.features)
        self.elements = max(place.returned, place.held)

    def weights(self, kept: Bool[np.ndarray, " P"]) -> Any:
        """The arrays, the consumer's rows, and what is kept."""
        return self._weights | {"kept": kept}

    def begin(self, weights: Any, images: Array, maps: Array) -> Any:
        """The way around, the consumer's sum, and its change by each channel."""
        network, kept = self._network, weights["kept"]
        read = network.read(weights, images, maps, jnp.arange(len(kept)), 0)
        part = read.part[..., : len(kept), :]
        gone = jnp.where(kept[:, None], 0, part)
        gone = gone.reshape(*gone.shape[:-2], -1)
        total = read.whole - self._product(weights, gone, 0)
        return network.head.around(weights["arrays"], images), total, part

    def outputs(self, weights: Any, state: Any, mask: Array) -> Any:
        """Under a mask that has all that is kept, or all but one."""
        around, total, part = state
        missing = weights["kept"] & ~mask
        j = jnp.argmax(missing)
        gone = jnp.where(missing.any(), part[..., j, :], 0)
        total -= self._product(weights, gone, j * self._held)
        return self._network.outputs(weights["arrays"], around, total)

    def _product(self, weights: Any, x: Array, start: Any) -> Array:
        """The consumer's product with some features, from row `start` of its kernel."""
        rows = lax.dynamic_slice_in_dim(weights["kernel"], start, x.shape[-1], -2)
        return self._network.consumer.product(rows, x)


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
