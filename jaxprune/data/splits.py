"""Examples and what a network is to say of them: a split, parts of it, its batches.

A `Split` holds uint8 images as they are stored; the device scales them. An example may
be several images, such as a pair: it is kept as their indices and stacked when a batch
is read. Where a network takes several inputs, an example is a tree of arrays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxprune._base.arguments import (
    as_array,
    check_finite,
    check_labels,
    check_names,
    check_numbers,
)
from jaxprune._base.batch import pad_rows
from jaxprune._base.errors import InputError

# Targets that are read at once.
_AT_ONCE = 1024


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
    """N examples, each of S source images stacked along the channels.

    Attributes:
      images: M source images, possibly memory-mapped, or several arrays of such; the
        library's own are uint8. Or a tree of arrays, for networks of several inputs.
      sources: source images of each example.
      labels: class index of each example; all 0 where it has none.
      class_names: name of each class; none where examples have no classes.
      targets: what a network is to return for each example where that is no class: an
        array, possibly memory-mapped, or a tree of arrays.
    """

    images: Any
    sources: Int[np.ndarray, "N S"]
    labels: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]
    targets: Any = None

    def __post_init__(self) -> None:
        if self.class_names:
            check_labels("labels", self.labels, len(self.class_names))
        sources = as_array("sources", self.sources)
        arrays = _arrays(self.images)
        single = _is_single(self.images)
        if (
            sources.dtype.kind not in "iu"
            or sources.ndim != 2
            or any(len(np.shape(array)) < 2 for array in arrays if single)
            or len(sources) != len(self.labels)
            or (sources.shape[1] != 1 and not single)
        ):
            shapes = [list(np.shape(array)) for array in arrays]
            raise InputError(
                "a split holds images [M, H, W, C], and for each of its labels a row "
                f"of sources [N, S], integers; got {shapes[0] if single else shapes} "
                f"and {sources.dtype} {list(sources.shape)} for {len(self.labels)} "
                "labels"
            )
        held = min((len(array) for array in arrays), default=0)
        if sources.size and not 0 <= sources.min() <= sources.max() < held:
            raise InputError(f"sources must be of {held} images")
        for array in jax.tree.leaves(self.targets):
            if np.shape(array)[:1] != (len(sources),):
                raise InputError(
                    f"targets must be [N, ...], one for each of {len(sources)} "
                    f"examples, got shape {list(np.shape(array))}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(a.shape[1:])) for a in _arrays(self.images))
        kind = f"{len(self.class_names)} classes" if self.class_names else "no classes"
        return f"Split({len(self)} examples of {shapes}, {kind})"

    @property
    def has_classes(self) -> bool:
        """Whether examples have a class each."""
        return bool(self.class_names)

    @property
    def are_pictures(self) -> bool:
        """Whether examples are images [H, W, C]."""
        return _is_single(self.images) and len(self.images.shape) == 4

    @property
    def dtype(self) -> np.dtype:
        """The type of an image's numbers; of several arrays, that of the first."""
        return np.dtype(_arrays(self.images)[0].dtype)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an example.

        Raises:
          InputError: an example is several arrays.
        """
        if not _is_single(self.images):
            raise InputError("an example of the split is several arrays")
        *rest, c = self.images.shape[1:]
        return *rest, c * self.sources.shape[1]

    def read(self, index: Int[np.ndarray, " B"]) -> Any:
        """The examples at `index`, their source images stacked along the channels."""
        columns = self.sources[index].T
        if len(columns) == 1:
            return jax.tree.map(lambda a: np.asarray(a[columns[0]]), self.images)
        return np.concatenate([self.images[column] for column in columns], axis=-1)

    def read_targets(self, index: Int[np.ndarray, " B"]) -> Any:
        """Targets of the examples at `index`: int32 classes, or arrays."""
        if self.targets is None:
            return self.labels[index].astype(np.int32)
        return jax.tree.map(lambda a: np.asarray(a[index]), self.targets)

    def all_targets(self) -> Iterator[Any]:
        """Targets of all examples, batch by batch."""
        for start in range(0, len(self), _AT_ONCE):
            yield self.read_targets(np.arange(start, min(start + _AT_ONCE, len(self))))

    def select(self, index: Int[np.ndarray, " B"]) -> "Split":
        """The split that holds only the examples at `index`."""
        targets = jax.tree.map(lambda a: _Rows(a, index), self.targets)
        return replace(
            self, sources=self.sources[index], labels=self.labels[index],
            targets=targets,
        )  # fmt: skip


class _Rows:
    """Some rows of an array, possibly memory-mapped, read when they are needed.

    Attributes:
      shape: its shape.
      dtype: its type.
    """

    def __init__(self, array: Any, index: Int[np.ndarray, " n"]):
        self._array, self._index = array, np.asarray(index)
        self.shape = (len(self._index), *np.shape(array)[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Int[np.ndarray, " B"]) -> np.ndarray:
        return np.asarray(self._array[self._index[index]])


def _arrays(images: Any) -> list[Any]:
    """The arrays of a tree; what is `Joined` is one."""
    return [images] if isinstance(images, Joined) else jax.tree.leaves(images)


def _is_single(images: Any) -> bool:
    arrays = _arrays(images)
    return len(arrays) == 1 and arrays[0] is images


def image_split(
    images: Any,
    labels: Int[np.ndarray, " N"] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    targets: Any = None,
) -> Split:
    """The split whose examples are these images, one each.

    Args:
      images: [N, H, W, C], or a tree of arrays with N on the first axis, for networks
        of several inputs.
      labels: class index of each.
      class_names: name of each class.
      targets: in place of both, what a network is to return for each image: [N, ...],
        or a tree of arrays. Without labels and targets, networks can only be compared
        with one another.

    Raises:
      InputError: no images, another number of labels or targets, or labels that name
        no class.
    """
    if labels is None:
        if class_names is not None:
            raise InputError("class_names are of labels: give both, or targets alone")
        return _with_targets(images, targets)
    if targets is not None:
        raise InputError("give labels and class_names, or targets")
    labels = as_array("labels", labels)
    structure: Any = jax.tree.structure(images)
    if not (isinstance(images, list) or jax.tree_util.treedef_is_leaf(structure)):
        count = _check_examples(images)
        if labels.shape != (count,):
            raise InputError(f"labels must be [{count}], got {list(labels.shape)}")
    else:
        images = as_array("images", images)
        check_numbers("images", images, images.shape)
        if images.ndim < 2 or labels.shape != images.shape[:1] or not images.size:
            raise InputError(
                "images must be [N, H, W, C] and labels [N], N at least 1; got "
                f"{list(images.shape)} and {list(labels.shape)}"
            )
    names = check_names("class_names", class_names)
    return Split(images, np.arange(len(labels))[:, None], labels, names)


def _with_targets(images: Any, targets: Any) -> Split:
    """A split without classes."""
    n = _check_examples(images)
    for array in jax.tree.leaves(targets):
        check_numbers("targets", array, np.shape(array))
    rows = np.arange(n)[:, None]
    return Split(images, rows, np.zeros(n, np.int64), (), targets)


def _check_examples(images: Any) -> int:
    """How many examples the arrays of a tree hold.

    Raises:
      InputError: they hold none, or different numbers of them.
    """
    arrays = [as_array("images", array) for array in jax.tree.leaves(images)]
    sizes = {array.shape[:1] for array in arrays}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        shapes = [list(array.shape) for array in arrays]
        raise InputError(
            f"images must be arrays [N, ...] of one N, at least 1; got {shapes}"
        )
    for array in arrays:
        check_finite("images", array)
    ((n,),) = sizes
    return int(n)


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
        start += len(_arrays(array)[0])
    joined = jax.tree.map(lambda *parts: Joined(parts), *arrays)
    return Split(
        arrays[0] if len(arrays) == 1 else joined,
        np.concatenate([split.sources + starts[id(split.images)] for split in splits]),
        np.concatenate([split.labels for split in splits]),
        splits[0].class_names,
        jax.tree.map(lambda *parts: Joined(parts), *(s.targets for s in splits)),
    )


class Batch(NamedTuple):
    """Examples from `start` on: `size` of them, then zeros to B."""

    images: Any
    targets: Any
    start: int
    size: int


def batches(
    split: Split, batch_size: int, first: int = 0, end: int | None = None
) -> Iterator[Batch]:
    """The examples from `first` to `end` in order, in batches of one static size."""
    end = len(split) if end is None else end
    for start in range(first, end, batch_size):
        index = np.arange(start, min(start + batch_size, end))
        read = (split.read(index), split.read_targets(index))
        images, targets = pad_rows(read, batch_size)
        yield Batch(images, targets, start, len(index))


def check_classes(split: Split, which: str) -> None:
    """Raises InputError if a class has no example in the split."""
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    if not counts.all():
        missing = [split.class_names[c] for c in np.flatnonzero(counts == 0)]
        raise InputError(f"split '{which}' has no image of class {', '.join(missing)}")
