"""Where a layer's feature maps are between the trunk and their evaluation.

Axes: N images, B images of a batch, P channels.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxprune._base.errors import InputError
from jaxprune.data.splits import Split, batches

# In a temporary file, or nowhere: then the trunk runs again.
KINDS = ("disk", "recompute")


class OnDisk:
    """Written once, in a temporary file without a name, and read as often as wanted.

    The file goes with the object.
    """

    def __init__(self, folder: Path | None):
        """Opens the file in a folder; by default where the system has such files."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def write(self, maps: np.ndarray) -> None:
        """Adds the feature maps of the next images."""
        self._file.write(maps.tobytes())

    def read(self, start: int, out: np.ndarray) -> None:
        """Those of as many images, from `start` on, as `out` has room for."""
        self._file.seek(start * out[:1].nbytes)
        self._file.readinto(out.reshape(-1).view(np.uint8).data)


class Recomputed:
    """Computed again, in the batches of the first time, whenever they are read."""

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

    def write(self, maps: np.ndarray) -> None:
        """Forgets them."""

    def read(self, start: int, out: np.ndarray) -> None:
        """See `OnDisk.read`; cheap where the last one ended before `start`."""
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


Maps = OnDisk | Recomputed


def check_space(folder: Path | None, needed: int) -> None:
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
