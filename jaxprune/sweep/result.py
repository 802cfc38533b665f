"""A sweep's result: what was measured, as arrays, and the folder it is saved in.

Axes: K masks, N images, H x W positions, P channels, C classes.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from typing_extensions import TypedDict

from jaxprune import arguments, schema, sealed
from jaxprune.errors import InputError
from jaxprune.files import replacing_folder
from jaxprune.ranking.order import check_ks, check_order, prefix_masks
from jaxprune.sweep import metrics


@dataclass(frozen=True)
class SweepResult:
    """Predictions of the network with the first k channels of `order` pruned.

    Attributes:
      ks: numbers of pruned channels, ascending; the first is the baseline.
      order: channels in the order in which they are pruned.
      scores: score of every channel, by channel index.
      predictions: predicted class for each k and image.
      labels: true class of each image.
      mean_feature_map: mean over the ranking images of the layer's feature map; a
        layer without positions has H = W = 1.
      class_names: name of each class.
      about: JSON-able facts of how it was made.

    Raises:
      InputError: what these say of one another does not fit.
    """

    ks: tuple[int, ...]
    order: Int[np.ndarray, " P"]
    scores: Float[np.ndarray, " P"]
    predictions: Integer[np.ndarray, "K N"]
    labels: Int[np.ndarray, " N"]
    mean_feature_map: Float[np.ndarray, "H W P"]
    class_names: tuple[str, ...]
    about: dict[str, Any]

    def __post_init__(self) -> None:
        p, classes = len(self.order), len(self.class_names)
        check_ks(self.ks, p)
        check_order(self.order, p)
        arguments.check_numbers("scores", self.scores, (p,))
        arguments.check_labels("labels", self.labels, classes)
        arguments.check_labels("predictions", self.predictions, classes)
        if self.predictions.shape != (len(self.ks), len(self.labels)):
            raise InputError(
                f"predictions must be {len(self.ks)} rows of {len(self.labels)}, one "
                f"for each K, got shape {self.predictions.shape}"
            )
        maps = (*self.mean_feature_map.shape[:2], p)
        arguments.check_numbers("mean_feature_map", self.mean_feature_map, maps)
        check_about(self.about)

    @property
    def title(self) -> str:
        """What was swept, on one line."""
        names = {key: self.about.get(key) for key in ("layer", "criterion", "fill")}
        known = [f"{key} {name}" for key, name in names.items() if name]
        return ", ".join([*filter(None, [self.about.get("model")]), *known])

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

    @property
    def channel_means(self) -> Float[np.ndarray, " P"]:
        """Mean of every channel over the ranking images and positions."""
        return self.mean_feature_map.mean((0, 1))

    def keep(self, k: int) -> Bool[np.ndarray, " P"]:
        """The mask with the first k channels of the order pruned, k in 0 .. P-1."""
        return prefix_masks(self.order, [k])[0]

    @property
    def is_balanced(self) -> bool:
        """Whether the largest class has less than 1.5 times the smallest's images."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return bool(counts.max() < 1.5 * counts.min())

    def largest_k_within(self, drop: float) -> int:
        """Largest k that loses at most `drop` of accuracy, a share in [0, 1]."""
        return metrics.largest_k_within(self.ks, self.accuracy, drop)

    def summary(self) -> dict[str, Any]:
        """`about` and the figures that most readers look for."""
        balanced = self.balanced_accuracy
        return {
            **self.about,
            "class_names": list(self.class_names),
            "n_images": len(self.labels),
            "n_channels": len(self.order),
            "baseline_accuracy": float(self.accuracy[0]),
            "baseline_balanced_accuracy": float(balanced[0]),
            "largest_k_within_1_point": self.largest_k_within(0.01),
            "largest_k_within_5_points": self.largest_k_within(0.05),
            "largest_k_within_1_point_balanced": metrics.largest_k_within(
                self.ks, balanced, 0.01
            ),
            "largest_k_within_5_points_balanced": metrics.largest_k_within(
                self.ks, balanced, 0.05
            ),
        }

    def save(self, folder: Path) -> None:
        """Writes sweep.npz, sweep.csv and summary.json, with the sums of the others.

        A sweep that is there is replaced as a whole, its pictures included.

        Raises:
          InputError: the folder holds something else.
        """
        check_target(folder)
        with replacing_folder(folder) as new:
            np.savez_compressed(
                new / "sweep.npz",
                order=self.order,
                scores=self.scores,
                predictions=self.predictions,
                labels=self.labels,
                mean_feature_map=self.mean_feature_map,
            )
            with open(new / "sweep.csv", "w") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(_COLUMNS)
                for row, k in enumerate(self.ks):
                    last = self.order[k - 1] if k else None
                    score = "" if last is None else repr(float(self.scores[last]))
                    figures = (self.accuracy[row], self.balanced_accuracy[row])
                    rows.writerow([k, last, score, *(f"{x:.6f}" for x in figures)])
            sealed.write(new, "summary.json", self.summary())

    @classmethod
    def load(cls, folder: Path) -> "SweepResult":
        """Reads what `save` wrote.

        Raises:
          InputError: no complete sweep is there, or a file is damaged.
        """
        if not (folder / "summary.json").is_file():
            raise InputError(f"{folder} holds no complete sweep (no summary.json)")
        try:
            summary: Any = sealed.read(folder, "summary.json", _Summary, _FILES[:2])
            with open(folder / "sweep.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            with (
                open(folder / "sweep.npz", "rb") as npz,
                np.load(npz, allow_pickle=False) as arrays,
            ):
                return cls(
                    ks=tuple(int(row["k"]) for row in rows),
                    class_names=summary["class_names"],
                    about={k: v for k, v in summary.items() if k not in _DERIVED},
                    **arrays,
                )
        except Exception as error:
            raise InputError(
                f"the sweep in {folder} is damaged ({error}): run the sweep again"
            ) from error


@schema.and_others
class _Summary(TypedDict):
    """What summary.json must hold, and what may become part of a file's name."""

    class_names: tuple[str, ...]
    layer: NotRequired[schema.Name]
    criterion: NotRequired[schema.Word]
    fill: NotRequired[schema.Word]


def check_about(about: Mapping[str, Any]) -> None:
    """Checks facts of how a sweep was made, before it is.

    Raises:
      InputError: they are not JSON-able, name what has another place in the result, or
        give a layer, criterion or fill that cannot be part of a file's name.
    """
    schema.check_json("about", about)
    if taken := sorted(set(about) & set(_DERIVED)):
        raise InputError(f"about may not hold {', '.join(taken)}: the result does")
    schema.check({"class_names": (), **about}, _Summary, "about")


def check_target(folder: Path) -> None:
    """Raises InputError if a sweep saved there would take something's place."""
    if folder.exists():
        others = (p for p in folder.iterdir() if p.name not in _FILES)
        other = next((p for p in others if p.suffix != ".png"), None)
        if other is not None:
            raise InputError(f"{other} is no part of a sweep: give another folder")


_COLUMNS = ("k", "pruned_channel", "score", "accuracy", "balanced_accuracy")
_FILES = ("sweep.npz", "sweep.csv", "summary.json")
_DERIVED = (
    "files",
    "sha256",
    "class_names",
    "n_images",
    "n_channels",
    "baseline_accuracy",
    "baseline_balanced_accuracy",
    "largest_k_within_1_point",
    "largest_k_within_5_points",
    "largest_k_within_1_point_balanced",
    "largest_k_within_5_points_balanced",
)
