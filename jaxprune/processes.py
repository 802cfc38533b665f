"""Several processes that run one program together, each on its share of the images.

Without `jax.distributed` there is one process, and all of this costs nothing.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from jaxprune.errors import InputError


def own(count: int) -> Int[np.ndarray, " n"]:
    """Indices of this process's share of `count` images.

    The shares are equal runs, the first ones longer by one.

    Raises:
      InputError: there are more processes than images.
    """
    processes = jax.process_count()
    if processes > count:
        raise InputError(f"{processes} processes for a split of {count} images")
    return np.array_split(np.arange(count), processes)[jax.process_index()]


def gather(array: np.ndarray) -> list[np.ndarray]:
    """Every process's array, in their order; they differ in length at most.

    They travel as bytes: JAX would make float32 of float64.
    """
    if jax.process_count() == 1:
        return [array]
    array = np.ascontiguousarray(array)
    lengths = multihost_utils.process_allgather(np.int32(len(array))).tolist()
    padded = np.zeros((max(lengths), *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    data = np.frombuffer(padded.tobytes(), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(data))
    return [
        np.frombuffer(row.tobytes(), array.dtype).reshape(padded.shape)[:length]
        for row, length in zip(every, lengths, strict=True)
    ]


def total(array: np.ndarray) -> np.ndarray:
    """The sum of every process's array."""
    return np.sum(gather(array[None]), axis=0)[0]


def wait() -> None:
    """Returns once every process has come to this call."""
    gather(np.zeros(1, np.uint8))


def is_first() -> bool:
    """Whether this process writes files and speaks to the user."""
    return jax.process_index() == 0
