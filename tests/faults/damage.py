"""What befalls a file: bits, bytes, lines, fields, other files in its place."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune._base import manifest

_STRANGE = (
    None, True, -1, 0, 1.5, 10**30, "", "0", "/../../x", "\ud7ff\u202e", [], {}, [[]],
    math.nan, -math.inf, "a" * 5000, {"a": {"a": {}}},
)  # fmt: skip


def damage(path: Path, rng: np.random.Generator, others: list[Path]) -> str:
    """Does something to a file, and says what.

    Args:
      path: the file.
      rng: draws what is done.
      others: files that may come in its place.
    """
    ways: list[Callable[..., str]] = [_bit, _bytes, _cut, _more, _gone, _other_kind]
    ways += [_replaced] * bool(others)
    text = _text(path)
    if text is not None:
        ways += [_digit, _digit, _digit, _lines, _line_ends]
        if _json(path) is not None:
            ways += [_field, _field]
    way = ways[rng.integers(len(ways))]
    return f"{path.name}: {way.__name__.strip('_')}{way(path, rng, others)}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def _bit(path: Path, rng: np.random.Generator, others: Any) -> str:
    data = bytearray(path.read_bytes() or b"0")
    place, bit = rng.integers(len(data)), rng.integers(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f" {bit} of {place}"


def _bytes(path: Path, rng: np.random.Generator, others: Any) -> str:
    data = bytearray(path.read_bytes() or b"0")
    start = rng.integers(len(data))
    count = int(rng.integers(1, 64))
    what = [bytes(count), rng.bytes(count), b"", bytes(data[:count])][rng.integers(4)]
    data[start : start + count] = what
    path.write_bytes(data)
    return f" {start}+{count}: {what[:8]!r}"


def _cut(path: Path, rng: np.random.Generator, others: Any) -> str:
    data = path.read_bytes()
    length = int(rng.integers(len(data) + 1)) if rng.random() < 0.7 else 0
    path.write_bytes(data[:length])
    return f" to {length}"


def _more(path: Path, rng: np.random.Generator, others: Any) -> str:
    data = path.read_bytes()
    path.write_bytes(data + [data, b"\n", b"\0" * 9, b"x"][rng.integers(4)])
    return ""


def _gone(path: Path, rng: np.random.Generator, others: Any) -> str:
    path.unlink()
    return ""


def _other_kind(path: Path, rng: np.random.Generator, others: Any) -> str:
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
        return ": a folder"
    path.symlink_to(path.name)
    return ": a link to itself"


def _replaced(path: Path, rng: np.random.Generator, others: list[Path]) -> str:
    other = others[rng.integers(len(others))]
    shutil.copyfile(other, path)
    return f" by {other}"


def _digit(path: Path, rng: np.random.Generator, others: Any) -> str:
    text = path.read_text()
    places = [i for i, c in enumerate(text) if c.isdecimal()]
    if not places:
        return _bit(path, rng, others)
    i = places[rng.integers(len(places))]
    digit = str((int(text[i]) + rng.integers(1, 10)) % 10)
    path.write_text(text[:i] + digit + text[i + 1 :])
    return f" at {i}"


def _lines(path: Path, rng: np.random.Generator, others: Any) -> str:
    lines = path.read_text().splitlines(keepends=True)
    i, j = rng.integers(len(lines), size=2)
    if rng.random() < 0.5:
        del lines[i]
        path.write_text("".join(lines))
        return f" without {i}"
    lines[i], lines[j] = lines[j], lines[i]
    path.write_text("".join(lines))
    return f" {i} and {j} swapped"


def _line_ends(path: Path, rng: np.random.Generator, others: Any) -> str:
    text = path.read_text()
    if rng.random() < 0.5:
        path.write_bytes(text.replace("\n", "\r\n").encode())
        return " of another system"
    path.write_bytes(text.encode("utf-8-sig"))
    return ": a byte order mark"


def _field(path: Path, rng: np.random.Generator, others: Any) -> str:
    facts = json.loads(path.read_text())
    where = change(facts, rng)
    path.write_text(json.dumps(facts))
    return f" {where}"


def change(facts: Any, rng: np.random.Generator) -> str:
    """Changes something within JSON, in place, and says where."""
    where = []
    while True:
        keys = list(facts) if isinstance(facts, dict) else list(range(len(facts)))
        if not keys:
            return f"{where}: nothing there"
        key = keys[rng.integers(len(keys))]
        where.append(str(key)[:30])
        inner = facts[key]
        if not (isinstance(inner, dict | list) and inner and rng.random() < 0.7):
            break
        facts = inner
    how = rng.integers(4)
    if how == 0:
        del facts[key]
        return f"{'.'.join(where)} is gone"
    if how == 1 and isinstance(facts, dict):
        facts[f"{key}_"] = facts.pop(key)
        return f"{'.'.join(where)} has another name"
    strange = _STRANGE[rng.integers(len(_STRANGE))]
    facts[key] = strange
    return f"{'.'.join(where)} = {strange!r:.20}"


def reseal(path: Path, rng: np.random.Generator) -> str:
    """Changes something in a record and makes its sum agree, as an author can."""
    facts = json.loads(path.read_text())
    facts.pop("sha256")
    where = change(facts, rng)
    # JSON that Python writes has NaN, and is read as it.
    path.write_text(json.dumps({**facts, "sha256": manifest.digest(facts)}))
    return f"{path.name}: resealed, {where}"
