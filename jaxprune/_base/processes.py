"""Several processes that run one program together, each on its share of the images.

Without `jax.distributed` there is one process, and all of this costs nothing.
"""

import atexit
import os
import pickle
import socket
import sys
import threading
import time
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jaxtyping import Int

from jaxprune._base.errors import InputError

T = TypeVar("T")

# Where a process that fails leaves its last words, and how long the first one, which
# keeps them, waits for the others to have read them.
_LAST_WORDS, _SECONDS = "jaxprune/last_words", 2.0
_is_telling = threading.Event()
_is_over = threading.Event()


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


def from_first(value: T) -> T:
    """The first process's value, in every process; anything that can be pickled."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(pickle.dumps(value if is_first() else None), np.uint8)
    found: T = pickle.loads(gather(data)[0].tobytes())
    return found


def wait() -> None:
    """Returns once every process has come to this call."""
    gather(np.zeros(1, np.uint8))


def is_first() -> bool:
    """Whether this process writes files and speaks to the user."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def watch() -> None:
    """From now on, ends this process with one line when another one fails.

    JAX would abort it once that one is gone, with a stack trace. It ends when this
    process exits; until all have done their work, they `wait` for one another.
    """
    client = distributed.global_state.client
    if client is None:
        return
    watching = threading.Thread(target=_watch, args=(client,), daemon=True)

    def end() -> None:
        """Before JAX's store goes, which a thread must not be asking then."""
        _is_over.set()
        watching.join()

    watching.start()
    atexit.register(end)


def _watch(client: Any) -> None:
    while not _is_over.wait(_SECONDS / 8):
        try:
            words = client.key_value_try_get(_LAST_WORDS)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # nobody to ask
        if _is_telling.is_set():
            return  # they are its own
        _see_the_others_off()
        # Last: a progress bar may be at work.
        print(f"\nerror: {words}", file=sys.stderr, flush=True)
        os._exit(2)


def tell_the_others(message: str) -> None:
    """Has the other processes end, with this message; this one is about to."""
    client = distributed.global_state.client
    if client is None:
        return
    _is_telling.set()
    name = f"process {jax.process_index()} on {socket.gethostname()}"
    try:
        client.key_value_set(_LAST_WORDS, f"{name}: {message}")
    except jax.errors.JaxRuntimeError:
        return  # another one has left its own before, or there is nobody
    _see_the_others_off()


def _see_the_others_off() -> None:
    """Leaves time to hear; the first process holds what they meet at, and ends last."""
    time.sleep(_SECONDS if is_first() else _SECONDS / 4)


def listen() -> None:
    """Where a process has gone: ends this one with its last words, if it left any."""
    time.sleep(2 * _SECONDS)
