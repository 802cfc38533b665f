"""Saving and restoring variables with Orbax, and weights that Keras has saved."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from jaxprune.channels import taps
from jaxprune.errors import InputError

# A pytree of arrays: linen's collections.
Variables = Any


def fingerprint(variables: Variables) -> str:
    """SHA-256, in hex, of every path, type, shape and value of the variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(
            f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode()
        )
        digest.update(array.tobytes())
    return digest.hexdigest()


def latest(folder: Path) -> int | None:
    """The newest complete checkpoint in the folder, a number of epochs, or None."""
    if not folder.is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def save(
    folder: Path, epoch: int, variables: Variables, optimizer: Any | None = None
) -> None:
    """Saves a checkpoint, whole or not at all, and keeps the one before it.

    Args:
      folder: where checkpoints lie.
      epoch: its number.
      variables: the network's variables.
      optimizer: optimizer state, where training is to go on from here.

    Raises:
      InputError: it cannot be written.
    """
    items = {
        "variables": ocp.args.StandardSave(jax.device_get(variables)),
        "about": ocp.args.JsonSave({"sha256": fingerprint(variables)}),
    }
    if optimizer is not None:
        items["optimizer"] = ocp.args.StandardSave(jax.device_get(optimizer))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _manager(folder) as manager:
            manager.save(epoch, args=ocp.args.Composite(**items))
    except Exception as error:
        for path in (folder / str(epoch), *folder.glob(f"{epoch}.*")):
            shutil.rmtree(path, ignore_errors=True)
        raise InputError(
            f"checkpoint {folder / str(epoch)} could not be written "
            f"({_first_line(error)}); any before it is kept"
        ) from error


def restore(
    folder: Path, epoch: int, variables: Variables, optimizer: Any | None = None
) -> tuple[Variables, Any]:
    """Restores a checkpoint and checks it against its fingerprint.

    Args:
      folder: where checkpoints lie.
      epoch: its number.
      variables: variables of the same shapes and types, or just these.
      optimizer: optimizer state of the same shapes, or None to leave it out.

    Returns:
      Variables and optimizer state.

    Raises:
      InputError: it is damaged, or of another network.
    """
    items: dict[str, Any] = {
        "variables": ocp.args.StandardRestore(_abstract(variables)),
        "about": ocp.args.JsonRestore(),
    }
    if optimizer is not None:
        items["optimizer"] = ocp.args.StandardRestore(_abstract(optimizer))
    path = folder / str(epoch)
    try:
        with _manager(folder) as manager:
            restored = manager.restore(epoch, args=ocp.args.Composite(**items))
        if fingerprint(restored["variables"]) != restored["about"]["sha256"]:
            raise ValueError("its values do not match their fingerprint")
        shapes = [
            [leaf.shape for leaf in jax.tree.leaves(tree)]
            for tree in (restored["variables"], variables)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError("its shapes are those of another network")
    except Exception as error:
        raise InputError(
            f"checkpoint {path} is damaged or of another network "
            f"({_first_line(error)}): remove that folder to go on from the one before"
        ) from error
    return restored["variables"], restored.get("optimizer")


@contextmanager
def _manager(folder: Path) -> Iterator[ocp.CheckpointManager]:
    # Each process works by itself: the first writes, all read.
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=str(this)
    )
    options = ocp.CheckpointManagerOptions(
        create=False,
        max_to_keep=2,
        enable_async_checkpointing=False,
        multiprocessing_options=alone,
    )
    with ocp.CheckpointManager(folder.resolve(), options=options) as manager:
        yield manager


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# Keras's name of a weight -> the collection and name of it in linen.
_KERAS_WEIGHTS = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def import_keras(path: Path, apply: taps.Apply, variables: Any, x: Array) -> Variables:
    """Variables from a Keras 2 or Keras 3 `.h5` file (`model.save`).

    Layers with weights are matched in the order in which the network executes them,
    and every shape is checked. Optimizer state in the file is ignored.

    Args:
      path: the file.
      apply: the network, see `jaxprune.taps`.
      variables: variables, or their shapes and types; values are not used.
      x: an input, for running the network.

    Raises:
      InputError: no such file, h5py is missing, not a Keras file, or a layer that
        does not fit, which is named.
    """
    ours = [layer.name for layer in taps.list_layers(apply, variables, x)]
    theirs = _read_keras(path)
    result: dict[str, Any] = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables
    )
    for name, (keras_name, weights) in zip(ours, theirs, strict=False):
        expected = {
            (collection, weight): np.shape(leaf)
            for collection in result
            for weight, leaf in _at(result[collection], name).items()
        }
        found = {key: value.shape for key, value in weights.items()}
        if found != expected:
            raise InputError(
                f"{path}: layer '{keras_name}' does not fit '{name}': it has "
                f"{_shapes(found)}, the network needs {_shapes(expected)}"
            )
        for (collection, weight), value in weights.items():
            _at(result[collection], name)[weight] = value.astype(np.float32)
    if len(ours) != len(theirs):
        raise InputError(
            f"{path} has {len(theirs)} layers with weights, the network has {len(ours)}"
        )
    return result


def _at(tree: dict[str, Any], layer: str) -> dict[str, Any]:
    for part in layer.split("/"):
        tree = tree.get(part, {})
    return tree


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
                    weights[_KERAS_WEIGHTS[key]] = np.asarray(group[name][full_name])
                if weights:
                    layers.append((name, weights))
            return layers
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{path} is damaged or no .h5 file of Keras's model.save "
            f"({_first_line(error)})"
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
