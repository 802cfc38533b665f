"""The trunk: a layer's feature maps over a split, and what criteria go by.

Axes: N images, B images of a batch, H x W positions, P channels.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxprune._base import arguments, manifest, processes
from jaxprune._base.errors import InputError, check_choice
from jaxprune._base.mesh import (
    REPLICATED,
    SPREAD,
    Sharded,
    make_mesh,
    replicate,
    round_up,
)
from jaxprune.adapters.networks import takes_network
from jaxprune.data.splits import Batch, Split, batches
from jaxprune.fills.masked import layer_bias
from jaxprune.graph.network import Network
from jaxprune.ranking.criteria import Criterion
from jaxprune.sweep import maps as places
from jaxprune.sweep.checks import check_tap, map_of_one
from jaxprune.sweep.statistics import Gathering, needs_of
from jaxprune.sweep.taps import TAPS, capture_map

# Images that a tap is tried on.
_TRIED = 16

Progress = Callable[[int], Any]


def ignore(count: int) -> None:
    """A progress bar that shows nothing."""
    del count


@dataclass(frozen=True)
class TappedLayer:
    """A layer's feature maps over a split, and their mean.

    Attributes:
      name: the layer.
      split: all images.
      own: those of this process.
      batch_size: images in a batch, B.
      bias: a channel's output at the tap when its kernel is zeroed.
      mean_feature_map: mean over the ranking split.
      network: the network, from which all this was computed.
      arrays: its parameters by path, on every device.
      mesh: the devices.
      trunk_seconds: time to compute the feature maps.
      compile_seconds: time to compile what computes them.
      dtype: of the feature maps.
      maps: where those of this process's images are.
      evidence: what criteria asked for of the ranking images, see `criteria.NEEDS`.
      ranked: by their number, the same layer over some of the ranking images, where
        criteria measure losses.
    """

    name: str
    split: Split
    own: Split
    batch_size: int
    bias: Float[np.ndarray, " P"]
    mean_feature_map: Float[np.ndarray, "*axes P"]
    network: Network
    arrays: Mapping[str, Any]
    mesh: Mesh
    trunk_seconds: float
    compile_seconds: float
    dtype: np.dtype
    maps: places.Maps
    evidence: Mapping[str, Any] = field(default_factory=dict)
    ranked: "Mapping[int, TappedLayer]" = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Their number, P."""
        return self.mean_feature_map.shape[-1]

    @property
    def channel_means(self) -> Float[np.ndarray, " P"]:
        """Mean of every channel over the ranking split and positions."""
        return self.mean_feature_map.reshape(-1, self.channels).mean(0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network's parameters."""
        return manifest.fingerprint(self.network.params)

    @cached_property
    def images(self) -> Array:
        """A few images of the split."""
        return _some_images(self.split)

    def batches(
        self, batch_size: int, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """This process's images and their feature maps, zeros after the last."""
        shape = (batch_size, *self.mean_feature_map.shape)
        for batch in batches(self.own, batch_size, first, end):
            feature_map = np.zeros(shape, self.dtype)
            self.maps.read(batch.start, feature_map[: batch.size])
            yield batch, feature_map


@takes_network
def tap_layer(
    network: Network,
    split: Split,
    *,
    layer: str | None = None,
    tap: str = "conv",
    rank_split: Split | None = None,
    criteria: Collection[str | Criterion] = (),
    oracle_images: Collection[int] = (),
    batch_size: int = 128,
    maps: str = "disk",
    maps_dir: Path | None = None,
    mesh: Mesh | None = None,
    on_images: Progress = ignore,
) -> TappedLayer:
    """Runs the trunk once over the split, and over the ranking split if it differs.

    Where several processes run together, each gives the same splits, and works on its
    share of them.

    Args:
      network: the network, images -> logits, which takes the split's images as they
        are, so it scales them; or in its place a function or `apply`, and its
        variables.
      split: the images to evaluate.
      layer: name of the convolution; by default the last one.
      tap: one of `TAPS`, where the feature map is taken.
      rank_split: the images to average over; by default `split`.
      criteria: those that `score` will be asked for; without any, those that go by the
        mean feature map. What they need is gathered in the same pass.
      oracle_images: numbers of images, evenly spaced over the ranking split, that
        losses can be measured on; by default all.
      batch_size: images in a batch.
      maps: "disk" keeps the feature maps in a temporary file until they are evaluated,
        "recompute" runs the trunk again then.
      maps_dir: the folder of that file; by default the system's for temporary files.
      mesh: the devices to work on, see `jaxprune.make_mesh`; by default all of this
        process.
      on_images: called with the number of images done since the last call.

    Raises:
      InputError: unknown layer, tap or criterion, a criterion that the layer cannot
        have, a tap that changes the network, a network that does not treat images one
        by one, more processes than images, or feature maps that do not fit on the disk.
    """
    check_choice("tap", tap, TAPS)
    check_choice("maps", maps, places.KINDS)
    ranking = split if rank_split is None else rank_split
    for what, given in (("split", split), ("rank_split", ranking)):
        arguments.check_kind(what, given, Split, "a Split, as image_split returns")
    if ranking.image_shape != split.image_shape:
        raise InputError(f"images: {ranking.image_shape} are not {split.image_shape}")
    needs = needs_of(criteria)
    mesh = make_mesh() if mesh is None else mesh
    arguments.check_kind("mesh", mesh, Mesh, "a mesh, as make_mesh returns")
    batch_size = round_up(arguments.check_count("batch_size", batch_size), mesh.size)
    if not len(split):
        raise InputError("the split has no images")
    images = _some_images(split)
    network = network.with_example(images)
    name = network.graph().last_conv() if layer is None else layer
    one = map_of_one(network, images, name)
    counts = arguments.check_counts("oracle_images", oracle_images)
    counts = (counts or {len(ranking)}) if "losses" in needs else set()
    if maps == "disk":
        kept = sum(len(processes.own(n)) for n in (len(split), *counts))
        places.check_space(maps_dir, kept * one.size * one.dtype.itemsize)
    classes = len(split.class_names)
    gathering = Gathering(network, name, tap, needs)
    check_seconds = check_tap(network, images, name, tap, classes)
    arrays = replicate(network.arrays, mesh)
    bias = TAPS[tap](jnp.asarray(layer_bias(network, network.layers[name])))
    specs = (REPLICATED, SPREAD, SPREAD)
    program = Sharded(_only_maps(network, name, tap), mesh, specs, SPREAD)

    def trunk(batch: Batch) -> np.ndarray:
        found = program(arrays, batch.images, batch.labels)
        return np.asarray(found["maps"])

    def place(own: Split) -> places.Maps:
        if maps == "recompute":
            return places.Recomputed(trunk, own, batch_size)
        return places.OnDisk(maps_dir)

    own = _own(split)
    tapped = TappedLayer(
        name=name, split=split, own=own, batch_size=batch_size,
        bias=np.asarray(bias, np.float32),
        mean_feature_map=np.zeros(one.shape), network=network, arrays=arrays,
        mesh=mesh, trunk_seconds=0.0, compile_seconds=check_seconds,
        dtype=np.dtype(one.dtype), maps=place(own),
    )  # fmt: skip
    ranked = {n: _ranked(tapped, place, ranking, n) for n in counts}
    tapped = replace(tapped, ranked=ranked)
    return _run_trunk(tapped, program, rank_split, gathering, on_images)


def _only_maps(network: Network, name: str, tap: str) -> Callable[..., dict[str, Any]]:
    def run(arrays: Any, images: Array, labels: Array) -> dict[str, Any]:
        del labels
        return {"maps": TAPS[tap](capture_map(network, arrays, images, name)),
                "given": {}}  # fmt: skip

    return run


def _ranked(
    tapped: TappedLayer,
    place: Callable[[Split], places.Maps],
    ranking: Split,
    count: int,
) -> TappedLayer:
    """The layer over `count` images of the ranking split, its feature maps to come."""
    if not 1 <= count <= len(ranking):
        raise InputError(
            f"losses are measured on 1 .. {len(ranking)} ranking images, got {count}"
        )
    chosen = _spaced(len(ranking), count)
    own = ranking.select(chosen[np.isin(chosen, processes.own(len(ranking)))])
    return replace(tapped, split=ranking.select(chosen), own=own, maps=place(own))


def _spaced(total: int, count: int) -> Int[np.ndarray, " n"]:
    """`count` of the indices 0 .. total - 1, evenly spaced."""
    return np.arange(count) * total // count


def _run_trunk(
    empty: TappedLayer,
    only_maps: Sharded,
    rank_split: Split | None,
    gathering: Gathering,
    on_images: Progress,
) -> TappedLayer:
    """The tapped layer with its feature maps and what was gathered."""
    same = rank_split is None
    trunk = rank = only_maps
    if not gathering.only_maps:
        specs = (REPLICATED, SPREAD, SPREAD)
        rank = Sharded(gathering.compute, empty.mesh, specs, SPREAD)
    own_ranking = _own(rank_split) if rank_split is not None else empty.own
    ranking = empty.split if rank_split is None else rank_split
    index = processes.own(len(ranking))
    kept = {n: np.isin(index, _spaced(len(ranking), n)) for n in empty.ranked}
    total = empty.mean_feature_map.copy()
    started = time.perf_counter()
    for source in [empty.own] if same else [empty.own, own_ranking]:
        program = rank if source is own_ranking else trunk
        for batch in batches(source, empty.batch_size):
            here = slice(batch.start, batch.start + batch.size)
            found = program(empty.arrays, batch.images, batch.labels)
            maps = np.asarray(found["maps"])[: batch.size]
            if source is empty.own:
                empty.maps.write(maps)
            if source is own_ranking:
                total += maps.sum(0, dtype=np.float64)
                gathering.add({**found, "maps": maps}, batch.size)
                for count, some in empty.ranked.items():
                    some.maps.write(maps[kept[count][here]])
            on_images(batch.size)
    seconds = time.perf_counter() - started
    compiled = sum(program.compile_seconds for program in {trunk, rank})
    mean = processes.total(total) / len(ranking)
    ranked = {n: replace(some, dtype=maps.dtype) for n, some in empty.ranked.items()}
    return replace(
        empty,
        mean_feature_map=mean,
        evidence=gathering.evidence() | {"mean_feature_map": mean},
        ranked=ranked,
        trunk_seconds=seconds - compiled,
        compile_seconds=compiled + empty.compile_seconds,
        dtype=maps.dtype,
    )


def _own(split: Split) -> Split:
    """This process's share of a split."""
    return split.select(processes.own(len(split)))


def _some_images(split: Split) -> Array:
    return jnp.asarray(split.read(np.arange(min(_TRIED, len(split)))))
