"""Inputs of consumers for calibration images, batch by batch.

Axes: N images, n rows, which are images and positions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxprune._base import processes
from jaxprune._base.batch import pad_rows, size_of, take
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import (
    REPLICATED,
    SPREAD,
    Sharded,
    make_mesh,
    replicate,
    round_up,
)
from jaxprune.graph.network import Network

# A group's name, and a consumer of its channels.
Pair = tuple[str, str]


def operand_rows(
    network: Network,
    images: Any,
    features: Mapping[Pair, np.ndarray],
    batch_size: int,
    mesh: Mesh | None,
) -> Iterator[tuple[Pair, np.ndarray, int]]:
    """Runs this process's share of the images.

    Args:
      network: the network.
      images: of all processes.
      features: which input features of a consumer are asked for, in an array of any
        shape [*F].
      batch_size: images in a batch.
      mesh: the devices; by default all of this process.

    Yields:
      Batch by batch, the rows [n, *F] of each consumer, and how many rows it has in all
      batches of all processes.

    Raises:
      InputError: a value is not finite, or a consumer is inside a loop.
    """
    for _, consumer in features:
        if network.graph().reader(consumer).in_a_loop:
            raise InputError(
                f"what '{consumer}' is given cannot be read: it is inside a loop or a "
                "branch (nn.scan, lax.cond); the fill 'drop' needs no reading"
            )

    def given(arrays: Any, x: Any) -> list[Array]:
        graph = network.graph(x)
        readers = [graph.reader(consumer) for _, consumer in features]
        want = [reader.input for reader in readers]
        values = network.evaluate(x, arrays=arrays, want=want)
        return [
            jnp.asarray(reader.features(value)[..., asked])
            for reader, value, asked in zip(
                readers, values, features.values(), strict=True
            )
        ]

    mesh = mesh or make_mesh()
    run = Sharded(given, mesh, (REPLICATED, SPREAD), SPREAD)
    arrays = replicate(network.arrays, mesh)
    index = processes.own(size_of(images))
    size = round_up(min(batch_size, len(index)), mesh.size)
    for start in range(0, len(index), size):
        part = index[start : start + size]
        outputs = run(arrays, pad_rows(take(images, part), size))
        for (key, asked), x in zip(features.items(), outputs, strict=True):
            x = np.asarray(x)[: len(part)].astype(np.float32)
            rows = x.reshape(-1, *asked.shape)
            if not np.isfinite(rows).all():
                raise InputError(
                    f"what '{key[1]}' is given is not finite on the calibration "
                    "images: check the network's weights and the images' scale"
                )
            yield key, rows, len(rows) // len(part) * size_of(images)
