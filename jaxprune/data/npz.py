"""A user's images from an .npz file.

    images [N, H, W, C], labels [N]     those that a network is tested on
    class_names [classes]               text; by default 0, 1, 2, ...
    train_images, train_labels          others, that fits are made on

Without the last two, a fifth of the images are drawn for that, at most `_MOST`, and the
others are left for tests.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, first_line
from jaxprune.data.datasets import Splits
from jaxprune.data.splits import Split, image_split

_SHARE, _MOST = 0.2, 512
_TRAIN = ("train_images", "train_labels")
_KNOWN = ("images", "labels", "class_names", *_TRAIN)


def load(path: Path, classes: int, seed: int = 0) -> Splits:
    """The file's images: what fits are made on, `train`, and the others, `test`.

    Args:
      path: the file.
      classes: number of the network's classes.
      seed: of the draw.

    Raises:
      InputError: no such file, or arrays that are not those; the file is named.
    """
    arrays = _read(path)
    if sum(name in arrays for name in _TRAIN) == 1:
        raise InputError(f"{path} holds one of {' and '.join(_TRAIN)}: give both")
    try:
        names = _class_names(arrays.get("class_names"), classes)
        test = _split(arrays, "", names)
        if _TRAIN[0] in arrays:
            train = _split(arrays, "train_", names)
            if train.image_shape != test.image_shape:
                raise InputError(
                    f"images are {list(test.image_shape)}, train_images "
                    f"{list(train.image_shape)}"
                )
            return Splits(train, test)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    drawn = _draw(test.labels, seed)
    if not drawn.any():
        raise InputError(
            f"{path}: {len(test)} images are too few to draw some that fits are made "
            "on: add others, as train_images and train_labels"
        )
    train, test = (test.select(np.flatnonzero(mask)) for mask in (drawn, ~drawn))
    return Splits(train, test)


def _draw(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which images go to `train` [N]; every class keeps one for `test`."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, kept = np.unique(labels[order], return_index=True)
    count = min(_MOST, int(_SHARE * len(labels)))
    drawn = np.zeros(len(labels), bool)
    drawn[np.delete(order, kept)[:count]] = True
    return drawn


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that have a known name; nothing is unpickled."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is one array without a name")
            held = loaded.files
            arrays = {name: loaded[name] for name in _KNOWN if name in held}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = first_line(error)
        if "allow_pickle" in why:
            why = "it holds Python objects, which are not read"
        raise InputError(f"{path} is no .npz file of plain arrays: {why}") from error
    missing = [name for name in _KNOWN[:2] if name not in arrays]
    if missing:
        raise InputError(
            f"{path} has no {' and no '.join(missing)}, it holds "
            f"{', '.join(held) or 'nothing'}: np.savez(path, images=..., labels=...)"
        )
    return arrays


def _split(arrays: dict[str, Any], prefix: str, names: tuple[str, ...]) -> Split:
    images, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise InputError(
            f"{prefix}images must be [N, H, W, C] and {prefix}labels [N], N at least "
            f"1; got {list(images.shape)} and {list(labels.shape)}"
        )
    arguments.check_labels(f"{prefix}labels", labels, len(names))
    arguments.check_numbers(f"{prefix}images", images, images.shape)
    # Bytes as they are, all other numbers as what a network takes.
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
    return image_split(images, labels.astype(np.int64), names)


def _class_names(given: np.ndarray | None, classes: int) -> tuple[str, ...]:
    if given is None:
        return tuple(str(c) for c in range(classes))
    if given.dtype.kind != "U" or given.ndim != 1:
        raise InputError(f"class_names must be [classes] of text, got {given.dtype}")
    if len(given) != classes:
        raise InputError(
            f"there are {len(given)} class_names, and the network tells {classes} "
            "classes apart"
        )
    return tuple(given.tolist())
