"""A fine-tuning that goes on where it was stopped: its folder of checkpoints."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base import manifest, processes
from jaxprune._base.errors import InputError
from jaxprune.training import checkpoint
from jaxprune.training.hyperparameters import Hyperparameters
from jaxprune.training.loop import EpochResult, Images, TrainState

# Images that are read at once, for their sum.
_AT_ONCE = 1024


def key(
    small: Mapping[str, Any],
    whole: Mapping[str, Any] | None,
    images: Images,
    targets: str | None,
    how: Hyperparameters,
) -> dict[str, Any]:
    """What decides the trained arrays; JSON-able.

    Args:
      small: the network's arrays by path.
      whole: those of the network that it learns from.
      images: what it is trained on.
      targets: the task that their targets are of; None where they do not count.
      how: the hyperparameters.
    """
    return {
        "network": manifest.fingerprint(_numbers(small)),
        "whole network": whole and manifest.fingerprint(_numbers(whole)),
        "images": _fingerprint(images.read, len(images)),
        "targets": targets and _fingerprint(images.read_targets, len(images)),
        "task": targets,
        **asdict(how),
    }


def _numbers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays but for keys of random numbers."""
    return {
        path: array
        for path, array in arrays.items()
        if not jax.dtypes.issubdtype(jnp.result_type(array), jax.dtypes.extended)
    }


def _fingerprint(read: Callable[[np.ndarray], Any], images: int) -> str:
    """SHA-256 of all images, or targets, as they are read."""
    found = hashlib.sha256()
    for start in range(0, images, _AT_ONCE):
        rows = read(np.arange(start, min(start + _AT_ONCE, images)))
        found.update(manifest.fingerprint(rows).encode())
    return found.hexdigest()


@dataclass(frozen=True)
class Folder:
    """The checkpoints of a fine-tuning.

    Attributes:
      path: the folder.
      key: what decides its arrays.
    """

    path: Path
    key: dict[str, Any]

    def restored(self, state: TrainState, per_epoch: int) -> TrainState:
        """The state after the last epoch that was finished, or this one.

        Raises:
          InputError: the folder is of another fine-tuning, damaged, or was begun under
            another version of JAX.
        """
        epoch = checkpoint.latest(self.path)
        processes.wait()  # until all have looked: the first may write now
        if epoch is None:
            return state
        found = checkpoint.facts(self.path, epoch)
        other = [name for name in self.key if found.get(name) != self.key[name]]
        if other:
            raise InputError(
                f"{self.path} is of another fine-tuning, with other "
                f"{', '.join(other)}: give another folder"
            )
        if epoch < self.key["epochs"]:
            checkpoint.check_same_jax(self.path, epoch)
        trees = state.variables, state.opt_state
        leaves = checkpoint.restore(self.path, epoch, *map(jax.tree.leaves, trees))
        variables, opt_state = (
            jax.tree.unflatten(jax.tree.structure(tree), part)
            for tree, part in zip(trees, leaves, strict=True)
        )
        return TrainState(jnp.int32(epoch * per_epoch), variables, opt_state)

    def save(self, result: EpochResult) -> None:
        """Writes the state after an epoch."""
        if processes.is_first():
            trees = result.state.variables, result.state.opt_state
            variables, opt_state = map(jax.tree.leaves, trees)
            checkpoint.save(self.path, result.epoch, variables, opt_state, self.key)
