"""Damage in an HDF5 file that the HDF5 library would read for ever."""

import mmap
import struct
from pathlib import Path

from jaxprune._base.errors import InputError

# A global heap collection, version 1: signature, size of all; then objects.
_SIGNATURE, _HEADER = b"GCOL\x01\0\0\0", 16
# Of an object: index, references, nothing, size; then its data, in steps of 8 bytes.
_OBJECT = struct.Struct("<HHIQ")


def check_heaps(path: Path) -> None:
    """Refuses a file whose heap of strings has a hole, as of a broken download.

    What is free in a heap says how far to go on, and there it says: nowhere.

    Raises:
      InputError: there is one.
    """
    if not path.stat().st_size:
        return
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        start = -1
        while (start := data.find(_SIGNATURE, start + 1)) >= 0:
            if _has_hole(data, start):
                raise InputError(f"{path} is damaged: its heap at byte {start}")


def _has_hole(data: mmap.mmap, start: int) -> bool:
    """Whether a collection's free space is of no size, with room left."""
    end = start + int.from_bytes(data[start + 8 : start + _HEADER], "little")
    at = start + _HEADER
    while at + _OBJECT.size <= min(end, len(data)):
        index, _, _, size = _OBJECT.unpack_from(data, at)
        if index == 0:
            return size == 0
        at += _OBJECT.size + -(-size // 8) * 8
    return False
