"""Work spread over this process's devices.

A mesh has two axes, `data` and `mask`. Images are spread over both where a mask plays
no part, over `data` where every mask meets every image, and (image, mask) pairs over
both. Each device runs the same program on its share and hears nothing of the others.
"""

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    suppress,
)
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxprune._base.errors import InputError

R = TypeVar("R")
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


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that each of the devices has free; None where they do not say."""
    if devices[0].platform == "cpu":
        pages, size = (
            os.sysconf(f"SC_{name}") for name in ("AVPHYS_PAGES", "PAGESIZE")
        )
        return pages * size // len(devices)
    stats = [device.memory_stats() or {} for device in devices]
    left = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if "bytes_limit" in s]
    return min(left, default=None)


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


def place(batch: Any, mesh: Mesh) -> Any:
    """A batch of this process's own, divided over its devices along the first axis."""
    return jax.device_put(batch, NamedSharding(mesh, SPREAD))


@contextmanager
def usual_options() -> Iterator[None]:
    """JAX's options as they are by default.

    Those for finding errors in one's own code, and a mesh that the caller has set, are
    of the caller's code, not of the library's.
    """
    usual: dict[str, tuple[Any, Callable[[Any], AbstractContextManager[None]]]] = {
        "jax_disable_jit": (False, jax.disable_jit),
        "jax_debug_nans": (False, jax.debug_nans),
        "jax_debug_infs": (False, jax.debug_infs),
        "jax_numpy_rank_promotion": ("allow", jax.numpy_rank_promotion),
        **dict.fromkeys(_GUARDS, ("allow", jax.transfer_guard)),
    }
    with ExitStack() as stack:
        for option, (value, entered) in usual.items():
            if getattr(jax.config, option) not in (value, None):
                stack.enter_context(entered(value))
        with suppress(ValueError):  # inside a function that is traced
            if not jax.sharding.get_mesh().empty:
                stack.enter_context(jax.set_mesh(None))
        yield


def each_in_usual_options(
    items: Generator[R, None, None],
) -> Generator[R, None, None]:
    """The items, each made under `usual_options`; what the caller does is not."""
    with closing(items):
        while True:
            with usual_options():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


_GUARDS = [
    f"jax_transfer_guard{which}"
    for which in ("", "_host_to_device", "_device_to_host", "_device_to_device")
]


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
        out_specs: Any,
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

    @usual_options()
    def __call__(self, *arguments: Any) -> Any:
        """The function's value, its shares put together."""
        placed = [
            jax.device_put(a, s)
            for a, s in zip(arguments, self._shardings, strict=True)
        ]
        if self._compiled is None:
            self._compiled = self.compile(*placed)
        return self._compiled(*placed)

    def compile(self, *placed: Any) -> Callable[..., Any]:
        """The program for arguments of these shapes, which lie where they belong."""
        started = time.perf_counter()
        compiled = self._function.lower(*placed).compile()
        self.compile_seconds = time.perf_counter() - started
        return compiled
