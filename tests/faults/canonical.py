"""What of a run directory must be the same however often a script was killed."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

# What is measured by a clock, or sums of files that hold such.
_MEASURED = {
    "seconds", "images_per_second", "latency", "predicted_speedup", "since",
    "predicted_seconds", "sha256", "files", "seal", "measured_speedup",
}  # fmt: skip


def content(workdir: Path) -> dict[str, Any]:
    """Every file of the run directory, by its path, without what clocks measure."""
    return {
        str(path.relative_to(workdir)): _file(path)
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and not _of_orbax(path.relative_to(workdir))
    }


def _of_orbax(path: Path) -> bool:
    """Whether Orbax keeps it beside what it was given: with times, and in any order.

    What it was given has its SHA-256 in "about", and is compared with it when it is
    restored.
    """
    return path.parts[0] == "checkpoints" and "about" not in path.parts


def _file(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: digest(arrays[name]) for name in arrays}
    if path.suffix == ".safetensors":
        return {k: digest(v) for k, v in safetensors.load_file(path).items()}
    if path.suffix == ".json":
        return _facts(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_facts(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        return _rows(path)
    if path.suffix == ".html":  # of all results, the times included
        return path.read_text().rstrip().endswith("</html>")
    if path.suffix == ".png":
        return path.read_bytes()[:8]
    if path.parent.name == "about":  # of a checkpoint
        return _facts(json.loads(path.read_text())) if path.name == "metadata" else ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: _facts(v) for k, v in value.items() if k not in _MEASURED}
        # A network's fingerprint is of arrays, a record's of all the record.
        if {"sha256", "optimizer", "epoch"} <= value.keys():
            kept["variables"] = value["sha256"]
        return kept
    return [_facts(item) for item in value] if isinstance(value, list) else value


def _rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    timed = ("latency", "seconds", "predicted", "speedup")
    kept = [i for i, name in enumerate(header) if not name.startswith(timed)]
    return [[row[i] for i in kept] for row in (header, *rows)]


def digest(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array).tobytes()
    return f"{array.dtype}{array.shape}{hashlib.sha256(data).hexdigest()}"


def left_over(workdir: Path) -> list[str]:
    """What no finished run leaves."""
    return [
        str(path.relative_to(workdir))
        for path in workdir.rglob("*")
        if path.name.startswith((".", "unfinished-"))
        or "orbax-checkpoint-tmp" in str(path)
    ]


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """The first file that is not as expected; empty where all are."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} should not be there"
        if found[name] != expected[name]:
            return f"{name} holds {_short(found[name], expected[name])}"
    return ""


def _short(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in found.keys() | expected.keys():
            if found.get(key) != expected.get(key):
                return f"{key}: {found.get(key)!r:.150}, not {expected.get(key)!r:.150}"
    return f"{found!r:.150}, not {expected!r:.150}"
