"""A folder of JPEG and PNG images, one subfolder for each class.

    folder/class/image.jpg            the split `train`
    folder/train/class/image.jpg      the splits that the first level names; `val` is
    folder/test/class/image.jpg       another name for `validation`

Classes are the names of the subfolders in order. Within a split, images are in the
order of the SHA-256 of class and file name, so that each slice has images of every
class. Names that begin with a dot are left out.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxprune._base.arguments import check_count
from jaxprune._base.errors import InputError, first_line
from jaxprune.data import cache
from jaxprune.data.datasets import Splits
from jaxprune.data.splits import Split, image_split

_SPLITS = {
    "train": "train", "validation": "validation", "val": "validation", "test": "test"
}  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".png")
# The shorter side before the crop, in units of the crop's, as for ImageNet.
_RESIZED = 256 / 224
_CHUNK = 2**26  # bytes of images that are decoded together
# Part of what a decoded split is known by: to be changed with the pixels.
_DECODER = "RGB, bicubic 256/224, centre crop, unless of this size"


@dataclass(frozen=True)
class ImageFile:
    """An image's file.

    Attributes:
      name: its path in the split's folder, class/file.
      label: class index.
      size: in bytes.
      modified: when it was last changed, in nanoseconds.
    """

    name: str
    label: int
    size: int
    modified: int


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder of images.

    Attributes:
      path: the folder.
      class_names: name of each class.
      places: folder of each split.
      files: files of each split.
    """

    path: Path
    class_names: tuple[str, ...]
    places: dict[str, Path]
    files: dict[str, tuple[ImageFile, ...]]

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))

    def numbers(self, classes: int | None) -> tuple[str, ...] | None:
        """The names of so many classes, where the folder's are numbers of some of them.

        None where they are no such numbers, or there are as many.
        """
        names = self.class_names
        if classes is None or len(names) >= classes:
            return None
        if not all(name.isdecimal() and int(name) < classes for name in names):
            return None
        return tuple(map(str, range(classes)))

    def fingerprint(self, size: int) -> str:
        """SHA-256, in hex, of the names and lengths of all files, and of a size."""
        names = [
            (split, file.name, file.size)
            for split, files in self.files.items()
            for file in files
        ]
        return _digest(_DECODER, size, names)


def load_folder(
    path: str | Path,
    size: int,
    *,
    cache_dir: str | None = None,
    on_images: Callable[[int], Any] | None = None,
) -> Splits:
    """The images of a folder as uint8 [N, size, size, 3].

    The shorter side is resized to size * 256 / 224 (bicubic), and the centre is taken;
    images of this size are left as they are.
    Greyscale becomes RGB; transparency and the camera's orientation are ignored.
    Decoded images are kept as memory-mapped arrays, and used again as long as paths,
    lengths and times of the files stay the same.

    Args:
      path: the folder.
      size: height and width of the images.
      cache_dir: folder of decoded arrays; by default the user's cache folder.
      on_images: is told how many more images are ready.

    Raises:
      InputError: no such folder, or one that holds something else; the file is named.
    """
    return decode(find(path), size, cache_dir=cache_dir, on_images=on_images)


def find(path: str | Path) -> ImageFolder:
    """Lists a folder of images, without looking into the files.

    Raises:
      InputError: see `load_folder`.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    first = _subfolders(path)
    if _are_splits(path, first):
        if others := [name for name in first if name not in _SPLITS]:
            raise InputError(
                f"{path} holds {', '.join(others)} beside splits, which are "
                f"{', '.join(_SPLITS)}"
            )
        if {"val", "validation"} <= set(first):
            raise InputError(f"{path} holds both val and validation: join them")
        places = {_SPLITS[name]: path / name for name in first}
    else:
        places = {"train": path}
    # In the order of other datasets.
    places = {name: places[name] for name in _SPLITS if name in places}
    for place in {path, *places.values()}:
        _check_none_beside(place)
    classes = {name: _subfolders(place) for name, place in places.items()}
    names = _class_names(path, classes, places)
    files = {split: _files(place, names) for split, place in places.items()}
    return ImageFolder(path, names, places, files)


def decode(
    folder: ImageFolder,
    size: int,
    *,
    cache_dir: str | None = None,
    on_images: Callable[[int], Any] | None = None,
) -> Splits:
    """The images of a folder that was listed; see `load_folder`."""
    check_count("image_size", size)
    report = on_images or (lambda count: None)
    root = cache.cache_folder(cache_dir) / "image-folders"  # no dataset has a dash
    return Splits({n: _load(folder, n, size, root, report) for n in folder.files})


def _load(
    folder: ImageFolder,
    split: str,
    size: int,
    root: Path,
    on_images: Callable[[int], Any],
) -> Split:
    files, place = folder.files[split], folder.places[split].resolve()
    facts = [(file.name, file.size, file.modified) for file in files]
    key = _digest(_DECODER, size, str(place), folder.class_names, facts)
    ready = 0

    def count(images: int) -> None:
        nonlocal ready
        ready += images
        on_images(images)

    decoding = cache.Decoding(
        len(files), _chunks(place, files, size, count), folder.class_names,
        {"source": str(place), "image_size": size},
    )  # fmt: skip
    decoded = cache.load(root / key[:16], split, lambda: decoding)
    on_images(len(files) - ready)  # those that had been decoded before
    return image_split(*decoded)


def _digest(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _entries(place: Path) -> dict[str, os.stat_result]:
    """What a folder holds, by name in order, but for names that begin with a dot."""
    try:
        names = sorted(name for name in os.listdir(place) if name[0] != ".")
        return {name: os.stat(place / name) for name in names}
    except OSError as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Path, error: OSError) -> InputError:
    return InputError(f"{error.filename or place} cannot be read: {error.strerror}")


def _subfolders(place: Path) -> list[str]:
    """The names of a folder's subfolders, in order."""
    entries = _entries(place).items()
    return [name for name, facts in entries if stat.S_ISDIR(facts.st_mode)]


def _are_splits(path: Path, names: list[str]) -> bool:
    """Whether subfolders are splits; a class may be called train, too."""
    named = [name for name in names if name in _SPLITS]
    return bool(named) and (
        named == names or any(_subfolders(path / name) for name in named)
    )


def _check_none_beside(place: Path) -> None:
    """Raises InputError where there are images beside the subfolders."""
    for name in _entries(place):
        if name.lower().endswith(_SUFFIXES) and not (place / name).is_dir():
            raise InputError(
                f"{place / name} is in no class: images lie in the subfolder of theirs"
            )


def _class_names(
    path: Path, classes: dict[str, list[str]], places: dict[str, Path]
) -> tuple[str, ...]:
    """The class names, which are those of all splits."""
    names = sorted({name for found in classes.values() for name in found})
    if not names:
        raise InputError(
            f"{path} holds no images: each lies in the subfolder of its class, "
            "folder/class/image.jpg or folder/train/class/image.jpg"
        )
    for split, found in classes.items():
        if missing := [name for name in names if name not in found]:
            raise InputError(f"{places[split]} has no class {', '.join(missing)}")
    for name in names:
        if not name.isprintable():
            raise InputError(f"{path}: class {name!r} has no printable name")
    if len(names) < 2:
        raise InputError(f"{path} has one class, {names[0]}: there must be two or more")
    return tuple(names)


def _files(place: Path, classes: tuple[str, ...]) -> tuple[ImageFile, ...]:
    """The files of a split, in the order of its examples."""
    found: list[ImageFile] = []
    for label, name in enumerate(classes):
        entries = _entries(place / name)
        if not entries:
            raise InputError(f"{place / name} holds no images")
        for file, facts in entries.items():
            if stat.S_ISDIR(facts.st_mode):
                raise InputError(
                    f"{place / name / file} is a folder: the images of a class lie in "
                    f"{place / name} itself"
                )
            if not file.lower().endswith(_SUFFIXES) or not stat.S_ISREG(facts.st_mode):
                raise InputError(
                    f"{place / name / file} is no image: names end in "
                    f"{', '.join(_SUFFIXES)}"
                )
            found.append(
                ImageFile(f"{name}/{file}", label, facts.st_size, facts.st_mtime_ns)
            )
    return tuple(sorted(found, key=lambda file: _digest(file.name)))


def _chunks(
    place: Path,
    files: tuple[ImageFile, ...],
    size: int,
    on_images: Callable[[int], Any],
) -> Iterator[cache.Chunk]:
    """Decodes in threads: Pillow lets others run meanwhile."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        at_once = max(1, _CHUNK // (size * size * 3))
        for start in range(0, len(files), at_once):
            some = files[start : start + at_once]
            images = []
            for image in pool.map(lambda f: _image(place / f.name, size), some):
                images.append(image)
                on_images(1)
            yield np.stack(images), np.array([file.label for file in some], np.int64)


def _image(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes an image, resizes it and takes its centre."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if image.mode.startswith("I"):
                raise InputError(f"{path} has 16 bits a pixel: convert it to 8")
            # A palette may have a transparent colour.
            colours = image.convert("RGBA") if image.mode == "P" else image
            return np.asarray(_centre(colours.convert("RGB"), size))
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{path} is no JPEG or PNG image") from error
    except Exception as error:  # of many kinds, where a file is damaged
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreadable(path, error) from error
        raise InputError(f"{path} cannot be decoded: {first_line(error)}") from error


def _centre(image: Image.Image, size: int) -> Image.Image:
    """The centre of a resized image, without computing the rest of it.

    An image that has the size already is left as it is.
    """
    if image.size == (size, size):
        return image
    shorter = round(_RESIZED * size)
    box: list[float] = []
    for side in image.size:
        resized = side * shorter // min(image.size)
        start = round((resized - size) / 2)
        box += start * side / resized, (start + size) * side / resized
    left, right, top, bottom = box
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, (left, top, right, bottom)
    )
