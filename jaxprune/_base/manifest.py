"""A folder that vouches for its files: a record with the SHA-256 of each and its own.

It shows damage and careless edits; an author who can write there can write new sums.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from typing_extensions import TypedDict

from jaxprune._base import schema
from jaxprune._base.errors import InputError
from jaxprune._base.files import sha256, write_text


class _File(TypedDict):
    sha256: schema.Sha256
    bytes: int


def write(folder: Path, record: str, facts: Mapping[str, Any]) -> None:
    """Writes facts and the sums of the files that lie in the folder by now.

    Args:
      folder: a folder that nobody else looks at yet, see `files.replacing_folder`.
      record: the record's name.
      facts: JSON-able.
    """
    sums = {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    whole = {**facts, "files": sums}
    whole["sha256"] = digest(whole)
    text = json.dumps(whole, indent=2) + "\n"
    (folder / record).write_text(text, encoding="utf-8")


def read(folder: Path, record: str, kind: Any, needs: tuple[str, ...]) -> Any:
    """The facts of a folder whose files are all as they were written.

    Args:
      folder: the folder that holds it.
      record: the record's name.
      kind: type of the facts, see `schema.read`.
      needs: files that the record must speak of.

    Raises:
      InputError: the record or a file is missing, damaged or changed; it is named.
    """
    path = folder / record
    facts = read_file(path, kind)
    sums = schema.check(_checked(path).get("files"), dict[str, _File], path)
    for name in dict.fromkeys((*needs, *sums)):
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{file} is missing")
        if name not in sums or sha256(file) != sums[name]["sha256"]:
            raise InputError(f"{file} does not match its sha256 in {record}")
    return facts


def write_file(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes JSON-able facts and their own sum, whole or not at all."""
    write_text(path, json.dumps({**facts, "sha256": digest(facts)}) + "\n")


def read_file(path: Path, kind: Any) -> Any:
    """The record that `write_file` wrote, as `kind`; see `schema.read`.

    Raises:
      InputError: it is damaged, or changed.
    """
    _checked(path)
    return schema.read(path, kind)


def _checked(path: Path) -> dict[str, Any]:
    facts = schema.read(path, dict[str, Any])
    if facts.get("sha256") != digest(facts):
        raise InputError(f"{path} does not match its own sha256")
    return facts


def fingerprint(arrays: Any) -> str:
    """SHA-256, in hex, of every path, type, shape and value of a tree of arrays."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def digest(facts: Any) -> str:
    """SHA-256 of JSON-able facts, but for a top-level "sha256"."""
    if isinstance(facts, Mapping):
        facts = {key: value for key, value in facts.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
