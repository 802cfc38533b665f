"""Work spread over this process's devices.

A mesh has two axes, `data` and `mask`. Images are spread over both where a mask plays
no part, over `data` where every mask meets every image, and (image, mask) pairs over
both. Each device runs the same program on its share and hears nothing of the others.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune._base.errors import InputError

DATA, MASK = "data", "mask"
REPLICATED = PartitionSpec()
SPREAD = PartitionSpec((DATA, MASK))


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over devices, by default all of this process; as square as they allow."""
    devices = jax.local_devices() if devices is None else devices
    count = len(devices)
    if not count:
        raise InputError("a mesh needs a device at least, got none")
    mask = max(m for m in range(1, math.isqrt(count) + 1) if count % m == 0)
    return Mesh(np.array(devices).reshape(count // mask, mask), (DATA, MASK))


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`."""
    return -(-count // multiple) * multiple


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays, whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def spread(tree: Any, mesh: Mesh) -> Any:
    """Arrays whose first axis is divided over the mesh; each process gives its part."""
    sharding = NamedSharding(mesh, SPREAD)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, a), tree
    )


class Sharded:
    """A function of arrays, compiled at its first call and run over a mesh.

    Every call must have arguments of the same shapes.

    Attributes:
      compile_seconds: time that compilation took; 0 before the first call.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        mesh: Mesh,
        in_specs: Sequence[PartitionSpec],
        out_specs: PartitionSpec,
    ):
        self.compile_seconds = 0.0
        self._shardings = [NamedSharding(mesh, spec) for spec in in_specs]
        self._compiled: Callable[..., Any] | None = None
        self._function = jax.jit(
            jax.shard_map(
                function,
                mesh=mesh,
                in_specs=tuple(in_specs),
                out_specs=out_specs,
                check_vma=False,
            )
        )

    def __call__(self, *arguments: Any) -> Any:
        """The function's value, its shares put together."""
        placed = [
            jax.device_put(a, s)
            for a, s in zip(arguments, self._shardings, strict=True)
        ]
        if self._compiled is None:
            started = time.perf_counter()
            self._compiled = self._function.lower(*placed).compile()
            self.compile_seconds = time.perf_counter() - started
        return self._compiled(*placed)
