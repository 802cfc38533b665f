"""A saved sweep, of whatever kind it is."""

import json
from pathlib import Path

from jaxprune.results.result import SweepResult
from jaxprune.results.task_result import TaskResult

AnyResult = SweepResult | TaskResult


def load(folder: Path) -> AnyResult:
    """The result of a sweep from its folder.

    Raises:
      InputError: no complete sweep is there, or a file is damaged.
    """
    try:
        text = (folder / "summary.json").read_text(encoding="utf-8")
        of_task = "score_names" in json.loads(text)
    except (OSError, ValueError):
        of_task = False  # then that of classes says what is wrong
    return (TaskResult if of_task else SweepResult).load(folder)
