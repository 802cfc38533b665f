"""The trunk: a layer's feature maps over a split, and what criteria go by.

Axes: N images, B images of a batch, H x W positions, P channels.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxprune._base import arguments, manifest, processes
from jaxprune._base.batch import ahead
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
from jaxprune.evaluation.predict import compiled
from jaxprune.fills.masked import layer_bias
from jaxprune.graph.evaluate import run
from jaxprune.graph.network import Network
from jaxprune.graph.sizes import usual_batch_size
from jaxprune.ranking.criteria import Criterion
from jaxprune.sweep import maps as places
from jaxprune.sweep.checks import check_tap, map_of_one
from jaxprune.sweep.statistics import Gathering, needs_of
from jaxprune.sweep.taps import TAPS, capture_map
from jaxprune.tasks.classes import classification
from jaxprune.tasks.imitation import like_whole
from jaxprune.tasks.task import Task, shapes

# Images that a tap is tried on.
_TRIED = 16

Progress = Callable[[int], Any]


def ignore(count: int) -> None:
    """A progress bar that shows nothing."""
    del count


@dataclass(frozen=True, eq=False)
class TappedLayer:
    """A layer's feature maps over a split, and their mean.

    Attributes:
      name: the layer.
      split: all images.
      own: those of this process.
      batch_size: images in a batch, B.
      bias: a channel's output at the tap when its kernel is zeroed.
      mean_feature_map: mean over the ranking split.
      network: the network, from which all this was computed; it returns what the task
        goes by.
      task: that judges outputs.
      output_elements: numbers in the output for one image.
      arrays: its parameters by path, on every device.
      mesh: the devices.
      trunk_seconds: time to compute the feature maps.
      compile_seconds: time to compile what computes them.
      dtype: of the feature maps.
      maps: place of the feature maps of this process's images.
      evidence: statistics that criteria need, see `criteria.NEEDS`.
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
    task: Task
    output_elements: int
    arrays: Mapping[str, Any]
    mesh: Mesh
    trunk_seconds: float
    compile_seconds: float
    dtype: np.dtype
    maps: places.Maps
    evidence: Mapping[str, Any] = field(default_factory=dict)
    ranked: "Mapping[int, TappedLayer]" = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"TappedLayer({self.name}, {self.channels} channels, {len(self.split)} "
            "images)"
        )

    def __copy__(self) -> "TappedLayer":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TappedLayer":
        """Nothing in it is ever changed, so that it is shared."""
        return replace(self)

    def __reduce__(self) -> Any:
        raise InputError(
            "a tapped layer holds arrays on devices and feature maps in a file, which "
            "are not pickled: pickle what sweep_layer returns, or tap the layer again"
        )

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
    def images(self) -> Any:
        """A few images of the split."""
        return _some_images(self.split)

    @cached_property
    def _whole(self) -> Sharded:
        """The whole network, whose outputs a task may have for targets."""
        network = self.network

        def whole(arrays: Any, images: Any) -> Any:
            return run(network.graph(images).program, arrays, images)

        return compiled(whole, self.mesh)

    def batches(
        self, batch_size: int, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[Batch, Any]]:
        """This process's images and their feature maps; what follows the last is not.

        Maps are arrays of NumPy's, or where they are kept on the devices, of these.
        """
        for batch in batches(self.own, batch_size, first, end):
            feature_map = self._maps(batch, batch_size)
            if self.task.imitates:
                targets = self._whole(self.arrays, batch.images)
                batch = batch._replace(targets=targets)
            yield batch, feature_map

    def _maps(self, batch: Batch, batch_size: int) -> Any:
        if isinstance(self.maps, places.OnDevice):
            part = self.maps.part(batch.start, batch_size)
            if part is not None:
                return part
        maps = np.zeros((batch_size, *self.mean_feature_map.shape), self.dtype)
        self.maps.read(batch.start, maps[: batch.size])
        return maps


@takes_network
def tap_layer(
    network: Network,
    split: Split,
    *,
    task: Task | None = None,
    layer: str | None = None,
    tap: str = "conv",
    rank_split: Split | None = None,
    criteria: Collection[str | Criterion] = (),
    oracle_images: Collection[int] = (),
    batch_size: int | None = None,
    maps: str | None = None,
    maps_dir: Path | None = None,
    mesh: Mesh | None = None,
    on_images: Progress = ignore,
) -> TappedLayer:
    """Runs the trunk once over the split, and over the ranking split if it differs.

    Where several processes run together, each gives the same splits, and works on its
    share of them.

    Args:
      network: the network, which takes the split's images as they are, so it scales
        them; or in its place a function or `apply`, and its variables. Of one that
        returns probabilities (a softmax at its end), the logarithms of these are the
        logits.
      split: the images to evaluate.
      task: what the network's outputs are for, see `jaxprune.Task`. By default
        `classification()`, where the split's images have classes; where they have
        no targets either, `imitation()`.
      layer: name of the convolution; by default the last one.
      tap: one of `TAPS`, where the feature map is taken.
      rank_split: the images to average over; by default `split`.
      criteria: those that `score` will be asked for; without any, those that go by the
        mean feature map. What they need is gathered in the same pass.
      oracle_images: numbers of images, evenly spaced over the ranking split, that
        losses can be measured on; by default all.
      batch_size: images in a batch; by default 128 on a CPU, elsewhere as many as keep
        the device busy and fit into its memory.
      maps: "device" leaves the feature maps on the devices until they are evaluated,
        "disk" keeps them in a temporary file, "recompute" runs the trunk again then. By
        default "device" on an accelerator, "disk" on a CPU; and "disk", whatever is
        given, where they would take more than half of the devices' free memory.
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
    if maps is not None:
        check_choice("maps", maps, places.KINDS)
    ranking = split if rank_split is None else rank_split
    _check_splits(split, ranking)
    needs = needs_of(criteria)
    mesh = make_mesh() if mesh is None else mesh
    arguments.check_kind("mesh", mesh, Mesh, "a mesh, as make_mesh returns")
    if batch_size is not None:
        arguments.check_count("batch_size", batch_size)
    images = _some_images(split)
    if task is None:
        task = _default_task(network, split, images)
    arguments.check_kind("task", task, Task, "a Task, such as jaxprune.segmentation()")
    network = task.applied(network).with_example(images)
    if batch_size is None:
        batch_size = min(usual_batch_size(network), len(split))
    batch_size = round_up(batch_size, mesh.size)
    name = network.graph().last_conv() if layer is None else layer
    one = map_of_one(network, images, name)
    counts = arguments.check_counts("oracle_images", oracle_images)
    counts = (counts or {len(ranking)}) if "losses" in needs else set()
    kept = sum(len(processes.own(n)) for n in (len(split), *counts))
    needed = kept * one.size * one.dtype.itemsize
    maps = places.choose(maps, needed, mesh, maps_dir)
    if tap == "relu":
        network = network.with_relu(name)
    network, task, output_elements, check_seconds = check_tap(
        network, images, name, tap, task, split
    )
    arrays = replicate(network.arrays, mesh)
    specs = (REPLICATED, SPREAD, SPREAD)
    program = Sharded(_only_maps(network, name, tap), mesh, specs, SPREAD)

    def trunk(batch: Batch) -> np.ndarray:
        return np.asarray(program(arrays, batch.images, batch.targets)["maps"])

    def place(own: Split) -> places.Maps:
        if maps == "recompute":
            return places.Recomputed(trunk, own, batch_size)
        return places.OnDisk(maps_dir)

    gathering = Gathering(network, name, tap, needs, task)
    rank = program
    if not gathering.only_maps:
        rank = Sharded(gathering.compute, mesh, specs, SPREAD)
    own = _own(split)
    kept_maps = places.OnDevice(batch_size) if maps == "device" else place(own)
    of_ranking = _OfRanking(ranking, counts, gathering, place, one.shape)

    def keep(batch: Batch, found: dict[str, Any]) -> None:
        kept_maps.write(found["maps"], batch.size)

    started = time.perf_counter()
    if rank_split is None:
        passes = [(own, rank, [keep, of_ranking.add])]
    else:
        ranked = _own(rank_split)
        passes = [(own, program, [keep]), (ranked, rank, [of_ranking.add])]
    for source, step, uses in passes:
        for batch, found in _through(source, step, arrays, batch_size):
            for use in uses:
                use(batch, found)
            on_images(batch.size)
    seconds = time.perf_counter() - started
    compiled = sum(step.compile_seconds for step in {program, rank})
    mean = processes.total(of_ranking.total) / len(ranking)
    bias = TAPS[tap](jnp.asarray(layer_bias(network, network.layers[name])))
    tapped = TappedLayer(
        name=name, split=split, own=own, batch_size=batch_size,
        bias=np.asarray(bias, np.float32), mean_feature_map=mean, network=network,
        task=task, output_elements=output_elements,
        arrays=arrays, mesh=mesh, trunk_seconds=seconds - compiled,
        compile_seconds=compiled + check_seconds, dtype=np.dtype(one.dtype),
        maps=kept_maps, evidence=gathering.evidence() | {"mean_feature_map": mean},
    )  # fmt: skip
    return replace(tapped, ranked=of_ranking.layers(tapped))


def _through(
    source: Split, step: Sharded, arrays: Any, batch_size: int
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Batches and what a program makes of them; the next one starts meanwhile."""
    return ahead(
        (batch, step(arrays, batch.images, batch.targets))
        for batch in batches(source, batch_size)
    )


def _check_splits(split: Split, ranking: Split) -> None:
    for what, given in (("split", split), ("rank_split", ranking)):
        arguments.check_kind(what, given, Split, "a Split, as image_split returns")
    if not len(split) or not len(ranking):
        raise InputError("the split has no images")
    one, other = (shapes(s.read(np.arange(1))) for s in (ranking, split))
    if one != other:
        raise InputError(f"images of rank_split: {one} are not {other}")


def _default_task(network: Network, split: Split, images: Any) -> Task:
    """The task of a split: of its classes, or none but to be like the whole network."""
    if split.has_classes:
        return classification()
    if split.targets is not None:
        raise InputError(
            "say what the split's targets are for: task=jaxprune.segmentation(), "
            "regression(), reconstruction(), or a Task of your own"
        )
    return like_whole(jax.eval_shape(network.function, network.params, images))


class _OfRanking:
    """Sums over the ranking images, and feature maps of some of them.

    Attributes:
      total: sum of this process's feature maps.
    """

    def __init__(
        self,
        ranking: Split,
        counts: Collection[int],
        gathering: Gathering,
        place: Callable[[Split], places.Maps],
        shape: tuple[int, ...],
    ):
        self.total = np.zeros(shape)
        self._ranking, self._gathering = ranking, gathering
        self._index = processes.own(len(ranking))
        self._chosen = {count: _spaced(len(ranking), count) for count in counts}
        self._own = {
            count: ranking.select(rows[np.isin(rows, self._index)])
            for count, rows in self._chosen.items()
        }
        self._maps = {count: place(own) for count, own in self._own.items()}

    def add(self, batch: Batch, found: dict[str, Any]) -> None:
        """Results of a batch of ranking images."""
        maps = np.asarray(found["maps"])[: batch.size]
        self.total += maps.sum(0, dtype=np.float64)
        self._gathering.add({**found, "maps": maps}, batch.size)
        here = self._index[batch.start : batch.start + batch.size]
        for count, rows in self._chosen.items():
            chosen = maps[np.isin(here, rows)]
            self._maps[count].write(chosen, len(chosen))

    def layers(self, tapped: TappedLayer) -> dict[int, TappedLayer]:
        """The layer over each number of ranking images."""
        return {
            count: replace(
                tapped, split=self._ranking.select(rows), own=self._own[count],
                maps=self._maps[count],
            )
            for count, rows in self._chosen.items()
        }  # fmt: skip


def _only_maps(network: Network, name: str, tap: str) -> Callable[..., dict[str, Any]]:
    def trunk(arrays: Any, images: Any, targets: Any) -> dict[str, Any]:
        del targets
        return {"maps": TAPS[tap](capture_map(network, arrays, images, name)),
                "given": {}}  # fmt: skip

    return trunk


def _spaced(total: int, count: int) -> Int[np.ndarray, " n"]:
    """`count` of the indices 0 .. total - 1, evenly spaced."""
    if not 1 <= count <= total:
        raise InputError(
            f"losses are measured on 1 .. {total} ranking images, got {count}"
        )
    return np.arange(count) * total // count


def _own(split: Split) -> Split:
    """This process's share of a split."""
    return split.select(processes.own(len(split)))


def _some_images(split: Split) -> Any:
    images = split.read(np.arange(min(_TRIED, len(split))))
    return jax.tree.map(jnp.asarray, images)
