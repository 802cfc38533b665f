"""The result of a sweep whose outputs are no classes: scores and losses of a task.

Axes: F scores, K masks, N images, P channels, T images that are shown at R masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.results import confidence, saved, thumbnails
from jaxprune.results.base import BaseResult
from jaxprune.results.confidence import Interval
from jaxprune.results.task_figures import ScoreFigures


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TaskResult(BaseResult):
    """Scores of a task with the first k channels of `order` pruned.

    Attributes:
      score_names: names of the scores; the first decides how many channels can go.
      higher_is_better: for each score.
      values: the scores at each k.
      intervals: both ends of their 95 % intervals.
      changes: both ends of the intervals of their changes from the first k.
      limits: how much of the first score may be lost: one-sided 95 % limits.
      losses: of each image at each k.
      select_values: the first score on other images, that K is chosen on; None where it
        is chosen on the images above.
      select_limits: its limits there.
      thumbnail_images: images whose loss pruning moves most, ascending.
      thumbnails: a picture of each of them, grey or in colour.
      shown: those of them that are shown with targets and outputs.
      shown_targets: a picture of each one's target, where there is one to see.
      shown_ks: the k at which outputs are shown.
      shown_outputs: a picture of each one's output at these.
    """

    score_names: tuple[str, ...]
    higher_is_better: Bool[np.ndarray, " F"]
    values: Float[np.ndarray, "F K"]
    intervals: Float[np.ndarray, "F 2 K"]
    changes: Float[np.ndarray, "F 2 K"]
    limits: Float[np.ndarray, " K"]
    losses: Float[np.ndarray, "K N"]
    select_values: Float[np.ndarray, " K"] | None = None
    select_limits: Float[np.ndarray, " K"] | None = None
    thumbnail_images: Int[np.ndarray, " t"] | None = None
    thumbnails: UInt8[np.ndarray, "t h w c"] | None = None
    shown: Int[np.ndarray, " T"] | None = None
    shown_targets: UInt8[np.ndarray, "T y x b"] | None = None
    shown_ks: Int[np.ndarray, " R"] | None = None
    shown_outputs: UInt8[np.ndarray, "T R y x e"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        f, k = len(arguments.check_names("score_names", self.score_names)), len(self.ks)
        for name, shape in (
            ("values", (f, k)),
            ("intervals", (f, 2, k)),
            ("changes", (f, 2, k)),
            ("limits", (k,)),
            ("losses", (k, self.images)),
        ):
            found = np.shape(getattr(self, name))
            if found != shape:
                raise InputError(f"{name} must be of shape {shape}, got {found}")
        if np.shape(self.higher_is_better) != (f,):
            raise InputError(f"higher_is_better must be one for each of {f} scores")
        if self.thumbnails is not None:
            thumbnails.check(self.thumbnail_images, self.thumbnails, self.images)

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.about.get("task", "task"))

    @property
    def images(self) -> int:
        """Number of images."""
        return self.losses.shape[1]

    @property
    def measure(self) -> str:
        """The name of the first score."""
        return self.score_names[0]

    @property
    def curve(self) -> Float[np.ndarray, " K"]:
        """The first score at each k."""
        return self.values[0]

    @property
    def curve_interval(self) -> Interval:
        """Its 95 % intervals."""
        return Interval(*self.intervals[0])

    @property
    def loss(self) -> Float[np.ndarray, " K"]:
        """Mean loss at each k."""
        return self.losses.mean(1, dtype=np.float64)

    @property
    def loss_interval(self) -> Interval:
        """Normal 95 % intervals of it."""
        std = self.losses.std(1, dtype=np.float64)
        return confidence.loss_interval(self.loss, std, self.images)

    @property
    def drop_limits(self) -> Float[np.ndarray, " K"]:
        """Limits of the first score's loss, on the images that K is chosen on."""
        return self.limits if self.select_limits is None else self.select_limits

    @property
    def chosen_elsewhere(self) -> bool:
        """Whether K is chosen on other images than those reported."""
        return self.select_limits is not None

    @property
    def remarks(self) -> list[str]:
        """Remarks that whoever reads the result should bear in mind."""
        return self.overlaps

    def largest_k_within(self, drop: float) -> int:
        """Largest k that loses at most `drop` of the first score, in its units.

        As measured, so chance has a part in it: see `largest_safe_k`.
        """
        arguments.check_number("drop", drop, 0.0, np.inf)
        values = self.curve if self.select_values is None else self.select_values
        sign = 1 if self.higher_is_better[0] else -1
        lost = sign * (values[0] - values)
        return int(max(np.asarray(self.ks)[lost <= drop + 1e-10]))

    def largest_safe_k(self, drop: float | None = None) -> int:
        """Largest k such that it and all before it lose less than `drop`.

        With 95 % confidence for the choice as a whole, see
        `confidence.largest_safe_k`.

        Args:
          drop: of the first score, in its units; by default `max_drop`.
        """
        drop = self.max_drop if drop is None else drop
        arguments.check_number("drop", drop, 0.0, np.inf)
        return self.ks[int(confidence.passed(self.drop_limits[1:], drop))]

    def chosen_on(self, other: "TaskResult") -> "TaskResult":
        """This result, with K chosen on the images of another sweep.

        Raises:
          InputError: the other sweep has other k, scores, or another order.
        """
        arguments.check_kind("the other", other, TaskResult, "a TaskResult")
        same = other.ks == self.ks and other.score_names == self.score_names
        if not same or not np.array_equal(other.order, self.order):
            raise InputError("K is chosen on a sweep of the same k in the same order")
        return replace(self, select_values=other.curve, select_limits=other.limits)

    def columns(self) -> dict[str, Float[np.ndarray, " K"]]:
        """The figures at each k, by the names that sweep.csv gives them."""
        columns = {"loss": self.loss, **_ends("loss", self.loss_interval)}
        for i, name in enumerate(self.score_names):
            columns |= {name: self.values[i], **_ends(name, self.intervals[i])}
            change = f"{name}_change"
            columns[change] = self.values[i] - self.values[i, 0]
            columns |= _ends(change, self.changes[i])
        return columns

    def summary(self) -> dict[str, Any]:
        """`about` and the figures that most readers look for."""
        return {
            **self.about,
            "score_names": list(self.score_names),
            "n_images": self.images,
            "n_channels": len(self.order),
            "baseline": dict(
                zip(self.score_names, self.values[:, 0].tolist(), strict=True)
            ),
            "chosen": self.at(self.largest_safe_k()),
            "largest_safe_k": self.largest_safe_k(),
            "largest_k_within": self.largest_k_within(self.max_drop),
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    @classmethod
    def load(cls, folder: Path | str) -> "TaskResult":
        """Reads what `save` wrote.

        Raises:
          InputError: no complete sweep is there, or a file is damaged.
        """
        return cls(**saved.read(Path(folder), "score_names"))


def _ends(name: str, interval: Any) -> dict[str, np.ndarray]:
    """Columns of an interval's two ends."""
    return {
        f"{name}_{end}": x for end, x in zip(("low", "high"), interval, strict=True)
    }


_ARRAYS = tuple(
    field.name
    for field in fields(TaskResult)
    if field.name not in ("ks", "about", "score_names")
)


def figures_of(
    figures: Mapping[str, ScoreFigures], higher_is_better: Sequence[bool]
) -> dict[str, Any]:
    """The fields that hold scores, from their figures by name."""
    made = [*figures.values()]
    return {
        "score_names": tuple(figures),
        "higher_is_better": np.array(higher_is_better, bool),
        "values": np.stack([each.value for each in made]),
        "intervals": np.stack([np.stack(each.interval) for each in made]),
        "changes": np.stack([np.stack(each.change) for each in made]),
        "limits": made[0].drop_limit,
    }
