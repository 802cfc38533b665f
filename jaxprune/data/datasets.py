"""Datasets by name: CIFAR-10 and MNIST through TFDS, the digits, pairs of digits."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from jaxprune._base.errors import InputError, check_choice
from jaxprune.data import slices, tfds
from jaxprune.data.pairs import pair_split
from jaxprune.data.splits import Split, concatenate, image_split

_Parts = list[tuple[str, np.ndarray]]
DIGITS_TEST_SHARE = 0.2


class Splits:
    """A dataset's splits by name, of images of one shape and of the same classes.

    Attributes:
      names: names of the splits.
    """

    def __init__(self, splits: Mapping[str, Split | Callable[[], Split]]):
        """Takes each split, or a function that loads it when it is first read."""
        self._splits = dict(splits)
        self.names = tuple(splits)

    def __getitem__(self, name: str) -> Split:
        """The split of that name.

        Raises:
          InputError: there is none; the message has those that there are.
        """
        check_choice("split", name, self.names)
        split = self._splits[name]
        if not isinstance(split, Split):
            split = self._splits[name] = split()
        return split

    def numbered(self, class_names: Sequence[str]) -> "Splits":
        """The same examples, whose class names are numbers of classes among more."""

        def of(split: Split) -> Split:
            numbers = np.array([int(name) for name in split.class_names])
            names = tuple(class_names)
            return replace(split, labels=numbers[split.labels], class_names=names)

        return Splits({name: of(self[name]) for name in self.names})

    @property
    def first(self) -> Split:
        """The first split: shape, type and class names are those of all."""
        return self[self.names[0]]

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of images, labels and class names of the splits read."""
        read = {n: s for n, s in self._splits.items() if isinstance(s, Split)}
        digest = hashlib.sha256()
        if tuple(read) != ("train", "test"):
            digest.update(repr(tuple(read)).encode())
        for split in read.values():
            arrays = [*jax.tree.leaves(split.images), split.sources, split.labels]
            if split.targets is not None:
                arrays.append(split.read_targets(np.arange(len(split))))
            for array in arrays:
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
    count = min(source_images, len(splits["train"]))
    chosen = np.sort(rng.choice(len(splits["train"]), count, replace=False))
    return Splits(
        {
            "train": pair_split(splits["train"].select(chosen), train_pairs, rng),
            "test": pair_split(splits["test"], test_pairs, rng),
        }
    )


def load_any(
    name: str,
    *,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    seed: int = 0,
) -> Splits:
    """One of DATASETS, or any of TFDS's that has images of one size and labels.

    Raises:
      InputError: there is none of that name, or it is neither here nor to be had.
    """
    if name in DATASETS:
        return load(name, data_dir=data_dir, cache_dir=cache_dir, seed=seed)
    return _of_tfds(name, data_dir, cache_dir)


def _of_tfds(name: str, data_dir: str | None, cache_dir: str | None) -> Splits:
    """Train and test, and the others where they are asked for."""

    def read(split: str) -> Split:
        found = tfds.load(name, split, data_dir, cache_dir)
        try:
            return image_split(*found)
        except InputError as error:
            raise InputError(f"split '{split}' of {name}: {error}") from None

    names = tfds.split_names(name, data_dir, cache_dir)
    return Splits(
        {n: read(n) if n in ("train", "test") else partial(read, n) for n in names}
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
    return Splits(
        {
            "train": everything.select(np.sort(train)),
            "test": everything.select(np.sort(test)),
        }
    )


def choose_split(splits: Splits, which: str) -> Split:
    """The split of an expression: `test`, `train[:5000]`, `train[:10%]+validation`.

    Raises:
      InputError: unknown name, no such expression, or an empty split.
    """
    parts = [(name, index) for name, index in _parse(splits, which) if len(index)]
    if not parts:
        counts = " and ".join(
            f"'{name}' has {len(splits[name])}" for name, _ in _parse(splits, which)
        )
        raise InputError(f"split '{which}' is empty: {counts}")
    return concatenate([splits[name].select(index) for name, index in parts])


def overlap(splits: Splits, one: str, other: str) -> int:
    """How many examples two splits, as `choose_split` takes them, have in common."""
    found, others = (_parse(splits, which) for which in (one, other))
    return sum(
        len(np.intersect1d(_of(name, found), _of(name, others)))
        for name in {name for name, _ in found}
    )


def _of(name: str, parts: _Parts) -> np.ndarray:
    """The indices of one split's examples."""
    return np.concatenate([[], *(index for of, index in parts if of == name)])


def _parse(splits: Splits, which: str) -> _Parts:
    """Each split's name, and the indices of its examples."""
    return [
        (part.name, part.rows(len(splits[part.name]))) for part in slices.parse(which)
    ]
