"""What pruning costs, measured: the loss under any mask, and of each channel besides.

Axes: N images, B images of a batch, P channels, K masks.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import ShapeDtypeStruct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxprune import processes
from jaxprune.channels.fills import Dropped, Fill
from jaxprune.channels.flow import channel_flow
from jaxprune.channels.head import batch_of, make_head
from jaxprune.channels.left_out import leave_out
from jaxprune.channels.masking import masked_network
from jaxprune.errors import InputError
from jaxprune.mesh import DATA, MASK, REPLICATED, SPREAD, Sharded, replicate, round_up
from jaxprune.ranking.evidence import Losses
from jaxprune.sweep.evaluation import chunk_size, chunks, fetch
from jaxprune.sweep.gather import cross_entropy
from jaxprune.sweep.trunk import Progress, TappedLayer, ignore


class MaskLosses:
    """Mean cross-entropy with any channels pruned and each other one besides, exactly.

    All masks go through one batched program. Called with a mask [P], see `Losses`.

    Attributes:
      functions: what was compiled.
    """

    def __init__(self, tapped: TappedLayer, fill: Fill, *, on_pairs: Progress = ignore):
        """Compiles nothing yet.

        Args:
          tapped: the feature maps of the images, and their labels.
          fill: what a pruned channel becomes.
          on_pairs: called with the number of (image, mask) pairs done.

        Raises:
          InputError: channels that the fill cannot be put in place of.
        """
        self._tapped, self._fill, self._on_pairs = tapped, fill, on_pairs
        self._readers: dict[str, Any] = {}
        if fill.values is None and not fill.moments:
            flow = channel_flow(
                tapped.apply, tapped.variables, tapped.images, tapped.name
            )
            self._readers = {name: Dropped(o) for name, o in flow.readers.items()}
        feature_map = ShapeDtypeStruct(tapped.mean_feature_map.shape, tapped.dtype)
        keep = ShapeDtypeStruct((tapped.channels,), np.dtype(bool))
        weights = self._weights(np.ones(tapped.channels, bool))
        head = make_head(
            self._logits, weights, tapped.images,
            lambda n: (batch_of(feature_map, n), keep),
        )  # fmt: skip
        around = head.shapes_around(weights, 2)
        elements = math.prod(feature_map.shape)
        elements += sum(math.prod(shape[1:]) for shape in around)
        mesh = tapped.mesh
        chunk = min(tapped.channels, chunk_size(elements * tapped.batch_size))
        self._chunk = round_up(chunk, mesh.shape[MASK])

        def losses(
            weights: Any, around: Any, maps: Array, labels: Array, masks: Array
        ) -> Array:
            def one(mask: Array) -> Array:
                return cross_entropy(head.logits(weights, around, maps, mask), labels)

            return jax.vmap(one)(masks)

        data, mask = PartitionSpec(DATA), PartitionSpec(MASK)
        self._around = Sharded(head.around, mesh, (REPLICATED, SPREAD), SPREAD)
        self._losses = Sharded(
            losses, mesh, (REPLICATED, data, data, data, mask),
            PartitionSpec(MASK, DATA),
        )  # fmt: skip
        self.functions = [self._around, self._losses]

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
                f"{int(images * most / seconds)} images take {_duration(most)} "
                "(--greedy_images)"
            )
        return seconds

    def _sums(
        self, kept: Bool[np.ndarray, " P"], masks: Bool[np.ndarray, "K P"]
    ) -> Iterator[tuple[int, Float[np.ndarray, " k"]]]:
        """Where in `masks` a chunk starts, and its losses added up over a batch."""
        tapped = self._tapped
        weights = replicate(self._weights(kept), tapped.mesh)
        starts = range(0, len(masks), self._chunk)
        for batch, maps in tapped.batches(tapped.batch_size):
            labels = np.zeros(tapped.batch_size, np.int32)
            here = slice(batch.start, batch.start + batch.size)
            labels[: batch.size] = tapped.own.labels[here]
            around = self._around(weights, batch.images)
            outputs = (
                self._losses(weights, around, maps, labels, some)
                for some in chunks(masks, self._chunk)
            )
            for start, output in zip(starts, fetch(outputs), strict=True):
                losses = output[: len(masks) - start, : batch.size]
                self._on_pairs(losses.size)
                yield start, losses.sum(1, dtype=np.float64)

    def _weights(self, kept: Bool[np.ndarray, " P"]) -> tuple[Any, dict[str, Any]]:
        """The variables, and what becomes of the readers' inputs."""
        moments = self._fill.moments.items()
        left_out = {name: leave_out(m, kept) for name, m in moments}
        return self._tapped.variables, self._readers | left_out

    def _logits(self, weights: Any, images: Array, maps: Array, keep: Array) -> Array:
        variables, at_readers = weights
        return masked_network(
            self._tapped.apply, self._tapped.name, self._fill.values, at_readers,
            variables, images, maps, keep,
        )  # fmt: skip


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
