"""The ready tasks by name."""

from collections.abc import Callable

from jaxprune.tasks.classes import classification, segmentation
from jaxprune.tasks.imitation import imitation
from jaxprune.tasks.task import Task
from jaxprune.tasks.values import reconstruction, regression

TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "segmentation": segmentation,
    "regression": regression,
    "reconstruction": reconstruction,
    "imitation": imitation,
}


def by_name(name: str, output: str | None) -> Task:
    """A ready task, of a part of the output that is named as on a command line.

    Args:
      name: one of TASKS.
      output: a key, or a position in digits.
    """
    part = int(output) if output is not None and output.isdecimal() else output
    return TASKS[name](output=part)
