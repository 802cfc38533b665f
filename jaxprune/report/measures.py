"""The score that figures of smaller networks show: accuracy, or a task's first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune._base.errors import InputError

ACCURACY = "accuracy"


def check_measure(path: Path, measure: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The name of the score, which each row of a file has, and of the whole network.

    Raises:
      InputError: one has not.
    """
    for row in rows:
        for name in (measure, f"baseline_{measure}"):
            if not isinstance(row.get(name), int | float):
                raise InputError(
                    f"{path} is damaged: '{name}' should be a number, got "
                    f"{row.get(name)!r:.60}"
                )
    return measure


def in_words(measure: str) -> str:
    """The name of a score, for people.

    >>> in_words("mean_IoU")
    'mean IoU'
    """
    return measure.replace("_", " ")
