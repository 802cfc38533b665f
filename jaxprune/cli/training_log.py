"""train.jsonl, a line for each epoch: for people, and for the picture of training.

Every checkpoint keeps the lines, too, and vouches for them: what was lost of the file,
or changed in it, is written again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxprune._base import processes, schema
from jaxprune._base.files import write_text
from jaxprune.recipes import checkpoint
from jaxprune.report import curves


def restore(workdir: Path, epoch: int | None) -> list[Any]:
    """The lines of a run directory's epochs, as a checkpoint has them.

    The file is written again where it says something else. A checkpoint that is older
    than this keeps no lines: the file's are taken.

    Args:
      workdir: the run directory.
      epoch: of its newest checkpoint; None where there is none.

    Raises:
      InputError: the checkpoint is damaged, or the file that has to be taken is.
    """
    if epoch is None:
        return []
    folder, path = workdir / "checkpoints", workdir / "train.jsonl"
    facts = checkpoint.facts(folder, epoch)
    if "log" not in facts:
        return [*curves.read_log(path)[:epoch]]
    lines = schema.check(facts["log"], list[curves.EpochLine], folder / str(epoch))
    kept, found = _text(lines), path.read_bytes() if path.exists() else b""
    if processes.is_first() and found != kept.encode():
        # A kill leaves a line too many; an imported network has none.
        if not found.startswith(kept.encode()):
            print(f"{path} is not as {folder / str(epoch)} has it: written again")
        write(workdir, lines)
    return lines


def write(workdir: Path, lines: Sequence[Any]) -> None:
    """Writes the lines, whole or not at all."""
    write_text(workdir / "train.jsonl", _text(lines))


def _text(lines: Sequence[Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)
