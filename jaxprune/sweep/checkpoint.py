"""Results of a sweep under way, kept so that it can go on where it stopped.

Every few seconds a journal of its own takes the images that were finished since the
last one. Whatever is of something else, or damaged, is computed again.

Axes: N images, n images of a file, P channels, K masks.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxprune._base import manifest, processes, schema
from jaxprune._base.files import remove
from jaxprune._base.journal import Journal
from jaxprune.data.splits import Batch, Split
from jaxprune.evaluation.program import Plan
from jaxprune.sweep.activations import TappedLayer

# Between two files.
_SECONDS = 5.0
# What the names of values begin with in a file.
_VALUE = "value "
# How far a fill may be from that of another run: one of other devices differs in
# rounding, one of other images by far more.
_CLOSE = 1e-3


@dataclass(frozen=True)
class SweepCheckpoint:
    """Where finished images of sweeps are kept.

    Attributes:
      folder: the folder of their files; the caller removes it when the sweep is saved.
      facts: JSON-able facts that decide results beyond layer, variables, images,
        order and fill, such as the network's function.
      name: tells the sweeps in the folder apart.
    """

    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    name: str = "sweep"

    def __post_init__(self) -> None:
        schema.check_json("facts", self.facts)


class Finished(NamedTuple):
    """The results of the images from `first` to `end`.

    Values are [K, n, ...], see `Task.kept`; losses are sums, see `exact_sums`.
    """

    first: int
    end: int
    values: dict[str, np.ndarray]
    losses: Float[np.ndarray, "2 K"]
    evaluated: int


def exact_sums(losses: Float[np.ndarray, "K n"]) -> Float[np.ndarray, "2 K"]:
    """Sums over images of losses and of their squares, the same in any grouping.

    Each is rounded to a multiple of 2^-24, or of 2^-20 where it is a square, and sums
    below 2^29 or 2^33 of those are exact in float64.
    """
    wide = losses.astype(np.float64)
    return np.stack([_rounded(wide, 24).sum(1), _rounded(wide * wide, 20).sum(1)])


def _rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """To multiples of 2^-bits."""
    return np.ldexp(np.rint(np.ldexp(values, bits)), -bits)


class SweepCheckpointer:
    """One sweep's files, of this process's images; a context that ends with the last.

    Images are counted over all processes.
    """

    def __init__(self, kept: SweepCheckpoint, tapped: TappedLayer, plan: Plan):
        """Finds out what decides the predictions."""
        self._folder, self._name = kept.folder, kept.name
        self._split = tapped.split
        own = processes.own(len(tapped.split))
        self._first, self._end = int(own[0]), int(own[-1]) + 1
        self._decisive = manifest.digest(
            {
                "facts": dict(kept.facts),
                "layer": tapped.name,
                "images": len(tapped.split),
                "variables": tapped.fingerprint,
                "order": plan.order.tolist(),
                "ks": list(plan.ks),
                "fill": plan.fill.name,
                "task": tapped.task.name,
            }
        )
        self._numbers = {
            name: np.asarray(array, np.float64)
            for name, array in plan.fill.numbers.items()
        }
        self._since = time.monotonic()
        self._waiting: list[Finished] = []

    def __enter__(self) -> "SweepCheckpointer":
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def finished(self) -> Iterator[Finished]:
        """The results that earlier runs have left, of each image once."""
        next_image = self._first
        paths = self._folder.glob(f"{self._name}-*-*.npz")
        for path in sorted(paths, key=lambda path: _range(path, self._name)):
            found = self._read(path)
            if found is None:
                remove(path)
            elif next_image <= found.first and found.end <= self._end:
                next_image = found.end
                yield found._replace(
                    first=found.first - self._first, end=found.end - self._first
                )

    def add(
        self,
        batch: Batch,
        values: dict[str, np.ndarray],
        losses: np.ndarray,
        evaluated: int,
    ) -> None:
        """Keeps a batch; writes it when the time has come.

        Args:
          batch: images that follow those of the last call, or not.
          values: of them.
          losses: their sums.
          evaluated: number of pairs.
        """
        first = self._first + batch.start
        if self._waiting and self._waiting[-1].end != first:
            self._write()
        self._waiting.append(
            Finished(first, first + batch.size, values, losses, evaluated)
        )
        if time.monotonic() - self._since >= _SECONDS:
            self._write()

    def _write(self) -> None:
        self._since = time.monotonic()
        if not self._waiting:
            return
        first, end = self._waiting[0].first, self._waiting[-1].end
        values = {
            _VALUE + name: np.concatenate([w.values[name] for w in self._waiting], 1)
            for name in self._waiting[0].values
        }
        arrays = {
            **values,
            "losses": np.sum([w.losses for w in self._waiting], axis=0),
            "evaluated": sum(w.evaluated for w in self._waiting),
        }
        self._journal(first, end).keep(arrays | self._numbers)
        self._waiting = []

    def _journal(self, first: int, end: int) -> Journal:
        """Of the images from `first` to `end`."""
        images = _sum_of(self._split, first, end)
        return Journal(
            self._folder / f"{self._name}-{first}-{end}.npz",
            {"sweep": self._decisive, "images": images},
        )

    def _read(self, path: Path) -> Finished | None:
        """None where it is of another sweep, or damaged."""
        first, end = _range(path, self._name)
        if not 0 <= first < end <= len(self._split):
            return None
        found = self._journal(first, end).recover()
        same = bool(found) and all(
            name in found and _close(found[name], now)
            for name, now in self._numbers.items()
        )
        if not same:
            return None
        values = {
            name.removeprefix(_VALUE): array
            for name, array in found.items()
            if name.startswith(_VALUE)
        }
        evaluated = int(found["evaluated"])
        return Finished(first, end, values, found["losses"], evaluated)


def _range(path: Path, name: str) -> tuple[int, int]:
    """The images of a file; none where its name does not tell."""
    words = path.stem.removeprefix(f"{name}-").split("-")
    whole = len(words) == 2 and all(word.isdecimal() for word in words)
    return (int(words[0]), int(words[1])) if whole else (-1, -1)


def _close(before: np.ndarray, now: np.ndarray) -> bool:
    spread = float(np.abs(now).max(initial=0.0))
    return before.shape == now.shape and np.allclose(
        before, now, rtol=_CLOSE, atol=_CLOSE * 0.1 * spread
    )


def _sum_of(split: Split, first: int, end: int) -> str:
    """SHA-256 of images and targets."""
    digest = hashlib.sha256()
    for start in range(first, end, 1024):
        index = np.arange(start, min(start + 1024, end))
        for array in jax.tree.leaves((split.read_targets(index), split.read(index))):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
