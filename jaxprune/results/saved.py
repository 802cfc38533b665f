"""The files of a sweep, which vouch for one another."""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from jaxprune._base import manifest, schema
from jaxprune._base.errors import InputError
from jaxprune._base.files import replacing_folder


def write(
    folder: Path,
    arrays: Mapping[str, Any],
    rows: Iterable[Sequence[Any]],
    summary: Mapping[str, Any],
) -> None:
    """Replaces the folder as a whole.

    Args:
      folder: of the sweep, or one that is not there.
      arrays: for sweep.npz.
      rows: of sweep.csv, the header first.
      summary: JSON-able, for summary.json.

    Raises:
      InputError: the folder holds something else.
    """
    check_target(folder)
    with replacing_folder(folder) as new:
        np.savez_compressed(new / "sweep.npz", **dict(arrays))
        with open(new / "sweep.csv", "w", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        manifest.write(new, "summary.json", summary)


def read(folder: Path, kind: str) -> dict[str, Any]:
    """The arrays and facts of a sweep, by field.

    Args:
      folder: of the sweep.
      kind: "class_names" or "score_names", of which its summary has one.

    Raises:
      InputError: no complete sweep is there, it is of another kind, or a file is
        damaged.
    """
    if not (folder / "summary.json").is_file():
        raise InputError(f"{folder} holds no complete sweep (no summary.json)")
    try:
        summary: Any = manifest.read(folder, "summary.json", _Summary, _FILES[:2])
        with open(folder / "sweep.csv", encoding="utf-8", newline="") as file:
            ks = tuple(int(row["k"]) for row in csv.DictReader(file))
        with (
            open(folder / "sweep.npz", "rb") as npz,
            np.load(npz, allow_pickle=False) as arrays,
        ):
            about = {k: v for k, v in summary.items() if k not in _DERIVED}
            found = {"ks": ks, "about": about, **arrays}
    except Exception as error:
        raise InputError(
            f"the sweep in {folder} is damaged ({error}): run the sweep again"
        ) from error
    if kind not in summary:
        other = "TaskResult" if kind == "class_names" else "SweepResult"
        raise InputError(f"{folder} holds another kind of sweep: {other}.load reads it")
    return {**found, kind: tuple(summary[kind])}


def read_columns(folder: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Columns of sweep.csv, those of `names` that it has."""
    with open(folder / "sweep.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([float(row[name]) for row in rows])
        for name in names
        if name in rows[0]
    }


@schema.and_others
class _Summary(TypedDict):
    """The fields of summary.json that are read."""

    class_names: NotRequired[tuple[str, ...]]
    score_names: NotRequired[tuple[str, ...]]
    task: NotRequired[str]
    layer: NotRequired[schema.Name]
    criterion: NotRequired[schema.Word]
    fill: NotRequired[schema.Word]
    model: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    max_drop: NotRequired[schema.Share]
    overlaps: NotRequired[list[str]]


def check_about(about: Mapping[str, Any]) -> None:
    """Checks facts of how a sweep was made, before it is.

    Raises:
      InputError: they are not JSON-able, name what has another place in the result, or
        give a layer, criterion or fill that cannot be part of a file's name.
    """
    schema.check_json("about", about)
    if taken := sorted(set(about) & set(_DERIVED)):
        raise InputError(f"about may not hold {', '.join(taken)}: the result does")
    schema.check(about, _Summary, "about")


_FILES = ("sweep.npz", "sweep.csv", "summary.json")
# Endings of the figures that may lie beside them.
PICTURES = (".png", ".pdf", ".svg")


def check_target(
    folder: Path, what: str = "sweep", files: Collection[str] = _FILES
) -> None:
    """Raises InputError if `what`, saved there, would take something's place."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give another folder")
    if folder.exists():
        others = (p for p in folder.iterdir() if p.name not in files)
        other = next((p for p in others if p.suffix not in PICTURES), None)
        if other is not None:
            raise InputError(f"{other} is no part of a {what}: give another folder")


_DERIVED = (
    "files",
    "sha256",
    "class_names",
    "score_names",
    "higher_is_better",
    "n_images",
    "n_channels",
    "baseline_accuracy",
    "baseline_balanced_accuracy",
    "baseline",
    "largest_safe_k",
    "largest_k_within",
    "chosen",
    "largest_safe_k_within_1_point",
    "largest_safe_k_within_5_points",
    "largest_k_within_1_point",
    "largest_k_within_5_points",
    "largest_k_within_1_point_balanced",
    "largest_k_within_5_points_balanced",
)
