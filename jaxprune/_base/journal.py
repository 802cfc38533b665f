"""Finished work that a run keeps, so that the same command goes on where it stopped.

A journal is a file of named entries, and of the key: the facts that decide whether they
still hold. It is written whole or not at all, each time that something is finished, so
a run that is killed loses no entry, and no file is ever half of one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from jaxprune._base import manifest, schema
from jaxprune._base.errors import InputError
from jaxprune._base.files import replacing


class OtherKeyError(InputError):
    """A journal of another key.

    Attributes:
      found: the key that it has.
    """

    def __init__(self, path: Path, found: dict[str, Any]):
        super().__init__(f"{path} was written for something else")
        self.found = found


class Journal:
    """One file of entries: JSON with its own sum, or arrays where it ends in .npz.

    A file that is never read is replaced by the first entries that are kept.

    Attributes:
      path: the file.
      key: facts that decide the entries, as JSON has them.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]):
        """Reads and writes nothing yet; the key is JSON-able."""
        self.path, self.key = path, _as_json(key)
        self._entries: dict[str, Any] = {}

    def read(self, kind: Any = None) -> Any:
        """The entries that an earlier run has left, {} where there is no file.

        Args:
          kind: type of all entries, see `schema.read`; of JSON alone.

        Raises:
          OtherKeyError: they are of another key.
          InputError: the file is damaged, or of another format.
        """
        if not self.path.exists():
            return {}
        key, entries = load(self.path)
        if key != self.key:
            raise OtherKeyError(self.path, key)
        found = entries if kind is None else schema.check(entries, kind, self.path)
        self._entries = entries
        return found

    def recover(self, kind: Any = None) -> Any:
        """As `read`, but {} where the file cannot be used, whatever the reason."""
        try:
            return self.read(kind)
        except (InputError, OSError):
            return {}

    def keep(self, entries: Mapping[str, Any]) -> None:
        """Writes entries beside the others; those of the same names are replaced."""
        self._entries = {**self._entries, **entries}
        self.path.parent.mkdir(exist_ok=True)
        if self.path.suffix == ".npz":
            arrays: dict[str, Any] = {"key": json.dumps(self.key), **self._entries}
            with replacing(self.path) as path:
                np.savez_compressed(path, **arrays)
        else:
            whole = {"key": self.key, "entries": self._entries}
            manifest.write_file(self.path, _as_json(whole))


class _File(TypedDict):
    key: dict[str, Any]
    entries: dict[str, Any]


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Key and entries of a file, whatever its key.

    Raises:
      InputError: it is damaged.
    """
    if path.suffix != ".npz":
        found = manifest.read_file(path, _File)
        return found["key"], found["entries"]
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            entries = {name: arrays[name] for name in arrays}
        return json.loads(str(entries.pop("key"))), entries
    except Exception as error:  # whatever a damaged archive raises
        raise InputError(f"{path} is damaged: {error}") from None


def _as_json(value: Any) -> Any:
    """Tuples as lists, and keys as text, as they are read again."""
    return json.loads(json.dumps(value))
