"""Datasets: CIFAR-10 and MNIST through TFDS, the embedded digits, pairs of digits.

A `Split` holds uint8 images as they are stored; the device scales them. Pairs are
pairs of indices, stacked when a batch is read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Num

from jaxprune import tfds_cache
from jaxprune.errors import InputError, check_choice

DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Split:
    """N labelled examples, each of S source images stacked along the channels.

    Attributes:
      images: M source images, possibly memory-mapped; the library's own are uint8.
      sources: which source images make each example.
      labels: class index of each example.
      class_names: name of each class.
    """

    images: Num[np.ndarray, "M H W C"]
    sources: Int[np.ndarray, "N S"]
    labels: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]

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
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise InputError(
            "images must be [N, H, W, C] and labels [N], N at least 1; got "
            f"{list(images.shape)} and {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise InputError(
            f"labels must lie in 0 .. {len(class_names) - 1}, as there are "
            f"{len(class_names)} class names; got {labels.min()} .. {labels.max()}"
        )
    return Split(images, np.arange(len(labels))[:, None], labels, tuple(class_names))


class Batch(NamedTuple):
    """Examples from `start` on: `size` of them, padded with black images to B."""

    images: Num[np.ndarray, "B H W C"]
    start: int
    size: int


def batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """The examples in order, in batches of one static size."""
    for start in range(0, len(split), batch_size):
        index = np.arange(start, min(start + batch_size, len(split)))
        images = split.read(index)
        padding = [(0, batch_size - len(index))] + [(0, 0)] * (images.ndim - 1)
        yield Batch(np.pad(images, padding), start, len(index))


class Splits(NamedTuple):
    """A dataset's training and test examples."""

    train: Split
    test: Split


def load(
    dataset: str,
    *,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
    source_images: int = 6000,
    train_pairs: int = 60_000,
    test_pairs: int = 10_000,
) -> Splits:
    """Loads a dataset by name.

    Args:
      dataset: one of DATASETS. `*_pair` is pairs of digits: label 1 if both show the
        same digit, same : different = 1 : 9.
      data_dir: folder of prepared TFDS datasets; by default TFDS's own.
      cache_dir: folder of decoded arrays; by default the user's cache folder.
      seed: seed of everything that is drawn for pairs.
      source_images: images of the train split that training pairs are made of.
      train_pairs: number of training pairs.
      test_pairs: number of test pairs; they are made of the test split's images, so
        no image is in both.

    Raises:
      InputError: unknown dataset, or data that is neither here nor to be had.
    """
    check_choice("dataset", dataset, DATASETS)
    base = dataset.removesuffix("_pair")
    if base == "digits":
        splits = _digits(seed)
    else:
        splits = Splits(
            *(
                image_split(*tfds_cache.load(base, split, data_dir, cache_dir))
                for split in ("train", "test")
            )
        )
    if dataset == base:
        return splits
    rng = np.random.default_rng([seed, 1])
    count = min(source_images, len(splits.train))
    chosen = np.sort(rng.choice(len(splits.train), count, replace=False))
    return Splits(
        pair_split(splits.train.select(chosen), train_pairs, rng),
        pair_split(splits.test, test_pairs, rng),
    )


DATASETS = ("cifar10", "mnist", "digits", "mnist_pair", "digits_pair")


def _digits(seed: int) -> Splits:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, resized to 28 x 28."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = np.asarray(digits.images * (255 / 16), np.float32)
    large = jax.image.resize(small, (len(small), 28, 28), "bilinear")
    images = np.clip(np.round(np.asarray(large)), 0, 255).astype(np.uint8)[..., None]
    everything = image_split(images, digits.target, tuple(str(d) for d in range(10)))
    train, test = train_test_split(
        np.arange(len(images)),
        test_size=DIGITS_TEST_SHARE,
        stratify=digits.target,
        random_state=seed,
    )
    return Splits(everything.select(np.sort(train)), everything.select(np.sort(test)))


def pair_split(split: Split, count: int, rng: np.random.Generator) -> Split:
    """Pairs of a split's images: every tenth shows the same digit twice.

    A pair is two different images in a random order; the same pair may be drawn
    twice. Pairs are shuffled.

    Raises:
      InputError: fewer than 10 pairs, or images that cannot form both kinds.
    """
    if count < 10:
        raise InputError(f"1 : 9 pairs need at least 10 pairs, got {count}")
    by_class = np.argsort(split.labels, kind="stable")
    labels = split.labels[by_class]
    size = np.bincount(labels)
    if np.count_nonzero(size) < 2 or (size == 1).any():
        raise InputError(
            "pairs need two images each of at least two digits, got "
            f"{size.tolist()} images of digits 0 .. {len(size) - 1}"
        )
    # Images lie in a circle, class by class: those of another class are the arc that
    # begins where the first image's class ends.
    begin = (np.cumsum(size) - size)[labels]
    size = size[labels]
    same = np.arange(count) < count // 10
    first = rng.integers(len(labels), size=count)
    n, start = size[first], begin[first]
    twin = start + (first - start + rng.integers(1, n)) % n
    other = (start + n + rng.integers(0, len(labels) - n)) % len(labels)
    pairs = by_class[np.stack([first, np.where(same, twin, other)], axis=1)]
    shuffled = rng.permutation(count)
    return Split(
        split.images,
        split.sources[pairs[shuffled], 0],
        same[shuffled].astype(np.int64),
        ("different", "same"),
    )


_SLICE = re.compile(r"(?P<name>\w+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


def choose_split(splits: Splits, which: str) -> Split:
    """A split by name, or a slice of one: `test`, `train[:5000]`, `train[5000:]`.

    Raises:
      InputError: unknown name, not such a slice, or an empty one.
    """
    match = _SLICE.fullmatch(which)
    if not match:
        raise InputError(f"split '{which}' is not of the form test or train[1000:2000]")
    check_choice("split", match["name"], Splits._fields)
    split: Split = getattr(splits, match["name"])
    start, stop = (
        int(match[side] or default)
        for side, default in (("start", 0), ("stop", len(split)))
    )
    chosen = split.select(np.arange(len(split))[start:stop])
    if not len(chosen):
        raise InputError(
            f"split '{which}' is empty: '{match['name']}' has {len(split)}"
        )
    return chosen


def check_classes(split: Split, which: str) -> None:
    """Raises InputError if a class has no example in the split."""
    counts = np.bincount(split.labels, minlength=len(split.class_names))
    if not counts.all():
        missing = [split.class_names[c] for c in np.flatnonzero(counts == 0)]
        raise InputError(f"split '{which}' has no image of class {', '.join(missing)}")
