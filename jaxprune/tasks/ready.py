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


def by_name(name: str, output: str | None, ignore: int | None = None) -> Task:
    """A ready task, of a part of the output that is named as on a command line.

    Args:
      name: one of TASKS.
      output: a key, or a position in digits.
      ignore: of a segmentation, the target of pixels that do not count.
    """
    part = int(output) if output is not None and output.isdecimal() else output
    if ignore is None:
        return TASKS[name](output=part)
    return TASKS[name](output=part, ignore=ignore)
