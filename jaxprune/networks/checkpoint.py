"""Saving and restoring variables with Orbax."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxprune.errors import InputError, first_line

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
            f"({first_line(error)}); any before it is kept"
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
            f"({first_line(error)}): remove that folder to go on from the one before"
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
