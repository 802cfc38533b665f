"""Decoded images, kept as memory-mapped arrays that are whole or absent.

    <entry>/test_images.npy  test_labels.npy  test.json (class names, SHA-256, source)

An entry is a folder whose name says what was decoded.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Int, Num

from jaxprune._base import manifest
from jaxprune._base.errors import InputError
from jaxprune._base.files import clean, replacing, sha256, write_text

_ARRAYS = ("images", "labels")
_log = logging.getLogger(__name__)

Chunk = tuple[Num[np.ndarray, "N H W C"], Int[np.ndarray, " N"]]
Decoded = tuple[Num[np.ndarray, "N H W C"], Int[np.ndarray, " N"], tuple[str, ...]]


class Decoding(NamedTuple):
    """A split that is about to be decoded.

    Attributes:
      total: number of images.
      chunks: its images and labels, some at a time.
      class_names: name of each class.
      about: JSON-able facts, of which "source" says where the images come from.
    """

    total: int
    chunks: Iterable[Chunk]
    class_names: tuple[str, ...]
    about: dict[str, Any]


def cache_folder(cache_dir: str | None) -> Path:
    """The folder that is named, or $XDG_CACHE_HOME/jaxprune or ~/.cache/jaxprune."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxprune"


def load(entry: Path, split: str, decode: Callable[[], Decoding]) -> Decoded:
    """A split of the entry, which is decoded where it is absent or damaged.

    Raises:
      InputError: it cannot be decoded.
    """
    before = _written(entry, split)
    decoded = read(entry, split)
    if decoded is not None:
        return decoded
    entry.mkdir(parents=True, exist_ok=True)
    with FileLock(entry / ".lock"):
        clean(entry)
        if _written(entry, split) != before:  # another process has decoded it
            decoded = read(entry, split)
        if decoded is None:
            _write(entry, split, decode())
            decoded = read(entry, split)
    if decoded is None:
        raise InputError(f"the cache {entry} changed while it was read; run again")
    return decoded


def _written(entry: Path, split: str) -> int | None:
    """When a split was written; None where it was not."""
    path = entry / f"{split}.json"
    return path.stat().st_mtime_ns if path.is_file() else None


def about(entry: Path, split: str) -> dict[str, Any]:
    """The entry's description; empty strings where it cannot be read."""
    try:
        found = json.loads((entry / f"{split}.json").read_bytes())
        return {"source": str(found["source"]), **found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"source": f"{entry} (damaged)"}


def read(entry: Path, split: str) -> Decoded | None:
    """The cached split, or None (and a warning) where it is absent or damaged."""
    if not (entry / f"{split}.json").is_file():
        return None
    found = about(entry, split)
    try:
        for key in _ARRAYS:
            if sha256(entry / f"{split}_{key}.npy") != found["sha256"][key]:
                raise ValueError(f"{split}_{key}.npy does not match its checksum")
        names = manifest.digest(found["class_names"])
        if found["sha256"]["class_names"] != names:
            raise ValueError("the class names do not match their checksum")
        images = np.load(entry / f"{split}_images.npy", mmap_mode="r")
        labels = np.load(entry / f"{split}_labels.npy")
        return images, labels, tuple(found["class_names"])
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the cache %s is damaged (%s) and is built again", entry, error)
        return None


def _write(entry: Path, split: str, decoding: Decoding) -> None:
    """Decodes a split into the entry; only one chunk is in memory."""
    labels: list[np.ndarray] = []
    with replacing(entry / f"{split}_images.npy") as path, open(path, "wb") as file:
        for images, of_chunk in decoding.chunks:
            if not labels:
                shape = (decoding.total, *images.shape[1:])
                _check_space(entry, images.nbytes // len(images) * decoding.total)
                np.lib.format.write_array_header_1_0(
                    file, {"descr": images.dtype.str, "fortran_order": False,
                           "shape": shape},
                )  # fmt: skip
            # A mapped array would end the process where the disk is full.
            file.write(np.ascontiguousarray(images).data)
            labels.append(of_chunk)
    with replacing(entry / f"{split}_labels.npy") as path:
        np.save(path, np.concatenate(labels))
    names = list(decoding.class_names)
    sums = {key: sha256(entry / f"{split}_{key}.npy") for key in _ARRAYS}
    facts = {
        **decoding.about,
        "class_names": names,
        "sha256": {**sums, "class_names": manifest.digest(names)},
    }
    write_text(entry / f"{split}.json", json.dumps(facts, indent=2) + "\n")


def _check_space(folder: Path, needed: int) -> None:
    """Raises InputError where `needed` bytes do not fit."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"the decoded images take {needed / 2**30:.1f} GiB, and {folder} has "
            f"{free / 2**30:.1f} GiB free: give another folder (cache_dir)"
        )
