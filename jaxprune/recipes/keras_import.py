"""Weights from a file that Keras has saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, first_line
from jaxprune.adapters.linen import at_path, called_layers

# Keras's name of a weight -> the collection and name of it in linen.
_KERAS_WEIGHTS = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def import_keras(
    path: Path, apply: Callable[..., Any], variables: Any, x: Array
) -> Any:
    """Variables from a Keras 2 or Keras 3 `.h5` file (`model.save`).

    Layers with weights are matched in the order in which the network executes them,
    and every shape is checked. Optimizer state in the file is ignored.

    Args:
      path: the file.
      apply: a linen model's `apply`, or a function that passes its arguments on.
      variables: variables, or their shapes and types; values are not used.
      x: an input, for running the network.

    Raises:
      InputError: no such file, h5py is missing, not a Keras file, or a layer that
        does not fit, which is named.
    """
    ours = [call.name for call in called_layers(apply, variables, x)]
    theirs = _read_keras(path)
    result: dict[str, Any] = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables
    )
    for name, (keras_name, weights) in zip(ours, theirs, strict=False):
        expected = {
            (collection, weight): np.shape(leaf)
            for collection in result
            for weight, leaf in at_path(result[collection], name).items()
        }
        found = {key: value.shape for key, value in weights.items()}
        if found != expected:
            raise InputError(
                f"{path}: layer '{keras_name}' does not fit '{name}': it has "
                f"{_shapes(found)}, the network needs {_shapes(expected)}"
            )
        for (collection, weight), value in weights.items():
            at_path(result[collection], name)[weight] = value.astype(np.float32)
    if len(ours) != len(theirs):
        raise InputError(
            f"{path} has {len(theirs)} layers with weights, the network has {len(ours)}"
        )
    return result


def _shapes(shapes: dict[tuple[str, str], tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for (_, name), shape in sorted(shapes.items()))


def _read_keras(path: Path) -> list[tuple[str, dict[tuple[str, str], np.ndarray]]]:
    """(layer name, weights by linen collection and name) in the file's order."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            "reading .h5 files needs h5py: pip install 'jaxprune[keras]'"
        ) from error
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with h5py.File(path) as file:
            group = file.get("model_weights", file)
            layers = []
            for name in _names(group, "layer_names"):
                weights = {}
                for full_name in _names(group[name], "weight_names"):
                    # Keras 2 ends names with ":0".
                    key = full_name.split("/")[-1].split(":")[0]
                    if key not in _KERAS_WEIGHTS:
                        raise InputError(
                            f"{path}: layer '{name}' has a weight '{key}', which no "
                            "Conv2D, Dense or BatchNormalization has"
                        )
                    value = np.asarray(group[name][full_name])
                    what = f"{path}: {key} of layer '{name}'"
                    arguments.check_numbers(what, value, value.shape)
                    weights[_KERAS_WEIGHTS[key]] = value
                if weights:
                    layers.append((name, weights))
            return layers
    except InputError:
        raise
    except Exception as error:  # of h5py, which a damaged file breaks anywhere
        raise InputError(
            f"{path} is damaged or no .h5 file of Keras's model.save "
            f"({first_line(error)})"
        ) from error


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names; Keras splits a long one over attributes name0, name1, ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        keys = (f"{attribute}{i}" for i in range(len(group.attrs)))
        parts = [group.attrs[key] for key in keys if key in group.attrs]
        if not parts:
            raise KeyError(f"no attribute {attribute}")
    names = [name for part in parts for name in part]
    return [name.decode() if isinstance(name, bytes) else name for name in names]
