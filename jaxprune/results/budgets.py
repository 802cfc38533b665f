"""What becomes of each image in a ladder of smaller networks; one file of arrays.

Axes: N images, T thumbnails of h x w pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxprune._base import arguments, journal
from jaxprune._base.errors import InputError
from jaxprune._base.journal import Journal
from jaxprune.data.splits import Split
from jaxprune.results import thumbnails
from jaxprune.results.thumbnails import Thumbnails

# The name of the whole network, beside those of budgets.
WHOLE = "whole"

_FILE = "images.npz"


class Outcome(NamedTuple):
    """What becomes of the images in one network.

    Attributes:
      losses: of the task.
      predictions: class of each image; None where outputs are no classes.
    """

    losses: Float[np.ndarray, " N"]
    predictions: Int[np.ndarray, " N"] | None


class Images(NamedTuple):
    """What is kept of the images.

    Attributes:
      outcomes: of each network, by budget, and of the whole one by WHOLE.
      labels: classes that predictions are compared with: the true ones, or the whole
        network's predictions; None where there are no predictions.
      class_names: name of each class; none where they have none.
      thumbnails: of the images that change; None where they are no pictures.
    """

    outcomes: dict[str, Outcome]
    labels: Int[np.ndarray, " N"] | None
    class_names: tuple[str, ...]
    thumbnails: Thumbnails | None


class ImagesFile:
    """The file images.npz of a ladder, which is added to budget by budget.

    A file that cannot be used is made anew.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]):
        """Reads what an earlier run has left; `key` is as for a `Journal`."""
        self._journal = Journal(folder / _FILE, key)
        self._entries: dict[str, Any] = dict(self._journal.recover())

    def __contains__(self, name: str) -> bool:
        return f"{name}/losses" in self._entries

    def keep(self, outcomes: Mapping[str, Outcome]) -> None:
        """Keeps what becomes of the images in networks, by name."""
        found: dict[str, Any] = {}
        for name, outcome in outcomes.items():
            found[f"{name}/losses"] = outcome.losses
            if outcome.predictions is not None:
                found[f"{name}/predictions"] = outcome.predictions
        self._keep(found)

    def keep_pictures(self, names: Sequence[str], split: Split, labelled: bool) -> None:
        """Keeps pictures of the images that pruning changes.

        Args:
          names: of the networks, the whole one first, then the largest.
          split: the images.
          labelled: whether outputs are judged by its labels.
        """
        entries = self._entries
        losses = np.stack([entries[f"{name}/losses"] for name in names])
        found: dict[str, Any] = {}
        if all(f"{name}/predictions" in entries for name in names):
            classes = np.stack([entries[f"{name}/predictions"] for name in names])
            labels = split.labels if labelled else classes[0]
            found = {"labels": labels, "class_names": np.array(split.class_names, str)}
            chosen = thumbnails.shown(classes == labels)
        else:
            chosen = np.sort(thumbnails.moved(losses))
        if split.are_pictures:
            pictures = thumbnails.of_split(split, chosen)
            found["thumbnail_images"] = pictures.images
            found["thumbnails"] = pictures.pixels
        self._keep(found)

    def _keep(self, entries: dict[str, Any]) -> None:
        self._entries |= entries
        self._journal.keep(entries)


def read(folder: Path) -> Images | None:
    """The images of a ladder's folder; None where there is no file of them.

    Raises:
      InputError: the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    _, entries = journal.load(path)
    try:
        outcomes = {
            name.removesuffix("/losses"): Outcome(
                losses, entries.get(name.replace("/losses", "/predictions"))
            )
            for name, losses in entries.items()
            if name.endswith("/losses")
        }
        found = Images(
            outcomes,
            entries.get("labels"),
            tuple(map(str, entries.get("class_names", ()))),
            Thumbnails(entries["thumbnail_images"], entries["thumbnails"])
            if "thumbnails" in entries
            else None,
        )
        _check(found)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): run shrink again") from None
    return found


def _check(found: Images) -> None:
    """Raises InputError if the arrays do not fit one another."""
    images = {len(outcome.losses) for outcome in found.outcomes.values()}
    if WHOLE not in found.outcomes or len(images) != 1:
        raise InputError(f"networks of {sorted(images)} images")
    (count,) = images
    classes = len(found.class_names)
    if found.labels is not None:
        predicted = [outcome.predictions for outcome in found.outcomes.values()]
        for array in (found.labels, *predicted):
            if array is None or array.shape != (count,):
                raise InputError(f"no class for each of {count} images")
            if classes:
                arguments.check_labels("classes", array, classes)
    if found.thumbnails is not None:
        thumbnails.check(*found.thumbnails, count)
