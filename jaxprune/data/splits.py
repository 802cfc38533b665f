"""Labelled images: a split, parts of it, its batches.

A `Split` holds uint8 images as they are stored; the device scales them. An example may
be several images, such as a pair: it is kept as their indices and stacked when a batch
is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num

from jaxprune._base.arguments import as_array, check_labels, check_names, check_numbers
from jaxprune._base.errors import InputError


class Joined:
    """Arrays one after the other along the first axis, without a copy of them.

    Attributes:
      shape: its shape.
      dtype: the type of all.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __init__(self, arrays: "Sequence[np.ndarray | Joined]"):
        if len({(array.dtype, array.shape[1:]) for array in arrays}) > 1:
            kinds = " and ".join(f"{a.dtype} {list(a.shape[1:])}" for a in arrays)
            raise InputError(f"images of one kind can be joined, got {kinds}")
        self._arrays = tuple(arrays)
        self._ends = np.cumsum([len(array) for array in arrays])
        self.shape = (int(self._ends[-1]), *arrays[0].shape[1:])
        self.dtype = arrays[0].dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Int[np.ndarray, " B"]) -> np.ndarray:
        rows = np.empty((len(index), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._ends, index, side="right")
        for i, array in enumerate(self._arrays):
            here = which == i
            rows[here] = array[index[here] - (self._ends[i] - len(array))]
        return rows


@dataclass(frozen=True, eq=False)
class Split:
    """N labelled examples, each of S source images stacked along the channels.

    Attributes:
      images: M source images, possibly memory-mapped, or several arrays of such; the
        library's own are uint8.
      sources: source images of each example.
      labels: class index of each example.
      class_names: name of each class.
    """

    images: Num[np.ndarray | Joined, "M H W C"]
    sources: Int[np.ndarray, "N S"]
    labels: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labels("labels", self.labels, len(self.class_names))
        sources = as_array("sources", self.sources)
        if (
            sources.dtype.kind not in "iu"
            or sources.ndim != 2
            or len(np.shape(self.images)) != 4
            or len(sources) != len(self.labels)
        ):
            raise InputError(
                "a split holds images [M, H, W, C], and for each of its labels a row "
                f"of sources [N, S], integers; got {list(np.shape(self.images))} and "
                f"{sources.dtype} {list(sources.shape)} for {len(self.labels)} labels"
            )
        if sources.size and not 0 <= sources.min() <= sources.max() < len(self.images):
            raise InputError(f"sources must be of {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an example."""
        h, w, c = self.images.shape[1:]
        return h, w, c * self.sources.shape[1]

    def read(self, index: Int[np.ndarray, " B"]) -> Num[np.ndarray, "B H W SC"]:
        """The examples at `index`, their source images stacked along the channels."""
        columns = self.sources[index].T
        return np.concatenate([self.images[column] for column in columns], axis=-1)

    def select(self, index: Int[np.ndarray, " B"]) -> "Split":
        """The split that holds only the examples at `index`."""
        return replace(self, sources=self.sources[index], labels=self.labels[index])


def image_split(
    images: Num[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, " N"],
    class_names: Sequence[str],
) -> Split:
    """The split whose examples are these images, one each.

    Raises:
      InputError: no images, another number of labels, or labels that name no class.
    """
    images, labels = as_array("images", images), as_array("labels", labels)
    check_numbers("images", images, images.shape)
    names = check_names("class_names", class_names)
    if images.ndim != 4 or labels.shape != images.shape[:1] or not images.size:
        raise InputError(
            "images must be [N, H, W, C] and labels [N], N at least 1; got "
            f"{list(images.shape)} and {list(labels.shape)}"
        )
    return Split(images, np.arange(len(labels))[:, None], labels, names)


def concatenate(splits: Sequence[Split]) -> Split:
    """The splits' examples one after the other; they have the same classes.

    Raises:
      InputError: their images differ in shape or type.
    """
    if len(splits) == 1:
        return splits[0]
    arrays = list({id(split.images): split.images for split in splits}.values())
    starts, start = {}, 0
    for array in arrays:
        starts[id(array)] = start
        start += len(array)
    return Split(
        arrays[0] if len(arrays) == 1 else Joined(arrays),
        np.concatenate([split.sources + starts[id(split.images)] for split in splits]),
        np.concatenate([split.labels for split in splits]),
        splits[0].class_names,
    )


class Batch(NamedTuple):
    """Examples from `start` on: `size` of them, then black images of class 0 to B."""

    images: Num[np.ndarray, "B H W C"]
    labels: Int[np.ndarray, " B"]
    start: int
    size: int


def batches(
    split: Split, batch_size: int, first: int = 0, end: int | None = None
) -> Iterator[Batch]:
    """The examples from `first` to `end` in order, in batches of one static size."""
    end = len(split) if end is None else end
    for start in range(first, end, batch_size):
        index = np.arange(start, min(start + batch_size, end))
        images = split.read(index)
        padding = [(0, batch_size - len(index))] + [(0, 0)] * (images.ndim - 1)
        labels = np.pad(split.labels[index].astype(np.int32), padding[0])
        yield Batch(np.pad(images, padding), labels, start, len(index))


def check_classes(split: Split, which: str) -> None:
    """Raises InputError if a class has no example in the split."""
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    if not counts.all():
        missing = [split.class_names[c] for c in np.flatnonzero(counts == 0)]
        raise InputError(f"split '{which}' has no image of class {', '.join(missing)}")
