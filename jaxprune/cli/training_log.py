"""The log of a training, a line for each epoch. Every checkpoint keeps it.

train.jsonl is a copy for people: it is written and never read.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxprune._base import schema
from jaxprune._base.files import write_text
from jaxprune.cli import run_directory
from jaxprune.report.curves import EpochLine
from jaxprune.training import checkpoint


def read(workdir: Path) -> list[EpochLine]:
    """The lines that the newest checkpoint of a run directory keeps.

    Raises:
      InputError: the checkpoint is damaged.
    """
    folder = run_directory.checkpoints(workdir)
    epoch = checkpoint.latest(folder)
    if epoch is None:
        return []
    lines = checkpoint.facts(folder, epoch).get("log", [])
    return schema.check(lines, list[EpochLine], folder / str(epoch))


def write(workdir: Path, lines: Sequence[Any]) -> None:
    """Writes train.jsonl, whole or not at all."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_text(workdir / "train.jsonl", text)
