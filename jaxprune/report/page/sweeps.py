"""The part of a sweep on the page: its curves, and the predictions that change.

Predictions travel as the list of changes, which are few: each row of the K has those
that differ from the row before.

Axes: K masks, N images, C classes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxprune._base.errors import InputError
from jaxprune.results import saved
from jaxprune.results.base import BaseResult
from jaxprune.results.load import AnyResult, load
from jaxprune.results.result import SweepResult
from jaxprune.results.task_result import TaskResult
from jaxprune.results.thumbnails import SHOWN, first_flip

# What sweep.csv says of every K that the page shows, where it does.
COLUMNS = (
    "accuracy", "accuracy_low", "accuracy_high", "change", "change_low", "change_high",
    "mcnemar_p", "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high",
    "balanced_change", "balanced_change_low", "balanced_change_high", "cross_entropy",
    "cross_entropy_low", "cross_entropy_high",
)  # fmt: skip

# Decimals, as in sweep.csv.
_DIGITS = 6
# Classes whose predicted shares are drawn.
SHARES = 10
# Changes of prediction in one sweep: some 8 bytes each.
_CHANGES = 300_000


@dataclass(frozen=True)
class BaseSweep:
    """A sweep and where it is saved.

    Attributes:
      result: the sweep.
      columns: of sweep.csv, by name.
      folder: its folder; None where it is not saved.
    """

    result: AnyResult
    columns: dict[str, np.ndarray]
    folder: Path | None

    @property
    def name(self) -> str:
        """Layer, criterion and fill."""
        about = self.result.about
        words = [about.get(key) for key in ("layer", "criterion", "fill")]
        return " · ".join(str(word) for word in words if word) or "sweep"

    @property
    def rows(self) -> list[int]:
        """Rows of the K that are shown."""
        return [*range(len(self.result.ks))]

    @cached_property
    def marked(self) -> dict[str, int]:
        """The K that one may want to take."""
        drop = self.result.max_drop
        return {
            "largest_safe_k": self.result.largest_safe_k(drop),
            "largest_k_within": self.result.largest_k_within(drop),
        }

    def curve(self) -> dict[str, Any]:
        """The curves of every sweep; JSON-able."""
        return {
            "name": self.name,
            "channels": len(self.result.order),
            "ks": [self.result.ks[row] for row in self.rows],
            "columns": {
                name: np.round(column[self.rows], _DIGITS).tolist()
                for name, column in self.columns.items()
            },
            **self.marked,
            "texts": self._texts(),
        }

    def _texts(self) -> dict[str, str]:
        """Words of the page that do not depend on K."""
        height, width, channels = self.result.mean_feature_map.shape
        losses = self.result.loss
        return {
            "of": f"of {channels:,} channels pruned",
            "first_k": str(self.result.ks[0]),
            "first_loss": "-" if losses is None else f"{losses[0]:.4f}",
            "images": f"{self.result.images:,}",
            "maps": f"{channels:,} channels of {height} x {width}",
        }


@dataclass(frozen=True)
class TaskSweep(BaseSweep):
    """A sweep whose outputs are no classes."""

    result: TaskResult

    def detail(self) -> dict[str, Any]:
        """The details of the sweep in view; JSON-able."""
        result = self.result
        change = result.losses - result.losses[0]
        worst = np.argsort(-change, axis=1, kind="stable")[:, :SHOWN]
        best = np.argsort(change, axis=1, kind="stable")[:, :SHOWN]
        return {
            "order": result.order.tolist(),
            "scores": [float(f"{score:.5g}") for score in result.scores],
            "images": [*range(result.images)],
            "moved": {
                "worse": [self._moved(row, worst[row], 1) for row in self.rows],
                "better": [self._moved(row, best[row], -1) for row in self.rows],
            },
        }

    def _moved(
        self, row: int, images: np.ndarray, sign: int
    ) -> list[tuple[int, float, float]]:
        """Image, loss before and loss now, of those that move in one direction."""
        before, now = self.result.losses[0], self.result.losses[row]
        return [
            (int(i), float(f"{before[i]:.4g}"), float(f"{now[i]:.4g}"))
            for i in images
            if sign * (now[i] - before[i]) > 0
        ]


@dataclass(frozen=True)
class Sweep(BaseSweep):
    """A sweep whose outputs are classes."""

    result: SweepResult

    @cached_property
    def rows(self) -> list[int]:
        """Rows of the K that are shown: all, or fewer where very much changes."""
        predictions, ks = self.result.predictions, self.result.ks
        kept = {0, len(ks) - 1, *(ks.index(k) for k in self.marked.values())}
        rows, step = [*range(len(ks))], 1
        while len(rows) > len(kept) and _changed(predictions[rows]).sum() > _CHANGES:
            step *= 2
            rows = sorted({*range(0, len(ks), step), *kept})
        return rows

    def detail(self) -> dict[str, Any]:
        """The details of the sweep in view; JSON-able."""
        result, classes = self.result, len(self.result.class_names)
        predictions, labels = result.predictions[self.rows], result.labels
        changed = _changed(predictions)
        first = first_flip(predictions == labels)
        images = np.flatnonzero(changed.any(0))
        images = images[np.argsort(first[images], kind="stable")]
        place = np.zeros(len(labels), int)
        place[images] = np.arange(len(images))
        row, image = np.nonzero(changed)
        count = np.bincount(row, minlength=len(changed))
        pairs = labels.astype(int) * classes + predictions[0]
        return {
            "order": result.order.tolist(),
            "scores": [float(f"{score:.5g}") for score in result.scores],
            "class_names": list(result.class_names),
            "of_class": np.bincount(labels, minlength=classes).tolist(),
            "confusion": np.stack(np.unique(pairs, return_counts=True), 1).tolist(),
            "images": images.tolist(),
            "labels": labels[images].tolist(),
            "predicted": predictions[0, images].tolist(),
            "first": first[images].tolist(),
            "changes": {
                "start": [0, *count.cumsum().tolist()],
                "image": place[image].tolist(),
                "before": predictions[row, image].tolist(),
                "predicted": predictions[row + 1, image].tolist(),
            },
            "shares": self._shares(predictions),
        }

    def _shares(self, predictions: np.ndarray) -> dict[str, Any]:
        """Per cent of the images that are predicted as each class, in every row.

        To a tenth; those of a row add up to 100.

        Where there are many classes, of those whose share changes most, and of all
        others as one.
        """
        result, classes = self.result, len(self.result.class_names)
        counts = np.stack([np.bincount(row, minlength=classes) for row in predictions])
        moved = np.abs(counts - counts[0]).max(0)
        few = classes <= SHARES
        most = np.argsort(-moved, kind="stable")[: classes if few else SHARES - 1]
        chosen = np.sort(most)
        truth = np.bincount(result.labels, minlength=classes)
        images = np.stack([truth, *counts])
        drawn = images[:, chosen]
        names = [result.class_names[c] for c in chosen]
        if not few:
            drawn = np.column_stack([drawn, images.sum(1) - drawn.sum(1)])
            names.append("all others")
        at_truth, *rows = _tenths_of_percent(drawn) / 10
        return {
            "names": names,
            "truth": at_truth.tolist(),
            "percent": np.stack(rows, 1).tolist(),
        }


def _tenths_of_percent(counts: Int[np.ndarray, "K C"]) -> Int[np.ndarray, "K C"]:
    """Shares of each row, whole numbers that add up to 1000.

    The largest remainders are rounded up, and as many as it takes: numbers that are
    rounded one by one may add up to 100.1 %.
    """
    tenths, rest = np.divmod(1000 * counts, counts.sum(1, keepdims=True))
    places = np.argsort(np.argsort(-rest, axis=1, kind="stable"), axis=1)
    return tenths + (places < 1000 - tenths.sum(1, keepdims=True))


def find(
    source: Path | AnyResult, needed: bool = True
) -> list[Sweep] | list[TaskSweep]:
    """The sweeps of a run directory, of one sweep's folder, or one that is not saved.

    The first is the one to look at: of all, it prunes the largest share of its channels
    at its largest safe K.

    Args:
      source: a folder, or a result.
      needed: whether there must be one.

    Raises:
      InputError: there is none, or one is damaged.
    """
    if isinstance(source, BaseResult):
        return _alike([(source, source.columns(), None)])
    if (source / "sweep.npz").exists():
        folders = [source]
    else:
        folders = sorted(path.parent for path in source.glob("sweep-*/summary.json"))
    if not folders and needed:
        raise InputError(f"{source} holds no sweep: run jaxprune sweep first")
    found: list[tuple[AnyResult, dict[str, np.ndarray], Path | None]] = []
    for folder in folders:
        result = load(folder)  # raises where sweep.csv is not what it was
        names = COLUMNS if isinstance(result, SweepResult) else [*result.columns()]
        found.append((result, saved.read_columns(folder, names), folder))
    return _alike(found)


def _alike(
    found: list[tuple[AnyResult, dict[str, np.ndarray], Path | None]],
) -> list[Sweep] | list[TaskSweep]:
    """The sweeps, the one to look at first.

    Raises:
      InputError: they are of several tasks.
    """
    of_classes = [
        Sweep(result, _with_change(columns), folder)
        for result, columns, folder in found
        if isinstance(result, SweepResult)
    ]
    of_tasks = [
        TaskSweep(result, columns, folder)
        for result, columns, folder in found
        if isinstance(result, TaskResult)
    ]
    measures = {result.measure for result, *_ in found}
    if len(measures) > 1:
        raise InputError(f"sweeps of several tasks: {', '.join(sorted(measures))}")
    if of_classes:
        return sorted(of_classes, key=_safe_share, reverse=True)
    return sorted(of_tasks, key=_safe_share, reverse=True)


def _with_change(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns and the change of balanced accuracy, of which they hold the ends."""
    balanced = columns["balanced_accuracy"]
    made = {**columns, "balanced_change": balanced - balanced[0]}
    return {name: made[name] for name in COLUMNS if name in made}


def _safe_share(sweep: BaseSweep) -> float:
    return sweep.marked["largest_safe_k"] / len(sweep.result.order)


def _changed(predictions: np.ndarray) -> np.ndarray:
    """Which predictions are others than in the row before, [K - 1, N]."""
    return predictions[1:] != predictions[:-1]
