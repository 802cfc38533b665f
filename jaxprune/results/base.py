"""What the results of all sweeps have, whatever the network's outputs are for.

Axes: K masks, H x W positions, P channels.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.ranking.order import check_ks, check_order, prefix_masks
from jaxprune.results import saved
from jaxprune.results.confidence import Interval, points


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseResult:
    """A network with the first k channels of `order` pruned, for several k.

    Attributes:
      ks: numbers of pruned channels, ascending; the first is the baseline.
      order: channels in the order in which they are pruned.
      scores: score of every channel, by channel index.
      mean_feature_map: mean over the ranking images of the layer's feature map; a
        layer without positions has H = W = 1.
      about: JSON-able facts of how it was made.
    """

    ks: tuple[int, ...]
    order: Int[np.ndarray, " P"]
    scores: Float[np.ndarray, " P"]
    mean_feature_map: Float[np.ndarray, "H W P"]
    about: dict[str, Any]

    def __post_init__(self) -> None:
        p = len(self.order)
        check_ks(self.ks, p)
        check_order(self.order, p)
        arguments.check_numbers("scores", self.scores, (p,))
        maps = (*self.mean_feature_map.shape[:2], p)
        arguments.check_numbers("mean_feature_map", self.mean_feature_map, maps)
        saved.check_about(self.about)

    def __repr__(self) -> str:
        title = f"{self.title}; " if self.title else ""
        return f"{type(self).__name__}({title}{len(self.ks)} K, {self.images} images)"

    @property
    @abstractmethod
    def images(self) -> int:
        """Number of images."""

    @property
    @abstractmethod
    def measure(self) -> str:
        """The name of the score that decides how many channels can go."""

    @property
    @abstractmethod
    def curve(self) -> Float[np.ndarray, " K"]:
        """That score at each k."""

    @property
    @abstractmethod
    def curve_interval(self) -> Interval:
        """95 % intervals of the curve."""

    @property
    @abstractmethod
    def loss(self) -> Float[np.ndarray, " K"] | None:
        """Mean loss of the images at each k; None where it is not known."""

    @property
    @abstractmethod
    def loss_interval(self) -> Interval | None:
        """95 % intervals of the mean loss; None where they are not known."""

    @property
    @abstractmethod
    def drop_limits(self) -> Float[np.ndarray, " K"]:
        """How much of the score may be lost at each k: one-sided 95 % limits.

        On the images that K is chosen on.
        """

    @property
    @abstractmethod
    def remarks(self) -> list[str]:
        """Remarks that whoever reads the result should bear in mind."""

    @property
    @abstractmethod
    def chosen_elsewhere(self) -> bool:
        """Whether K is chosen on other images than those reported."""

    @abstractmethod
    def largest_k_within(self, drop: float) -> int:
        """Largest k that loses at most `drop` of the score, as measured."""

    @abstractmethod
    def largest_safe_k(self, drop: float = 0.01) -> int:
        """Largest k such that it and all before it lose less than `drop`."""

    @abstractmethod
    def columns(self) -> dict[str, Float[np.ndarray, " K"]]:
        """The figures at each k, by the names that sweep.csv gives them."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """`about` and the figures that most readers look for."""

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """The arrays of sweep.npz."""

    @property
    def title(self) -> str:
        """The sweep's title, on one line."""
        names = {key: self.about.get(key) for key in ("layer", "criterion", "fill")}
        known = [f"{key} {name}" for key, name in names.items() if name]
        return ", ".join([*filter(None, [self.about.get("model")]), *known])

    @property
    def subject(self) -> str:
        """Its network and layer, on one line."""
        layer = self.about.get("layer")
        named = [self.about.get("model", "network"), layer and f"layer {layer}"]
        return ", ".join(filter(None, named))

    @property
    def channel_means(self) -> Float[np.ndarray, " P"]:
        """Mean of every channel over the ranking images and positions."""
        return self.mean_feature_map.mean((0, 1))

    def keep(self, k: int) -> Bool[np.ndarray, " P"]:
        """The mask with the first k channels of the order pruned, k in 0 .. P-1."""
        return prefix_masks(self.order, [k])[0]

    @property
    def overlaps(self) -> list[str]:
        """Overlaps of the splits, in words."""
        if "overlaps" in self.about:
            return list(self.about["overlaps"])
        return [] if self.chosen_elsewhere else ["chosen on the images reported"]

    @property
    def max_drop(self) -> float:
        """The largest loss allowed by default; one point of a share."""
        return float(self.about.get("max_drop", 0.01))

    def at(self, k: int) -> dict[str, Any]:
        """The figures at one k but for those of single classes, JSON-able."""
        if k not in self.ks:
            raise InputError(f"the sweep has no K = {k!r:.60}")
        row, columns = self.ks.index(k), self.columns()
        names = [name for name in columns if not name.startswith("recall_")]
        return {"k": k, **{name: float(columns[name][row]) for name in names}}

    def _written(self, row: int) -> dict[str, str]:
        """A row of the columns, as text."""
        return {name: f"{x[row]:.6f}" for name, x in self.columns().items()}

    def save(self, folder: Path | str) -> None:
        """Writes sweep.npz, sweep.csv and summary.json, with the sums of the others.

        A sweep that is there is replaced as a whole, its pictures included.

        Raises:
          InputError: the folder holds something else.
        """
        rows: list[Sequence[Any]] = [["k", "pruned_channel", "score", *self.columns()]]
        for row, k in enumerate(self.ks):
            last = self.order[k - 1] if k else None
            score = "" if last is None else repr(float(self.scores[last]))
            rows.append([k, last, score, *self._written(row).values()])
        saved.write(Path(folder), self._arrays(), rows, self.summary())


def drop_in_words(measure: str, drop: float) -> str:
    """A loss of a score in words.

    >>> drop_in_words("accuracy", 0.01), drop_in_words("mean_IoU", 0.02)
    ('one point', '0.02 of mean IoU')
    """
    if measure == "accuracy":
        return points(drop)
    return f"{drop:g} of {measure.replace('_', ' ')}"
