"""A user's images from an .npz file, or a folder of .npy files.

    images [N, H, W, C], labels [N]            the split `test`
    train_images, train_labels                 the split `train`, that fits are made on
    validation_images, validation_labels       the split `validation`
    class_names [classes]                      text; by default 0, 1, 2, ...

Of a network of several inputs, each has the name of its own in place of `images`: its
path in the batch (`image`, `train_image`), or `inputs_0`, `inputs_1`, ... of a tuple.
Where outputs are no classes, `targets` [N, ...] (`train_targets`, `validation_targets`)
take the place of labels; without them networks are compared with one another alone.
One of the three is enough. With `images` and without `train_images`, a fifth of the
images are drawn for `train`, at most `_MOST`, and the others are left for `test`.
In a folder each array is a file, images.npy, which is read as it is needed: it may be
larger than memory.
"""

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune._base import arguments
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError, first_line
from jaxprune._base.files import sha256
from jaxprune.data.datasets import Splits
from jaxprune.data.splits import Split, image_split

_SHARE, _MOST = 0.2, 512
_PREFIXES = {"train": "train_", "validation": "validation_", "test": ""}
_BESIDE = ("labels", "targets")
_NAMES = "class_names"
_ARRAY = ".npy"
# Ends of two ranges that are further apart than this share of all values, as those of
# 0 .. 1 and 0 .. 255 or -1 .. 1 are, are not of the same kind of pixels.
_APART = 15 / 16
# Raised by NumPy, zipfile and what unpacks its entries; RuntimeError by one that is
# encrypted, NotImplementedError by another way of packing.
_UNREADABLE = (
    ValueError, EOFError, OSError, RuntimeError, NotImplementedError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def load(path: Path, classes: int | None, seed: int = 0, inputs: Any = None) -> Splits:
    """The file's images, by split.

    Args:
      path: the file or folder.
      classes: number of the network's classes; None where it has targets instead.
      seed: of the draw.
      inputs: shapes and types of a batch's arrays, for a network of several inputs.

    Raises:
      InputError: no such file, or arrays that are not those, or do not belong
        together; the file is named.
    """
    names = input_names(inputs)
    arrays = _read(path, names, "labels" if classes is not None else None)
    try:
        splits = {
            name: _split(arrays, prefix, inputs, classes)
            for name, prefix in _PREFIXES.items()
            if prefix + names[0] in arrays
        }
        for i, name in enumerate(names):
            of_each = {
                _PREFIXES[split] + name: jax.tree.leaves(splits[split].images)[i]
                for split in reversed(splits)
            }
            _check_alike(of_each)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if "test" in splits and "train" not in splits:
        drawn = _draw(splits["test"].labels, seed)
        if not drawn.any():
            raise InputError(
                f"{path}: {len(drawn)} images are too few to draw some that fits are "
                "made on: add others, as train_images and train_labels"
            )
        everything = splits["test"]
        splits = {"train": everything.select(np.flatnonzero(drawn)), **splits}
        splits["test"] = everything.select(np.flatnonzero(~drawn))
    return Splits(splits)


def input_names(inputs: Any) -> list[str]:
    """Names in a file of a batch's arrays, those of a test split.

    Args:
      inputs: the batch's arrays, or anything in their places; None for images alone.

    Raises:
      InputError: one of the file's other arrays has the name.
    """
    if inputs is None:
        return ["images"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(inputs)]
    first = "" if isinstance(inputs, Mapping) else "inputs_"
    names = [first + path_name(path) for path in paths]
    for name in names:
        if name in (*_BESIDE, _NAMES):
            raise InputError(
                f"an input is called '{name}', as another array of an .npz file is"
            )
    return names


def _check_alike(images: dict[str, Any]) -> None:
    """Raises InputError where arrays of images differ in shape, type or range."""
    (first, one), *others = images.items()
    for name, other in others:
        shapes = [list(array.shape[1:]) for array in (one, other)]
        if shapes[0] != shapes[1]:
            raise InputError(f"{first} are {shapes[0]}, {name} {shapes[1]}")
        if one.dtype != other.dtype:
            raise InputError(f"{first} are {one.dtype}, {name} {other.dtype}")
        ends = np.array([(array.min(), array.max()) for array in (one, other)], float)
        if (np.ptp(ends, axis=0) > _APART * np.abs(ends).max()).any():
            ranges = [f"{low:g} .. {high:g}" for low, high in ends]
            raise InputError(
                f"{first} lie in {ranges[0]}, {name} in {ranges[1]}: give all on one "
                "scale"
            )


def _draw(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which images go to `train` [N]; every class keeps one for `test`."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, kept = np.unique(labels[order], return_index=True)
    count = min(_MOST, int(_SHARE * len(labels)))
    drawn = np.zeros(len(labels), bool)
    drawn[np.delete(order, kept)[:count]] = True
    return drawn


def _read(
    path: Path, inputs: Sequence[str], needed: str | None
) -> dict[str, np.ndarray]:
    """The arrays that have a known name; nothing is unpickled.

    Args:
      path: the file.
      inputs: names of the network's inputs, "images" where it has one.
      needed: what it must hold beside them, "labels".
    """
    known = [p + kind for p in _PREFIXES.values() for kind in (*inputs, *_BESIDE)]
    if path.is_dir():
        held, arrays = _of_folder(path, known)
    else:
        held, arrays = _of_file(path, known)
    _check_names(path, arrays, held, [*inputs, *filter(None, [needed])])
    return arrays


def holds_arrays(path: Path) -> bool:
    """Whether it is a folder of .npy files."""
    return path.is_dir() and any(path.glob(f"*{_ARRAY}"))


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the .npy files in a folder and their names."""
    if not path.is_dir():
        return sha256(path)
    facts = "".join(f"{n} {sha256(file)} " for n, file in _files(path).items())
    return hashlib.sha256(facts.encode()).hexdigest()


def _of_folder(
    path: Path, known: Sequence[str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names of a folder's arrays, and those arrays that are known, memory-mapped."""
    files, arrays = _files(path), {}
    for name in (*known, _NAMES):
        if name in files:
            try:
                arrays[name] = np.load(files[name], mmap_mode="r", allow_pickle=False)
            except _UNREADABLE as error:
                raise InputError(
                    f"{files[name]} is no plain array: {first_line(error)}; np.save "
                    "writes one"
                ) from error
    return [*files], arrays


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder's arrays by name, "image" or "left/image"."""
    files = sorted(folder.rglob(f"*{_ARRAY}"))
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in files}


def _of_file(
    path: Path, known: Sequence[str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names of a file's arrays, and those arrays that are known."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        if path.suffix == ".npz" and not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file, or it ends too early")
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is one array without a name")
            held = loaded.files
            arrays = {name: loaded[name] for name in (*known, _NAMES) if name in held}
    except MemoryError as error:
        raise InputError(
            f"{path} claims to hold more than fits into memory: {first_line(error)}"
        ) from error
    except _UNREADABLE as error:
        why = first_line(error)
        if "allow_pickle" in why:
            why = "it holds Python objects, which are not read"
        raise InputError(
            f"{path} is no .npz file of plain arrays: {why}; np.savez(path, "
            "images=..., labels=...) writes one"
        ) from error
    return held, arrays


def _check_names(
    path: Path, arrays: dict[str, np.ndarray], held: list[str], needed: list[str]
) -> None:
    """Raises InputError unless a split has all that is needed, and none has a part."""
    by_split = [[prefix + kind for kind in needed] for prefix in _PREFIXES.values()]
    there = [[name in arrays for name in names] for names in by_split]
    if not any(map(all, there)):
        missing = [name for name in needed if name not in arrays]
        wanted = ", ".join(f"{kind}=..." for kind in needed)
        raise InputError(
            f"{path} has no {' and no '.join(missing)}, it holds "
            f"{', '.join(held) or 'nothing'}: np.savez(path, {wanted}) writes a file"
        )
    for names, found in zip(by_split, there, strict=True):
        if any(found) and not all(found):
            which, how = ("one", "both") if len(names) == 2 else ("some", "all")
            raise InputError(
                f"{path} holds {which} of {' and '.join(names)}: give {how}"
            )


def _split(
    arrays: dict[str, Any], prefix: str, inputs: Any, classes: int | None
) -> Split:
    """A split of the file."""
    names = input_names(inputs)
    found = [arguments.check_finite(prefix + n, arrays[prefix + n]) for n in names]
    if inputs is None:
        of_images, (images,) = prefix + names[0], found
        arguments.check_numbers(of_images, images, images.shape)
        if images.ndim != 4 or not len(images):
            raise InputError(
                f"{of_images} must be [N, H, W, C], N at least 1; got "
                f"{list(images.shape)}"
            )
        # Bytes as they are, all other numbers as what a network takes.
        examples = images
        if images.dtype != np.uint8:
            examples = images.astype(np.float32, copy=False)
    else:
        shapes = jax.tree.leaves(inputs)
        for name, array, shape in zip(names, found, shapes, strict=True):
            if array.shape[1:] != shape.shape[1:] or not len(array):
                raise InputError(
                    f"{prefix}{name} must be [N, {', '.join(map(str, shape.shape[1:]))}"
                    f"], N at least 1; got {list(array.shape)}"
                )
        pairs = zip(found, shapes, strict=True)
        rows = [a.astype(s.dtype, copy=False) for a, s in pairs]
        examples = jax.tree.unflatten(jax.tree.structure(inputs), rows)
    if classes is not None:
        return _of_classes(arrays, prefix, found[0], examples, classes)
    targets = arrays.get(f"{prefix}targets")
    if targets is not None and targets.dtype.kind == "f":
        targets = targets.astype(np.float32, copy=False)
    return image_split(examples, targets=targets)


def _of_classes(
    arrays: dict[str, Any], prefix: str, first: np.ndarray, examples: Any, classes: int
) -> Split:
    """A split with labels; `first` is the first of its inputs."""
    name = f"{prefix}labels"
    labels = arrays[name]
    if labels.ndim == 2 and len(labels) == len(first):
        cure = "[:, 0]" if labels.shape[1] == 1 else ".argmax(1)"
        raise InputError(
            f"{name} must be [N], the index of a class each, got "
            f"{list(labels.shape)}: give {name}{cure}"
        )
    if labels.shape != first.shape[:1]:
        raise InputError(
            f"inputs must be [N, ...] and {name} [N], N the same; got "
            f"{list(first.shape)} and {list(labels.shape)}"
        )
    names = _class_names(arrays.get(_NAMES), classes)
    arguments.check_labels(name, labels, len(names))
    return image_split(examples, labels.astype(np.int64), names)


def _class_names(given: np.ndarray | None, classes: int) -> tuple[str, ...]:
    if given is None:
        return tuple(str(c) for c in range(classes))
    if given.dtype.kind != "U" or given.ndim != 1:
        cure = ": give class_names.astype(str)" if given.dtype.kind == "S" else ""
        raise InputError(
            f"class_names must be [classes] of text, got {given.dtype}{cure}"
        )
    if len(given) != classes:
        raise InputError(
            f"there are {len(given)} class_names, and the network tells {classes} "
            "classes apart"
        )
    return tuple(given.tolist())
