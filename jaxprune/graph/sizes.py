"""How much to evaluate at once."""

import math
from typing import Any

import jax

from jaxprune.graph.network import IMAGES, Network

# Elements of an array that one evaluation holds: enough to keep a matrix unit busy,
# and 16 MiB of float32 on a CPU.
_CPU_ELEMENTS = 2**22
_ACCELERATOR_ELEMENTS = 2**27
# An accelerator's memory holds so many of such arrays, of float32, at least.
_ARRAYS = 64

# Images of a batch on a CPU, whose caches hold no more.
_CPU_IMAGES = 128


def chunk_size(elements: int) -> int:
    """How many things of `elements` numbers each to evaluate at once on a device."""
    return max(1, _elements() // elements)


def _elements() -> int:
    """Elements of an array that one evaluation may hold."""
    if jax.default_backend() == "cpu":
        return _CPU_ELEMENTS
    # All of it, and not what is free: whoever asks later is to get the same answer.
    memory = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in memory:
        return _ACCELERATOR_ELEMENTS
    return min(_ACCELERATOR_ELEMENTS, memory["bytes_limit"] // (4 * _ARRAYS))


def usual_batch_size(network: Network) -> int:
    """Images that a network is usually given at once: a power of two.

    On an accelerator, as many as keep it busy and fit into its memory, by the network's
    largest array.
    """
    if jax.default_backend() == "cpu":
        return _CPU_IMAGES
    return int(2 ** math.floor(math.log2(images_at_once(network, network.few))))


def images_at_once(network: Network, few: Any) -> int:
    """How many images keep a device busy, by the network's largest array.

    Args:
      network: the network.
      few: IMAGES of them, or their shapes.
    """
    program = network.graph(few).program
    largest = max(math.prod(program.shape(value)) for value in program.live)
    return chunk_size(max(1, largest // IMAGES))
