"""The sweep: the network's predictions for every mask over one layer's channels.

    trunk: images -> feature map                 once per image
    head:  feature map, mask -> logits           vmapped over masks

Axes: N images, B images of a batch, H x W positions, P channels, K masks.
"""

import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxprune import masking, ranking, taps
from jaxprune.data import Batch, Split, batches
from jaxprune.dependence import channel_flow
from jaxprune.errors import InputError, check_choice
from jaxprune.results import SweepResult

# What a pruned channel becomes at the tapped layer: (bias [P], mean [P]) -> fill [P].
# None drops it: no constant there does that, so the layers that read it read 0.
FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray | None]] = {
    "zero": lambda bias, mean: np.zeros_like(mean),
    "bias": lambda bias, mean: bias,
    "mean": lambda bias, mean: mean,
    "drop": lambda bias, mean: None,
}

# Feature-map elements that one evaluation of the head holds: large enough to keep a
# matrix unit busy, small enough (16 MiB of float32) for a laptop.
_CHUNK_ELEMENTS = 2**22

Progress = Callable[[int], Any]


def _ignore(count: int) -> None:
    del count


def _predict_masks(
    head: Callable[..., Array],
    feature_map: Array,
    masks: Array,
    fill: Array | None,
) -> Array:
    """Predicted classes [K, B] of a batch under each mask."""

    def predict(mask: Array) -> Array:
        if fill is None:
            return jnp.argmax(head(feature_map, mask), axis=-1)
        masked = jnp.where(mask, feature_map, fill.astype(feature_map.dtype))
        return jnp.argmax(head(masked), axis=-1)

    return jax.vmap(predict)(masks)


_predict = jax.jit(_predict_masks)


def mask_chunk_size(shape: Sequence[int]) -> int:
    """How many masks to evaluate at once over a feature map of this shape."""
    return max(1, _CHUNK_ELEMENTS // int(np.prod(shape)))


def evaluate_masks(
    head: Callable[..., Array],
    feature_map: Float[Array, "B *axes P"] | Float[np.ndarray, "B *axes P"],
    masks: Bool[np.ndarray, "K P"],
    *,
    fill: Float[np.ndarray, " P"] | float | None = 0.0,
    mask_chunk: int | None = None,
    predict: Callable[..., Array] = _predict,
) -> Int[np.ndarray, "K B"]:
    """Predicted class of every image under every mask.

    A channel that a mask leaves out holds its fill at every position:
    `where(mask, feature_map, fill)`.

    Args:
      head: feature map [B, ..., P] -> logits [B, classes]. A `jax.tree_util.Partial`
        that binds the variables keeps them out of the compiled code. Without a fill it
        is given the mask too, and masks by itself.
      feature_map: the layer's output for a batch of images.
      masks: True where a channel is kept.
      fill: what a pruned channel becomes; None leaves that to the head.
      mask_chunk: masks evaluated at once; by default chosen from the batch.
      predict: the compiled evaluation of one chunk, where there is one already.
    """
    head = head if isinstance(head, Partial) else Partial(head)
    chunk = mask_chunk or mask_chunk_size(feature_map.shape)
    fills = None
    if fill is not None:
        fills = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), masks.shape[1:])
    padded = np.pad(masks, [(0, -len(masks) % chunk), (0, 0)])
    outputs = [
        predict(head, feature_map, padded[i : i + chunk], fills)
        for i in range(0, len(padded), chunk)
    ]
    return np.concatenate([np.asarray(out) for out in outputs])[: len(masks)]


@dataclass(frozen=True)
class TappedLayer:
    """A layer's feature maps over a split, in a temporary file, and their mean.

    Attributes:
      name: the layer.
      split: the images.
      batch_size: images in a batch, B.
      bias: a channel's output behind the tap when its kernel is zeroed.
      mean_feature_map: mean over the ranking split.
      apply: the network.
      head: (variables, images, feature map) -> logits. The images matter only where
        the network reaches its end around the layer too.
      trunk_seconds: time to compute the feature maps.
      compile_seconds: time to compile what computes them.
    """

    name: str
    split: Split
    batch_size: int
    bias: Float[np.ndarray, " P"]
    mean_feature_map: Float[np.ndarray, "*axes P"]
    apply: taps.Apply
    head: Callable[[Any, Array, Array], Array]
    trunk_seconds: float
    compile_seconds: float
    _file: IO[bytes]
    _dtype: np.dtype

    def batches(self) -> Iterator[tuple[Batch, np.ndarray]]:
        """The split's images and their feature maps, batch by batch."""
        shape = (self.batch_size, *self.mean_feature_map.shape)
        size = int(np.prod(shape)) * self._dtype.itemsize
        self._file.seek(0)
        for batch in batches(self.split, self.batch_size):
            data = np.frombuffer(self._file.read(size), self._dtype)
            yield batch, data.reshape(shape)


def tap_layer(
    apply: taps.Apply,
    variables: Any,
    split: Split,
    *,
    layer: str | None = None,
    tap: str = "conv",
    rank_split: Split | None = None,
    batch_size: int = 256,
    on_images: Progress = _ignore,
) -> TappedLayer:
    """Runs the trunk once over the split, and over the ranking split if it differs.

    Args:
      apply: `apply(variables, images, **kwargs)` -> logits, see `jaxprune.taps`. It
        takes the split's own uint8 images, so it scales them.
      variables: the network's variables.
      split: the images to evaluate.
      layer: name of the convolution; by default the last one.
      tap: one of `taps.TAPS`, where the feature map is taken.
      rank_split: the images to average over; by default `split`.
      batch_size: images in a batch.
      on_images: called with the number of images done since the last call.

    Raises:
      InputError: unknown layer or tap, or a tap that changes the network.
    """
    check_choice("tap", tap, taps.TAPS)
    activation = taps.TAPS[tap]
    example = jnp.asarray(next(batches(split, batch_size)).images)
    name = layer or taps.last_conv(apply, variables, example)
    conv = taps.find_conv(apply, variables, example, name)

    def trunk(variables: Any, images: Array) -> Array:
        return taps.capture(apply, variables, images, name, activation)

    def head(variables: Any, images: Array, feature_map: Array) -> Array:
        return taps.replace(apply, variables, images, name, feature_map)

    started = time.perf_counter()
    compiled = jax.jit(trunk).lower(variables, example).compile()
    compile_seconds = time.perf_counter() - started
    _check_tap(apply, head, variables, example, compiled(variables, example), name, tap)

    total: Any = 0.0
    dtype: Any = None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the TappedLayer
    started = time.perf_counter()
    rank_split = split if rank_split is None else rank_split
    for source in [split] if rank_split is split else [split, rank_split]:
        for batch in batches(source, batch_size):
            feature_map = np.asarray(compiled(variables, batch.images))
            if source is split:
                file.write(feature_map.tobytes())
            if source is rank_split:
                total += feature_map[: batch.size].sum(0, dtype=np.float64)
            dtype = feature_map.dtype
            on_images(batch.size)
    params = variables["params"]
    for part in name.split("/"):
        params = params[part]
    bias = params.get("bias", jnp.zeros(conv.shape[-1]))
    tapped = TappedLayer(
        name=name,
        split=split,
        batch_size=batch_size,
        bias=np.asarray(activation(jnp.asarray(bias)), np.float32),
        mean_feature_map=total / len(rank_split),
        apply=apply,
        head=head,
        trunk_seconds=time.perf_counter() - started,
        compile_seconds=compile_seconds,
        _file=file,
        _dtype=dtype,
    )
    weakref.finalize(tapped, file.close)
    return tapped


def _check_tap(
    apply: taps.Apply,
    head: Callable[[Any, Array, Array], Array],
    variables: Any,
    images: Array,
    feature_map: Array,
    name: str,
    tap: str,
) -> None:
    """Raises unless the unmasked feature map, put back, gives the network's logits."""
    whole = np.asarray(jax.jit(apply)(variables, images), np.float32)
    halves = np.asarray(jax.jit(head)(variables, images, feature_map), np.float32)
    if whole.ndim != 2:
        raise InputError(f"the network must return logits [N, C], got {whole.shape}")
    if not np.isfinite(whole).all():
        raise InputError("the network's logits are not finite: check its weights")
    # Rounding differs where XLA fuses differently; another function is far off.
    scale = max(1.0, float(np.abs(whole).max()))
    tolerance = 1e-3 if feature_map.dtype == jnp.float32 else 1e-1
    if np.abs(whole - halves).max() > tolerance * scale:
        raise InputError(
            f"tap '{tap}' is not what follows layer '{name}': the network changes when "
            f"its feature map is put back; choices: {', '.join(taps.TAPS)}"
        )


def sweep_layer(
    tapped: TappedLayer,
    variables: Any,
    scores: Float[np.ndarray, " P"],
    *,
    fill: str = "zero",
    ks: Sequence[int] | None = None,
    mask_chunk: int | None = None,
    about: dict[str, Any] | None = None,
    on_masks: Progress = _ignore,
) -> SweepResult:
    """Predictions of the network with the k lowest-scoring channels pruned.

    Args:
      tapped: the layer's feature maps.
      variables: the network's variables.
      scores: score of every channel; the lowest is pruned first.
      fill: one of FILLS, what a pruned channel becomes.
      ks: strictly ascending numbers of pruned channels; by default 0 .. P-1. The
        first is the baseline that losses are measured from.
      mask_chunk: masks evaluated at once; by default chosen from the batch.
      about: facts to keep in the result.
      on_masks: called with the number of (image, mask) pairs done since the last call.

    Raises:
      InputError: unknown fill, scores that are not finite, unusable ks, or channels
        that cannot be dropped because they join others before the next layer.
    """
    check_choice("fill", fill, FILLS)
    order = ranking.rank_channels(scores)
    ks = ranking.check_ks(range(len(order)) if ks is None else ks, len(order))
    masks = ranking.prefix_masks(order, ks)
    mean = tapped.mean_feature_map.reshape(-1, len(order)).mean(0).astype(np.float32)
    fills = FILLS[fill](tapped.bias, mean)
    head_function = tapped.head if fills is not None else _drop_head(tapped, variables)
    classes = tapped.split.class_names
    dtype = np.uint8 if len(classes) <= 256 else np.uint16
    predictions = np.empty((len(ks), len(tapped.split)), dtype)
    predict: Any = None
    compile_seconds = 0.0
    started = time.perf_counter()
    for batch, feature_map in tapped.batches():
        head = Partial(head_function, variables, batch.images)
        chunk = mask_chunk or min(len(ks), mask_chunk_size(feature_map.shape))
        if predict is None:
            arguments = (head, feature_map, masks[:1].repeat(chunk, 0), fills)
            predict = _predict.lower(*arguments).compile()
            compile_seconds = time.perf_counter() - started
        predictions[:, batch.start : batch.start + batch.size] = evaluate_masks(
            head, feature_map, masks, fill=fills, mask_chunk=chunk, predict=predict
        )[:, : batch.size]
        on_masks(batch.size * len(ks))
    seconds = time.perf_counter() - started
    return SweepResult(
        ks=ks,
        order=order,
        scores=scores,
        predictions=predictions,
        labels=tapped.split.labels,
        mean_feature_map=_three_axes(tapped.mean_feature_map),
        class_names=classes,
        about={
            "layer": tapped.name,
            "fill": fill,
            "batch_size": tapped.batch_size,
            "seconds": {
                "trunk": round(tapped.trunk_seconds, 3),
                "head": round(seconds - compile_seconds, 3),
                "compilation": round(tapped.compile_seconds + compile_seconds, 3),
            },
            **(about or {}),
        },
    )


def _drop_head(tapped: TappedLayer, variables: Any) -> Callable[..., Array]:
    """(variables, images, feature map, mask) -> logits without the masked channels."""
    example = jnp.asarray(next(batches(tapped.split, 1)).images)
    flow = channel_flow(tapped.apply, variables, example, tapped.name)

    def head(variables: Any, images: Array, feature_map: Array, mask: Array) -> Array:
        apply = masking.drop_channels(tapped.apply, flow, mask)
        return taps.replace(apply, variables, images, tapped.name, feature_map)

    return head


def _three_axes(feature_map: np.ndarray) -> np.ndarray:
    """[H, W, P], with H = W = 1 or W = 1 where the layer has fewer axes."""
    p = feature_map.shape[-1]
    height = feature_map.shape[0] if feature_map.ndim > 1 else 1
    return feature_map.reshape(height, -1, p).astype(np.float32)
