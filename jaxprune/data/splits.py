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


@dataclass(frozen=True, eq=False)
class Split:
    """N labelled examples, each of S source images stacked along the channels.

    Attributes:
      images: M source images, possibly memory-mapped; the library's own are uint8.
      sources: source images of each example.
      labels: class index of each example.
      class_names: name of each class.
    """

    images: Num[np.ndarray, "M H W C"]
    sources: Int[np.ndarray, "N S"]
    labels: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labels("labels", self.labels, len(self.class_names))
        sources = as_array("sources", self.sources)
        if (
            sources.dtype.kind not in "iu"
            or sources.ndim != 2
            or np.ndim(self.images) != 4
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
