"""The trunk: a layer's feature maps over a split, and what is known of the layer.

Axes: N images, B images of a batch, H x W positions, P channels.
"""

import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxprune import arguments, processes
from jaxprune.channels import taps
from jaxprune.channels.head import is_close, shuffled_with_repeats
from jaxprune.data.splits import Batch, Split, batches
from jaxprune.errors import InputError, check_choice
from jaxprune.mesh import (
    REPLICATED,
    SPREAD,
    Sharded,
    make_mesh,
    replicate,
    round_up,
)

# Images that a tap is tried on.
_TRIED = 16

Progress = Callable[[int], Any]


def ignore(count: int) -> None:
    """A progress bar that shows nothing."""
    del count


@dataclass(frozen=True)
class TappedLayer:
    """A layer's feature maps over a split, in a temporary file, and their mean.

    Attributes:
      name: the layer.
      split: all images.
      own: those of this process, whose feature maps the file holds.
      batch_size: images in a batch, B.
      bias: a channel's output at the tap when its kernel is zeroed.
      mean_feature_map: mean over the ranking split.
      apply: the network.
      variables: the network's, from which all this was computed.
      mesh: the devices.
      trunk_seconds: time to compute the feature maps.
      compile_seconds: time to compile what computes them.
      dtype: of the feature maps.
    """

    name: str
    split: Split
    own: Split
    batch_size: int
    bias: Float[np.ndarray, " P"]
    mean_feature_map: Float[np.ndarray, "*axes P"]
    apply: taps.Apply
    variables: Any
    mesh: Mesh
    trunk_seconds: float
    compile_seconds: float
    dtype: np.dtype
    _file: IO[bytes]

    @property
    def channels(self) -> int:
        """Their number, P."""
        return self.mean_feature_map.shape[-1]

    @property
    def channel_means(self) -> Float[np.ndarray, " P"]:
        """Mean of every channel over the ranking split and positions."""
        return self.mean_feature_map.reshape(-1, self.channels).mean(0)

    @cached_property
    def images(self) -> Array:
        """A few images of the split."""
        return _some_images(self.split)

    def batches(self, batch_size: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """This process's images and their feature maps, zeros after the last."""
        shape = (batch_size, *self.mean_feature_map.shape)
        self._file.seek(0)
        for batch in batches(self.own, batch_size):
            feature_map = np.zeros(shape, self.dtype)
            self._file.readinto(feature_map[: batch.size].reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
            yield batch, feature_map


def tap_layer(
    apply: taps.Apply,
    variables: Any,
    split: Split,
    *,
    layer: str | None = None,
    tap: str = "conv",
    rank_split: Split | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
    on_images: Progress = ignore,
) -> TappedLayer:
    """Runs the trunk once over the split, and over the ranking split if it differs.

    Where several processes run together, each gives the same splits, and works on its
    share of them.

    Args:
      apply: `apply(variables, images, **kwargs)` -> logits, which takes the split's
        images as they are, so it scales them; see `jaxprune.channels.taps`.
      variables: the network's variables.
      split: the images to evaluate.
      layer: name of the convolution; by default the last one.
      tap: one of `taps.TAPS`, where the feature map is taken.
      rank_split: the images to average over; by default `split`.
      batch_size: images in a batch.
      mesh: the devices to work on, see `jaxprune.mesh`; by default all of this process.
      on_images: called with the number of images done since the last call.

    Raises:
      InputError: unknown layer or tap, a tap that changes the network, a network that
        does not treat images one by one, or more processes than images.
    """
    check_choice("tap", tap, taps.TAPS)
    arguments.check_variables(variables)
    mesh = mesh or make_mesh()
    batch_size = round_up(arguments.check_count("batch_size", batch_size), mesh.size)
    if not len(split):
        raise InputError("the split has no images")
    images = _some_images(split)
    name = taps.last_conv(apply, variables, images) if layer is None else layer
    shape = _shape_of_one(apply, variables, images, name)
    classes = len(split.class_names)
    check_seconds = _check_tap(apply, variables, images, name, tap, classes)
    variables = replicate(variables, mesh)
    params = taps.at_path(variables["params"], name)
    bias = taps.TAPS[tap](jnp.asarray(params.get("bias", jnp.zeros(shape[-1]))))
    return _run_trunk(
        TappedLayer(
            name=name, split=split, own=_own(split), batch_size=batch_size,
            bias=np.asarray(bias, np.float32),
            mean_feature_map=np.zeros(shape), apply=apply, variables=variables,
            mesh=mesh, trunk_seconds=0.0, compile_seconds=check_seconds,
            dtype=np.dtype(np.float32), _file=tempfile.TemporaryFile(),
        ),
        taps.TAPS[tap], rank_split, on_images,
    )  # fmt: skip


def _run_trunk(
    empty: TappedLayer,
    activation: taps.Activation,
    rank_split: Split | None,
    on_images: Progress,
) -> TappedLayer:
    """The tapped layer with its feature maps."""

    def run(variables: Any, images: Array) -> Array:
        return taps.capture(empty.apply, variables, images, empty.name, activation)

    trunk = Sharded(run, empty.mesh, (REPLICATED, SPREAD), SPREAD)
    started = time.perf_counter()
    own_ranking = empty.own if rank_split is None else _own(rank_split)
    total = empty.mean_feature_map.copy()
    for source in [empty.own] if rank_split is None else [empty.own, own_ranking]:
        for batch in batches(source, empty.batch_size):
            maps = np.asarray(trunk(empty.variables, batch.images))[: batch.size]
            if source is empty.own:
                empty._file.write(maps.tobytes())
            if source is own_ranking:
                total += maps.sum(0, dtype=np.float64)
            on_images(batch.size)
    tapped = replace(
        empty,
        mean_feature_map=processes.total(total) / len(rank_split or empty.split),
        trunk_seconds=time.perf_counter() - started - trunk.compile_seconds,
        compile_seconds=trunk.compile_seconds + empty.compile_seconds,
        dtype=maps.dtype,
    )
    weakref.finalize(tapped, tapped._file.close)
    return tapped


def _own(split: Split) -> Split:
    """This process's share of a split."""
    return split.select(processes.own(len(split)))


def _some_images(split: Split) -> Array:
    return jnp.asarray(split.read(np.arange(min(_TRIED, len(split)))))


def _shape_of_one(
    apply: taps.Apply, variables: Any, images: Array, name: str
) -> tuple[int, ...]:
    """Shape of one image's feature map at a convolution.

    Raises:
      InputError: no such convolution, or it does not return one map for each image.
    """
    maps, *shape = taps.find_conv(apply, variables, images, name).output.shape
    if maps != len(images):
        raise InputError(
            f"layer '{name}' returns {maps} feature maps for {len(images)} images, not "
            "one for each"
        )
    return tuple(shape)


def _check_tap(
    apply: taps.Apply, variables: Any, images: Array, name: str, tap: str, classes: int
) -> float:
    """Raises unless the unmasked feature map, put back, gives the network's logits.

    Also where an image's logits depend on the images beside it.

    Returns:
      Seconds that compilation took.
    """

    def run(variables: Any, images: Array) -> tuple[Any, Any]:
        feature_map = taps.capture(apply, variables, images, name, taps.TAPS[tap])
        put_back = taps.run_from(apply, variables, images, name, feature_map)
        return apply(variables, images), put_back

    one = make_mesh(jax.local_devices()[:1])
    both = Sharded(run, one, (REPLICATED, REPLICATED), REPLICATED)
    whole, put_back = both(variables, images)
    if getattr(whole, "shape", None) != (len(images), classes):
        raise InputError(
            f"the network must return logits [N, {classes}], one for each class name, "
            f"got {jax.tree.map(jnp.shape, whole)} for {len(images)} images"
        )
    if not np.isfinite(whole).all():
        raise InputError("the network's logits are not finite: check its weights")
    index = shuffled_with_repeats(len(images))
    if not is_close(whole[index], both(variables, images[index])[0]):
        raise InputError(
            "the network's logits of an image depend on the other images of its batch, "
            "or on chance: give an apply for evaluation, as with train=False"
        )
    if not is_close(whole, put_back):
        raise InputError(
            f"tap '{tap}' is not what follows layer '{name}': the network changes when "
            f"its feature map is put back; choices: {', '.join(taps.TAPS)}"
        )
    return both.compile_seconds
