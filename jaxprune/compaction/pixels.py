"""Pixels, as programs are given them, and how they become what a network takes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxprune._base import arguments
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network

# The axes of an image's positions, by their number.
_POSITIONS = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


@dataclass(frozen=True)
class Pixels:
    """What a program is given.

    Attributes:
      dtype: type of a pixel.
      mean: subtracted from pixels: one number, or one for each channel.
      std: divides them then.
      shape: of an image.
      channels: axis of an image that its channels are on; None where that is unknown.
    """

    dtype: np.dtype
    mean: np.ndarray
    std: np.ndarray
    shape: tuple[int, ...]
    channels: int | None

    @property
    def layout(self) -> str:
        """The axes of a batch, "N H W C"; sizes where their meaning is unknown."""
        last = len(self.shape) - 1
        names = _POSITIONS.get(last, ())
        if not names or self.channels not in (0, last):
            return " ".join(map(str, ("N", *self.shape)))
        return " ".join(
            ("N", "C", *names) if self.channels == 0 else ("N", *names, "C")
        )

    def scale(self, images: Array) -> Array:
        """Pixels -> what the network takes."""
        mean, std = (self._across(numbers) for numbers in (self.mean, self.std))
        return (images.astype(jnp.float32) - mean) / std

    def like(self, batch: np.ndarray) -> np.ndarray:
        """Pixels of a batch that the network takes, as far as their type has them."""
        mean, std = (self._across(numbers) for numbers in (self.mean, self.std))
        pixels = np.asarray(batch, np.float32) * std + mean
        if np.issubdtype(self.dtype, np.integer):
            limits = np.iinfo(self.dtype)
            pixels = pixels.round().clip(limits.min, limits.max)
        return pixels.astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """As a file describes it."""
        return {
            "input": f"{self.dtype} pixels",
            "layout": self.layout,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @property
    def facts(self) -> dict[str, str]:
        """The same as an ONNX model's metadata."""
        return {
            "layout": self.layout,
            "input": f"{self.dtype} pixels; (pixel - mean) / std is part of the model",
            "mean": json.dumps(self.mean.tolist()),
            "std": json.dumps(self.std.tolist()),
        }

    def _across(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers, one for each channel, as an array that fits images."""
        if numbers.size == 1 or self.channels is None:
            return numbers
        sizes = [1] * len(self.shape)
        sizes[self.channels] = numbers.size
        return numbers.reshape(sizes)


@dataclass(frozen=True)
class Inputs:
    """What a program of several inputs is given: what its network takes."""

    def scale(self, batch: Any) -> Any:
        """The batch as it is."""
        return batch

    def like(self, batch: Any) -> Any:
        """The batch as it is, in NumPy."""
        return jax.tree.map(np.asarray, batch)

    def to_json(self) -> None:
        """As a file describes it: nothing is done to it."""

    @property
    def facts(self) -> dict[str, str]:
        """The same as an ONNX model's metadata."""
        return {"input": "several inputs, as the network takes them"}


def check_pixels(
    dtype: Any, mean: Sequence[float], std: Sequence[float], network: Network
) -> Pixels | Inputs:
    """What a network's program is given.

    Args:
      dtype: type of a pixel.
      mean: one number, or one for each channel. Channels are on the last axis or, where
        that has another size, on the first.
      std: as `mean`.
      network: the network, with an example.

    Raises:
      InputError: there are as many numbers on neither axis, or they are no scaling; or
        several inputs are to be scaled.
    """
    structure: Any = jax.tree.structure(network.example)
    if not jax.tree_util.treedef_is_leaf(structure):
        if np.append(mean, std).tolist() != [0, 1]:
            raise InputError(
                "pixel_mean and pixel_std are for networks of images alone, and this "
                f"one takes {listed(network.example)}"
            )
        return Inputs()
    shape = np.shape(network.example)[1:]
    found = [
        arguments.check_numbers(name, value, (np.size(value),)).astype(np.float32)
        for name, value in (("pixel_mean", mean), ("pixel_std", std))
    ]
    sizes = {numbers.size for numbers in found} - {1}
    axes = [axis for axis in (len(shape) - 1, 0) if {shape[axis]} == sizes]
    if sizes and not axes:
        counts = " or ".join(map(str, dict.fromkeys((1, shape[-1], shape[0]))))
        raise InputError(f"pixel_mean and pixel_std take {counts} numbers")
    if not (found[1] > 0).all():
        raise InputError(f"pixel_std must be positive, got {found[1].tolist()}")
    channels = axes[0] if sizes else _channels(network)
    return Pixels(np.dtype(dtype), found[0], found[1], shape, channels)


def listed(batch: Any) -> str:
    """The arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return ", ".join(path_name(path) or "an array" for path, _ in leaves) or "nothing"


def _channels(network: Network) -> int | None:
    """The axis of an image that the first convolution sums over.

    None where there is none, or it reads more than elementwise functions of the images.
    """
    layers = network.layers.values()
    first = next((layer for layer in layers if layer.kind == "conv"), None)
    return _axis(first) if first else None


def _axis(layer: Layer) -> int | None:
    """See `_channels`."""
    program, value = layer.program, layer.input
    while value not in program.batch:
        eqn = program.made_by.get(value)
        live = [v for v in eqn.inputs if v in program.live] if eqn else []
        same = [v for v in live if program.shape(v) == program.shape(value)]
        if eqn is None or len(live) != 1 or not same or eqn.name in _MOVED:
            return None
        (value,) = same
    axis: int = layer.axes.features[0] - 1
    return axis if axis >= 0 else None


# Operations that keep a shape where its axes are equal, and yet move them.
_MOVED = ("transpose", "reshape", "rev", "gather", "dot_general")
