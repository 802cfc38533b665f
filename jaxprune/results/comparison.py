"""Criteria side by side: their curves, the band of random orders, how far they agree.

Axes: C criteria, R random orders, K masks, P channels.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import scipy
from jaxtyping import Float
from typing_extensions import TypedDict

from jaxprune._base import manifest, schema
from jaxprune._base.arguments import check_numbers
from jaxprune._base.errors import InputError
from jaxprune._base.files import replacing_folder
from jaxprune.ranking.order import check_ks
from jaxprune.results.load import AnyResult
from jaxprune.results.result import SweepResult
from jaxprune.results.saved import check_target

# The band of random orders.
BAND = (0.025, 0.975)


@dataclass(frozen=True)
class Comparison:
    """The cost of each criterion's order, beside random orders.

    Attributes:
      ks: numbers of pruned channels, ascending.
      names: of the criteria.
      scores: of every channel by each criterion.
      accuracy: share of images predicted right; of other tasks than classification,
        the score that `about["measure"]` names.
      balanced_accuracy: mean over classes of the share of the class.
      safe_k: the largest K that each may go to, see `SweepResult.largest_safe_k`.
      random_accuracy: of random orders.
      random_balanced_accuracy: of random orders.
      is_balanced: whether the classes have about as many images.
      about: JSON-able facts of how it was made.

    Raises:
      InputError: what these say of one another does not fit.
    """

    ks: tuple[int, ...]
    names: tuple[str, ...]
    scores: Float[np.ndarray, "C P"]
    accuracy: Float[np.ndarray, "C K"]
    balanced_accuracy: Float[np.ndarray, "C K"]
    safe_k: tuple[int, ...]
    random_accuracy: Float[np.ndarray, "R K"]
    random_balanced_accuracy: Float[np.ndarray, "R K"]
    is_balanced: bool
    about: dict[str, Any]

    def __post_init__(self) -> None:
        (criteria, p), k = np.shape(self.scores), len(self.ks)
        check_ks(self.ks, p)
        check_numbers("scores", self.scores, (len(self.names), p))
        for name in ("accuracy", "balanced_accuracy"):
            check_numbers(name, getattr(self, name), (criteria, k))
            array = getattr(self, f"random_{name}")
            check_numbers(f"random_{name}", array, (len(self.random_accuracy), k))

    @property
    def measure(self) -> str:
        """The name of the score."""
        return str(self.about.get("measure", "accuracy"))

    @cached_property
    def mean_accuracy(self) -> Float[np.ndarray, " C"]:
        """Each criterion's mean over K."""
        return self.accuracy.mean(1)

    @cached_property
    def beaten(self) -> Float[np.ndarray, " C"]:
        """Share of the random orders with a lower mean; half of those with the same.

        NaN where there are none.
        """
        if not len(self.random_accuracy):
            return np.full(len(self.names), np.nan)
        random = self.random_accuracy.mean(1)
        mine = self.mean_accuracy[:, None]
        return ((mine > random) + 0.5 * (mine == random)).mean(1)

    @cached_property
    def spearman(self) -> Float[np.ndarray, "C C"]:
        """Rank correlation of every two criteria's scores.

        NaN where a criterion gives all channels the same.
        """
        matrix = np.eye(len(self.names))
        varies = [bool(np.ptp(row)) for row in self.scores]
        for i, j in combinations(range(len(self.names)), 2):
            both = varies[i] and varies[j]
            pair = self.scores[[i, j]]
            rho = scipy.stats.spearmanr(*pair)[0] if both else np.nan
            matrix[i, j] = matrix[j, i] = rho
        return matrix

    @property
    def with_oracle(self) -> Float[np.ndarray, " C"]:
        """Rank correlation with the oracle; NaN where it is not among the criteria."""
        if "oracle" not in self.names:
            return np.full(len(self.names), np.nan)
        return self.spearman[self.names.index("oracle")]

    def summary(self) -> dict[str, Any]:
        """`about` and the figures of each criterion."""
        columns = (self.mean_accuracy, self.safe_k, self.with_oracle, self.beaten)
        return {
            **self.about,
            "is_balanced": self.is_balanced,
            "random_orders": len(self.random_accuracy),
            "random_mean_accuracy": [_json(x) for x in self.random_accuracy.mean(1)],
            "criteria": {
                name: {
                    "mean_accuracy": _json(mean),
                    "largest_safe_k": int(safe),
                    "spearman_with_oracle": _json(rho),
                    "random_orders_beaten": _json(share),
                }
                for name, mean, safe, rho, share in zip(
                    self.names, *columns, strict=True
                )
            },
        }

    def save(self, folder: Path | str) -> None:
        """Replaces the folder: criteria.npz, criteria.csv and summary.json.

        Raises:
          InputError: it holds something else.
        """
        folder = Path(folder)
        self.check_target(folder)
        with replacing_folder(folder) as new:
            arrays = {name: getattr(self, name) for name in _ARRAYS}
            np.savez_compressed(new / "criteria.npz", **arrays)
            with open(new / "criteria.csv", "w", encoding="utf-8") as file:
                rows = csv.writer(file, lineterminator="\n")
                measures = [self.measure]
                if self.measure == "accuracy":
                    measures.append("balanced_accuracy")
                rows.writerow(["criterion", "k", *measures])
                for name, *curves in self._curves():
                    curves = curves[: len(measures)]
                    for k, *figures in zip(self.ks, *curves, strict=True):
                        rows.writerow([name, k, *(f"{x:.6f}" for x in figures)])
            manifest.write(new, "summary.json", self.summary())

    @staticmethod
    def check_target(folder: Path) -> None:
        """Raises InputError if one saved there would take something's place."""
        check_target(folder, "comparison", _FILES)

    def _curves(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Name, accuracy and balanced accuracy of all orders."""
        random = [f"random order {i}" for i in range(len(self.random_accuracy))]
        return [
            *zip(self.names, self.accuracy, self.balanced_accuracy, strict=True),
            *zip(
                random, self.random_accuracy, self.random_balanced_accuracy, strict=True
            ),
        ]

    @classmethod
    def load(cls, folder: Path | str) -> "Comparison":
        """Reads what `save` wrote.

        Raises:
          InputError: no complete comparison is there, or a file is damaged.
        """
        folder = Path(folder)
        if not (folder / "summary.json").is_file():
            raise InputError(f"{folder} holds no complete comparison (no summary.json)")
        try:
            summary: Any = manifest.read(folder, "summary.json", _Summary, _FILES[:2])
            with (
                open(folder / "criteria.npz", "rb") as npz,
                np.load(npz, allow_pickle=False) as arrays,
            ):
                read = {name: arrays[name] for name in _ARRAYS}
            criteria = summary["criteria"]
            return cls(
                **{**read, "ks": tuple(read["ks"].tolist())},
                names=tuple(criteria),
                safe_k=tuple(row["largest_safe_k"] for row in criteria.values()),
                is_balanced=summary["is_balanced"],
                about={k: v for k, v in summary.items() if k not in _DERIVED},
            )
        except Exception as error:
            raise InputError(
                f"the comparison in {folder} is damaged ({error}): make it again"
            ) from error


_FILES = ("criteria.npz", "criteria.csv", "summary.json")
_ARRAYS = (
    "ks", "scores", "accuracy", "balanced_accuracy", "random_accuracy",
    "random_balanced_accuracy",
)  # fmt: skip
_DERIVED = (
    "is_balanced", "random_orders", "random_mean_accuracy", "criteria", "files",
    "sha256",
)  # fmt: skip


@schema.and_others
class _Criterion(TypedDict):
    largest_safe_k: int


@schema.and_others
class _Summary(TypedDict):
    """The fields of summary.json that are read."""

    layer: schema.Name
    fill: schema.Word
    model: NotRequired[str]
    max_drop: NotRequired[schema.Share]
    overlaps: NotRequired[list[str]]
    left_out: NotRequired[dict[str, str]]
    is_balanced: bool
    criteria: dict[schema.Word, _Criterion]


def compare(
    results: Mapping[str, AnyResult],
    random: Sequence[tuple[np.ndarray, np.ndarray]],
    about: dict[str, Any],
) -> Comparison:
    """Puts sweeps side by side that differ in the order alone.

    Args:
      results: of each criterion, by its name; at least one.
      random: accuracy and balanced accuracy at every K, of each random order.
      about: JSON-able facts of how it was made.
    """
    first = next(iter(results.values()))
    none = np.zeros((0, len(first.ks)))
    if first.measure != "accuracy":
        about = {**about, "measure": first.measure}
    curves = [measured(result) for result in results.values()]
    return Comparison(
        ks=first.ks,
        names=tuple(results),
        scores=np.stack([r.scores for r in results.values()]),
        accuracy=np.stack([curve for curve, _ in curves]),
        balanced_accuracy=np.stack([balanced for _, balanced in curves]),
        safe_k=tuple(r.largest_safe_k(r.max_drop) for r in results.values()),
        random_accuracy=np.stack([a for a, _ in random]) if random else none,
        random_balanced_accuracy=np.stack([b for _, b in random]) if random else none,
        is_balanced=not isinstance(first, SweepResult) or first.is_balanced,
        about=about,
    )


def measured(result: AnyResult) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and balanced accuracy; of other tasks the first score, twice."""
    if isinstance(result, SweepResult):
        return result.accuracy, result.balanced_accuracy
    return result.curve, result.curve


def _json(x: Any) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(x) else float(x)
