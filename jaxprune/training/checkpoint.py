"""Saving and restoring variables with Orbax."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxprune._base import manifest, schema
from jaxprune._base.errors import InputError, first_line

# Bytes that a checkpoint takes beside its arrays, with room to spare.
_OVERHEAD = 2**20
# The name of a fact: the version of JAX that an epoch was trained under.
_JAX = "jax"
# A pytree of arrays: linen's collections.
Variables = Any


@dataclass(frozen=True)
class _About:
    """The description of a checkpoint.

    Attributes:
      sha256: fingerprint of the variables.
      optimizer: fingerprint of the optimizer's state, where there is one.
      epoch: number of the checkpoint.
      facts: JSON-able facts that the caller has added.
      seal: digest of all others.
    """

    sha256: str
    optimizer: str | None
    epoch: int
    facts: dict[str, Any]
    seal: str


def latest(folder: Path) -> int | None:
    """The newest complete checkpoint in the folder, a number of epochs, or None."""
    if not folder.is_dir():
        return None
    with _manager(folder) as manager:
        return manager.latest_step()


def save(
    folder: Path,
    epoch: int,
    variables: Variables,
    optimizer: Any | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Saves a checkpoint, whole or not at all, and keeps the one before it.

    Args:
      folder: the folder of the checkpoints.
      epoch: its number.
      variables: the network's variables.
      optimizer: optimizer state, where training is to go on from here.
      facts: JSON-able, for `facts`.

    Raises:
      InputError: it cannot be written.
    """
    state = None if optimizer is None else manifest.fingerprint(optimizer)
    known = {**(facts or {}), _JAX: jax.__version__}
    about = _About(manifest.fingerprint(variables), state, epoch, known, "")
    items = {
        "variables": ocp.args.StandardSave(jax.device_get(variables)),
        "about": ocp.args.JsonSave(asdict(replace(about, seal=_seal(about)))),
    }
    if optimizer is not None:
        items["optimizer"] = ocp.args.StandardSave(jax.device_get(optimizer))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.orbax-checkpoint-tmp*"):  # of a killed process
            shutil.rmtree(path, ignore_errors=True)
        _check_room(folder, (variables, optimizer))
        with _manager(folder) as manager:
            manager.save(epoch, args=ocp.args.Composite(**items))
    except Exception as error:
        for path in (folder / str(epoch), *folder.glob(f"{epoch}.*")):
            shutil.rmtree(path, ignore_errors=True)
        raise InputError(
            f"checkpoint {folder / str(epoch)} could not be written "
            f"({first_line(error)}); any before it is kept"
        ) from error


def _check_room(folder: Path, arrays: Any) -> None:
    """Looks first, since Orbax's threads answer a full disk with tracebacks."""
    bytes_of = sum(getattr(leaf, "nbytes", 8) for leaf in jax.tree.leaves(arrays))
    # Its parts are written, then merged; a file of a few bytes takes a block.
    needed = 2 * bytes_of + _OVERHEAD
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it takes up to {needed:,} bytes and {free:,} are free")


def facts(folder: Path, epoch: int) -> dict[str, Any]:
    """The facts that `save` was given.

    Raises:
      InputError: it is damaged.
    """
    about: _About = _restore(folder, epoch, {"about": ocp.args.JsonRestore()})["about"]
    return about.facts


def check_same_jax(folder: Path, epoch: int) -> None:
    """Checks that a training may go on: half of it would be another JAX's.

    Raises:
      InputError: it was begun under another version of JAX.
    """
    before = facts(folder, epoch).get(_JAX, jax.__version__)
    if before != jax.__version__:
        raise InputError(
            f"{folder / str(epoch)} was trained under JAX {before}, and this is "
            f"{jax.__version__}: go on under that version, or begin in another folder"
        )


def restore(
    folder: Path, epoch: int, variables: Variables, optimizer: Any | None = None
) -> tuple[Variables, Any]:
    """Restores a checkpoint and checks all of it against its fingerprints.

    Args:
      folder: the folder of the checkpoints.
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
    restored = _restore(folder, epoch, items, variables)
    return restored["variables"], restored.get("optimizer")


def _restore(
    folder: Path, epoch: int, items: dict[str, Any], variables: Variables = None
) -> dict[str, Any]:
    """The items, each as its fingerprint says; "about" as an `_About`."""
    try:
        with _manager(folder) as manager:
            found = manager.restore(epoch, args=ocp.args.Composite(**items))
        restored = {name: found[name] for name in items}
        about = restored["about"] = _parse(found["about"], epoch)
        prints = {"variables": about.sha256, "optimizer": about.optimizer}
        for name in prints.keys() & items.keys():
            if manifest.fingerprint(restored[name]) != prints[name]:
                raise ValueError(f"its {name} does not match its fingerprint")
        shapes = [
            [leaf.shape for leaf in jax.tree.leaves(tree)]
            for tree in (restored.get("variables"), variables)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError("its shapes are those of another network")
    except Exception as error:
        raise InputError(
            f"checkpoint {folder / str(epoch)} is damaged or of another network "
            f"({first_line(error)}): remove that folder to go on from the one before"
        ) from error
    return restored


def _parse(about: Any, epoch: int) -> _About:
    """The description of a checkpoint, checked but for the fingerprints."""
    parsed = schema.check(about, _About, "about")
    if parsed.seal != _seal(parsed):
        raise ValueError("what it says of itself does not match its own digest")
    if parsed.epoch != epoch:
        raise ValueError(f"it is of epoch {parsed.epoch}")
    return parsed


def _seal(about: _About) -> str:
    return manifest.digest({"about": asdict(replace(about, seal=""))})


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
    with _Manager(folder.resolve(), options=options) as manager:
        yield manager


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: Orbax before 0.12 fails where JAX's preemption service is off."""
        return False


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
