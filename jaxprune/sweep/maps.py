"""Where a layer's feature maps are between the trunk and their evaluation.

Axes: N images, B images of a batch, P channels.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import free_memory
from jaxprune.data.splits import Split, batches


class OnDevice:
    """Left where they were computed, an array for each batch."""

    kind = "device"

    def __init__(self, batch_size: int):
        """Keeps the number of images in a batch."""
        self._batch_size = batch_size
        self._parts: list[jax.Array] = []

    def write(self, maps: Any, count: int) -> None:
        """Keeps a batch; `count` of its images are real."""
        del count
        self._parts.append(maps)

    def part(self, start: int, batch_size: int) -> jax.Array | None:
        """The batch that begins with an image; None where none of this size does."""
        if start % self._batch_size or batch_size != self._batch_size:
            return None
        return self._parts[start // self._batch_size]

    def read(self, start: int, out: np.ndarray) -> None:
        """Copies those of as many images, from `start` on, as `out` has room for."""
        filled = 0
        while filled < len(out):
            part, at = divmod(start + filled, self._batch_size)
            rows = np.asarray(self._parts[part])[at:][: len(out) - filled]
            out[filled : filled + len(rows)] = rows
            filled += len(rows)


class OnDisk:
    """Written once, in a temporary file without a name, and read as often as wanted.

    The file goes with the object.
    """

    kind = "disk"

    def __init__(self, folder: Path | None):
        """Opens the file in a folder; by default where the system has such files."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def write(self, maps: Any, count: int) -> None:
        """Adds the feature maps of the next images, the first `count` of these."""
        self._file.write(np.asarray(maps)[:count].tobytes())

    def read(self, start: int, out: np.ndarray) -> None:
        """See `OnDevice.read`."""
        self._file.seek(start * out[:1].nbytes)
        self._file.readinto(out.reshape(-1).view(np.uint8).data)


class Recomputed:
    """Computed again, in the batches of the first time, whenever they are read."""

    kind = "recompute"

    def __init__(self, trunk: Callable[..., np.ndarray], split: Split, batch_size: int):
        """Keeps what is needed.

        Args:
          trunk: of a batch, its feature maps.
          split: this process's images.
          batch_size: images in a batch, B.
        """
        self._trunk, self._split, self._batch_size = trunk, split, batch_size
        self._at, self._left = 0, np.empty(0)
        self._stream: Iterator[np.ndarray] = iter(())

    def write(self, maps: Any, count: int) -> None:
        """Forgets them."""

    def read(self, start: int, out: np.ndarray) -> None:
        """See `OnDevice.read`; cheap where the last one ended before `start`."""
        if start != self._at or not start:
            self._stream, self._left = self._from(start), out[:0]
        filled = 0
        while filled < len(out):
            if not len(self._left):
                self._left = next(self._stream)
            taken = self._left[: len(out) - filled]
            out[filled : filled + len(taken)] = taken
            self._left = self._left[len(taken) :]
            filled += len(taken)
        self._at = start + len(out)

    def _from(self, start: int) -> Iterator[np.ndarray]:
        first = start // self._batch_size * self._batch_size
        for batch in batches(self._split, self._batch_size, first):
            maps = self._trunk(batch)[: batch.size]
            yield maps[max(start - batch.start, 0) :]


Maps = OnDevice | OnDisk | Recomputed

KINDS = tuple(place.kind for place in (OnDevice, OnDisk, Recomputed))


def usual(mesh: Mesh) -> str:
    """Where feature maps are kept by default: on the devices, if these are no CPUs."""
    return "disk" if mesh.devices.flat[0].platform == "cpu" else "device"


def choose(
    kind: str | None, needed: int, mesh: Mesh, folder: Path | None = None
) -> str:
    """Where `needed` bytes of feature maps are kept.

    Args:
      kind: one of KINDS; by default what is usual.
      needed: bytes in all.
      mesh: the devices. What takes more than half of their free memory goes to a file.
      folder: of that file; by default where the system has such files.

    Raises:
      InputError: they do not fit on the disk either.
    """
    kind = usual(mesh) if kind is None else kind
    if kind == "device":
        free = free_memory(mesh.devices.ravel().tolist())
        if free is not None and needed / mesh.size > free / 2:
            kind = "disk"
    if kind == "disk":
        _check_space(folder, needed)
    return kind


def _check_space(folder: Path | None, needed: int) -> None:
    """Raises InputError where `needed` bytes do not fit, with what can be done."""
    place = Path(tempfile.gettempdir()) if folder is None else folder
    if not place.is_dir():
        raise InputError(f"no folder {place} for the feature maps")
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"the feature maps take {size(needed)}, and {place} has {size(free)} free: "
            "give another folder (maps_dir), or keep none (maps=recompute)"
        )


def size(count: int) -> str:
    """Bytes, in words.

    >>> size(20 * 2**30)
    '20.0GiB'
    """
    return tqdm.format_sizeof(count, "iB" if count >= 1000 else "B", 1024)
