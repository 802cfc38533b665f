"""A sweep's result: what was measured, as arrays, and the folder it is saved in.

Axes: K masks, N images, H x W positions, P channels, C classes.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.results import confidence, metrics, saved, thumbnails
from jaxprune.results.base import BaseResult


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SweepResult(BaseResult):
    """Predicted classes with the first k channels of `order` pruned.

    Attributes:
      predictions: predicted class for each k and image.
      labels: true class of each image.
      class_names: name of each class.
      in_top: whether the true class is among the five with the largest logits; None
        where that was not counted.
      cross_entropy: mean over the images at each k, in nats; None where predictions
        alone are known.
      cross_entropy_std: their standard deviation at each k, in nats; None as above.
      select_predictions: for other images, that K is chosen on; None where it is
        chosen on the images above.
      select_labels: true class of each of them.
      thumbnail_images: images that pruning loses or wins, ascending; see
        `jaxprune.results.thumbnails`.
      thumbnails: a picture of each of them, grey or in colour.

    Raises:
      InputError: what these say of one another does not fit.
    """

    predictions: Integer[np.ndarray, "K N"]
    labels: Int[np.ndarray, " N"]
    class_names: tuple[str, ...]
    in_top: Bool[np.ndarray, "K N"] | None = None
    cross_entropy: Float[np.ndarray, " K"] | None = None
    cross_entropy_std: Float[np.ndarray, " K"] | None = None
    select_predictions: Integer[np.ndarray, "K S"] | None = None
    select_labels: Int[np.ndarray, " S"] | None = None
    thumbnail_images: Int[np.ndarray, " T"] | None = None
    thumbnails: UInt8[np.ndarray, "T h w c"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        classes = len(self.class_names)
        arguments.check_labels("labels", self.labels, classes)
        arguments.check_labels("predictions", self.predictions, classes)
        self._check_rows("predictions", self.predictions, self.labels)
        if self.in_top is not None:
            self._check_rows("in_top", self.in_top, self.labels)
        for name in ("cross_entropy", "cross_entropy_std"):
            values = getattr(self, name)
            if values is not None:
                arguments.check_numbers(name, values, (len(self.ks),), lowest=0.0)
        if self.select_predictions is not None:
            labels, predictions = self.select_labels, self.select_predictions
            arguments.check_labels("select_labels", labels, classes)
            arguments.check_labels("select_predictions", predictions, classes)
            self._check_rows("select_predictions", predictions, labels)
        if self.thumbnails is not None:
            thumbnails.check(self.thumbnail_images, self.thumbnails, len(self.labels))

    def _check_rows(self, name: str, predictions: Any, labels: Any) -> None:
        if predictions.shape != (len(self.ks), len(labels)):
            raise InputError(
                f"{name} must be {len(self.ks)} rows of {len(labels)}, one for each K, "
                f"got shape {predictions.shape}"
            )

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def measure(self) -> str:
        """The name of the score that decides how many channels can go."""
        return "accuracy"

    @property
    def curve(self) -> Float[np.ndarray, " K"]:
        """Accuracy at each k."""
        return self.accuracy

    @property
    def curve_interval(self) -> confidence.Interval:
        """Wilson's intervals of it."""
        return self.figures.accuracy

    @property
    def loss(self) -> Float[np.ndarray, " K"] | None:
        """Cross-entropy at each k."""
        return self.cross_entropy

    @property
    def loss_interval(self) -> confidence.Interval | None:
        """95 % intervals of it."""
        return self.cross_entropy_interval

    @property
    def drop_limits(self) -> Float[np.ndarray, " K"]:
        """Tango's limits, on the images that K is chosen on."""
        return confidence.largest_drop(confidence.discordant(self._chooser.right))

    @property
    def chosen_elsewhere(self) -> bool:
        """Whether K is chosen on other images than those reported."""
        return self._chooser is not self

    @cached_property
    def confusion(self) -> Int[np.ndarray, "K C C"]:
        """Counts of images by [k, true class, predicted class]."""
        return metrics.confusion(self.predictions, self.labels, len(self.class_names))

    @cached_property
    def accuracy(self) -> Float[np.ndarray, " K"]:
        """Share of images predicted right at each k, in [0, 1]."""
        return metrics.accuracy(self.confusion)

    @cached_property
    def balanced_accuracy(self) -> Float[np.ndarray, " K"]:
        """Mean over classes of the share predicted right at each k, in [0, 1]."""
        return metrics.balanced_accuracy(self.confusion)

    @cached_property
    def top5_accuracy(self) -> Float[np.ndarray, " K"] | None:
        """Share of images whose class is among the five with the largest logits."""
        return None if self.in_top is None else self.in_top.mean(1)

    @cached_property
    def present(self) -> Int[np.ndarray, " c"]:
        """The classes that have images."""
        return np.unique(self.labels)

    @property
    def is_balanced(self) -> bool:
        """Whether the largest class has less than 1.5 times the smallest's images."""
        counts = np.bincount(self.labels)[self.present]
        return bool(counts.max() < 1.5 * counts.min())

    @cached_property
    def right(self) -> Bool[np.ndarray, "K N"]:
        """Whether each image is predicted right at each k."""
        return self.predictions == self.labels

    @cached_property
    def figures(self) -> confidence.Figures:
        """Intervals of what is measured at each k, and of its change from the first."""
        return confidence.figures(self.right, self.labels, len(self.class_names))

    @property
    def cross_entropy_interval(self) -> confidence.Interval | None:
        """Of the mean at each k; None where the standard deviation was not kept."""
        mean, std = self.cross_entropy, self.cross_entropy_std
        if mean is None or std is None:
            return None
        return confidence.loss_interval(mean, std, len(self.labels))

    def chosen_on(self, other: "SweepResult") -> "SweepResult":
        """This result, with K chosen on the images of another sweep.

        Raises:
          InputError: the other sweep has other k, or prunes in another order.
        """
        arguments.check_kind("the other", other, SweepResult, "a SweepResult")
        if other.ks != self.ks or not np.array_equal(other.order, self.order):
            raise InputError("K is chosen on a sweep of the same k in the same order")
        return replace(
            self, select_predictions=other.predictions, select_labels=other.labels
        )

    @cached_property
    def _chooser(self) -> "SweepResult":
        """The result on the images that K is chosen on."""
        if self.select_predictions is None or self.select_labels is None:
            return self
        return replace(
            self, predictions=self.select_predictions, labels=self.select_labels,
            select_predictions=None, select_labels=None, thumbnails=None,
            in_top=None,
        )  # fmt: skip

    def largest_k_within(self, drop: float) -> int:
        """Largest k that loses at most `drop` of accuracy, a share in [0, 1].

        As measured, so chance has a part in it: see `largest_safe_k`.
        """
        return metrics.largest_k_within(self.ks, self._chooser.accuracy, drop)

    def largest_safe_k(self, drop: float = 0.01) -> int:
        """Largest k such that it and all before it lose less than `drop` of accuracy.

        With 95 % confidence for the choice as a whole, see
        `confidence.largest_safe_k`.

        Args:
          drop: a share in [0, 1]; by default one point.
        """
        counts = confidence.discordant(self._chooser.right)
        return confidence.largest_safe_k(self.ks, counts, drop)

    @property
    def remarks(self) -> list[str]:
        """Remarks that whoever reads the result should bear in mind."""
        classes = len(self.class_names)
        balanced = self.balanced_accuracy[0]
        if balanced > 1 / len(self.present):
            return self.overlaps
        return [
            *self.overlaps,
            f"the whole network is no better than a guess, balanced accuracy "
            f"{balanced:.3f} with {classes} classes: are pixels scaled, and classes in "
            "order, as in its training?",
        ]

    def columns(self) -> dict[str, Float[np.ndarray, " K"]]:
        """The figures at each k, by the names that sweep.csv gives them."""
        made, recalls = self.figures, self.figures.recalls
        columns = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
        }
        if self.cross_entropy is not None:
            columns["cross_entropy"] = self.cross_entropy
        if (interval := self.cross_entropy_interval) is not None:
            columns |= _ends("cross_entropy", interval)
        columns |= _ends("accuracy", made.accuracy)
        if self.top5_accuracy is not None:
            columns["top5_accuracy"] = self.top5_accuracy
        columns["change"] = self.accuracy - self.accuracy[0]
        columns |= _ends("change", made.change)
        columns["mcnemar_p"] = made.mcnemar
        columns |= _ends("balanced_accuracy", recalls.balanced)
        columns |= _ends("balanced_change", recalls.balanced_change)
        recall = metrics.recall(self.confusion)
        for c in self.present.tolist():
            name = self.class_names[c]
            columns[f"recall_{name}"] = recall[:, c]
            columns |= _ends(f"recall_{name}", recalls.recall, c)
            columns |= _ends(f"recall_change_{name}", recalls.recall_change, c)
        return columns

    def summary(self) -> dict[str, Any]:
        """`about` and the figures that most readers look for."""
        summary = {
            **self.about,
            "class_names": list(self.class_names),
            "n_images": len(self.labels),
            "n_channels": len(self.order),
            "baseline_accuracy": float(self.accuracy[0]),
            "baseline_balanced_accuracy": float(self.balanced_accuracy[0]),
            "chosen": self.at(self.largest_safe_k(self.max_drop)),
        }
        for points, drop in (("1_point", 0.01), ("5_points", 0.05)):
            summary |= {
                f"largest_safe_k_within_{points}": self.largest_safe_k(drop),
                f"largest_k_within_{points}": self.largest_k_within(drop),
                f"largest_k_within_{points}_balanced": metrics.largest_k_within(
                    self.ks, self._chooser.balanced_accuracy, drop
                ),
            }
        return summary

    def _written(self, row: int) -> dict[str, str]:
        counts = confidence.discordant(self.right[[0, row]])
        lost, won = int(counts.lost[1]), int(counts.won[1])
        p = confidence.mcnemar_in_words(lost, won)
        return super()._written(row) | {"mcnemar_p": p}

    def _arrays(self) -> dict[str, np.ndarray]:
        names = (*_ARRAYS, *(n for n in _MAYBE if getattr(self, n) is not None))
        return {name: getattr(self, name) for name in names}

    @classmethod
    def load(cls, folder: Path | str) -> "SweepResult":
        """Reads what `save` wrote.

        Raises:
          InputError: no complete sweep is there, or a file is damaged.
        """
        return cls(**saved.read(Path(folder), "class_names"))


def _ends(
    name: str, interval: confidence.Interval, c: int | None = None
) -> dict[str, np.ndarray]:
    """Columns of an interval's ends; of class `c`'s where it has one for each class."""
    ends = zip(("low", "high"), interval, strict=True)
    return {f"{name}_{end}": x if c is None else x[:, c] for end, x in ends}


_ARRAYS = ("order", "scores", "predictions", "labels", "mean_feature_map")
_MAYBE = tuple(field.name for field in fields(SweepResult) if field.default is None)
