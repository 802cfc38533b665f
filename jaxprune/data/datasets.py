"""Datasets by name: CIFAR-10 and MNIST through TFDS, the digits, pairs of digits."""

import hashlib
import re
from typing import NamedTuple

import jax
import numpy as np

from jaxprune._base.errors import InputError, check_choice
from jaxprune.data import tfds
from jaxprune.data.pairs import pair_split
from jaxprune.data.splits import Split, image_split

DIGITS_TEST_SHARE = 0.2


class Splits(NamedTuple):
    """A dataset's training and test examples."""

    train: Split
    test: Split

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all images, labels and class names."""
        digest = hashlib.sha256()
        for split in self:
            for array in (split.images, split.sources, split.labels):
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
            digest.update(repr(split.class_names).encode())
        return digest.hexdigest()


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
    splits = _digits(seed) if base == "digits" else _of_tfds(base, data_dir, cache_dir)
    if dataset == base:
        return splits
    rng = np.random.default_rng([seed, 1])
    count = min(source_images, len(splits.train))
    chosen = np.sort(rng.choice(len(splits.train), count, replace=False))
    return Splits(
        pair_split(splits.train.select(chosen), train_pairs, rng),
        pair_split(splits.test, test_pairs, rng),
    )


def load_any(
    name: str,
    *,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> Splits:
    """One of DATASETS, or any of TFDS's that has images, labels, train and test.

    Raises:
      InputError: there is none of that name, or it is neither here nor to be had.
    """
    if name in DATASETS:
        return load(name, data_dir=data_dir, cache_dir=cache_dir, seed=seed)
    return _of_tfds(name, data_dir, cache_dir)


def _of_tfds(name: str, data_dir: str | None, cache_dir: str | None) -> Splits:
    train, test = (
        image_split(*tfds.load(name, split, data_dir, cache_dir))
        for split in ("train", "test")
    )
    return Splits(train, test)


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


_SLICE = re.compile(r"(?P<name>\w+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")


def choose_split(splits: Splits, which: str) -> Split:
    """A split by name, or a slice of one: `test`, `train[:5000]`, `train[5000:]`.

    Raises:
      InputError: unknown name, not such a slice, or an empty one.
    """
    name, index = _parse(splits, which)
    split: Split = getattr(splits, name)
    if not len(index):
        raise InputError(f"split '{which}' is empty: '{name}' has {len(split)}")
    return split.select(index)


def overlap(splits: Splits, one: str, other: str) -> int:
    """How many examples two splits, as `choose_split` takes them, have in common."""
    (name, index), (other_name, other_index) = (
        _parse(splits, which) for which in (one, other)
    )
    return len(np.intersect1d(index, other_index)) if name == other_name else 0


def _parse(splits: Splits, which: str) -> tuple[str, np.ndarray]:
    """The split's name, and the indices of its examples."""
    match = _SLICE.fullmatch(which)
    if not match:
        raise InputError(f"split '{which}' is not of the form test or train[1000:2000]")
    check_choice("split", match["name"], Splits._fields)
    count = len(getattr(splits, match["name"]))
    start, stop = (
        int(match[side] or default) for side, default in (("start", 0), ("stop", count))
    )
    return match["name"], np.arange(count)[start:stop]
