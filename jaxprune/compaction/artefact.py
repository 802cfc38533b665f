"""A network in a folder that stands alone: weights, description, compiled program.

    weights.safetensors   every array, by path
    spec.json             what it is, with the sha256 of every file and of itself
    model.stablehlo       on request: the program and its weights, for any platform

Nothing is pickled. Every hash and shape is checked before anything is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from jaxprune.errors import InputError
from jaxprune.files import sha256

WEIGHTS, SPEC, PROGRAM = "weights.safetensors", "spec.json", "model.stablehlo"
FORMAT = 2
PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    folder: Path, variables: Any, spec: Mapping[str, Any], program: bytes | None = None
) -> None:
    """Writes an artefact, whole or not at all, in place of one that is there.

    Args:
      folder: where it goes.
      variables: nested dictionaries of arrays.
      spec: JSON-able facts.
      program: a serialized program, see `export_program`.

    Raises:
      InputError: the folder holds something else.
    """
    folder = Path(folder)
    check_target(folder)
    arrays = {
        name: np.ascontiguousarray(value)
        for name, value in flatten_dict(variables, sep="/").items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        (new / WEIGHTS).write_bytes(safetensors.save(arrays))
        if program is not None:
            (new / PROGRAM).write_bytes(program)
        files = {
            path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in sorted(new.iterdir())
        }
        tensors = {
            name: {"shape": list(value.shape), "dtype": str(value.dtype)}
            for name, value in sorted(arrays.items())
        }
        whole = {"format": FORMAT, **spec, "tensors": tensors, "files": files}
        whole["sha256"] = _digest(whole)
        (new / SPEC).write_text(json.dumps(whole, indent=2) + "\n")
        _put_in_place(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Raises InputError if the folder holds something that is not to be replaced."""
    if folder.exists() and not (folder / SPEC).is_file():
        raise InputError(
            f"{folder} exists and is no compact network: give another path"
        )


def _put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; what was there is removed after that."""
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Reads an artefact: variables and facts.

    Raises:
      InputError: it is missing, damaged or changed; the file is named.
    """
    folder = Path(folder)
    if not (folder / SPEC).is_file():
        raise InputError(f"{folder} holds no compact network (no {SPEC})")
    try:
        spec = json.loads((folder / SPEC).read_text())
        if spec["format"] != FORMAT:
            raise InputError(
                f"{folder / SPEC} has format {spec['format']}, not {FORMAT}"
            )
        if spec["sha256"] != _digest(spec):
            raise InputError(f"{folder / SPEC} does not match its own sha256")
        for name, facts in spec["files"].items():
            if Path(name).name != name or not (folder / name).is_file():
                raise InputError(f"{folder / name} is missing")
            if sha256(folder / name) != facts["sha256"]:
                raise InputError(f"{folder / name} does not match its sha256 in {SPEC}")
        arrays = safetensors.load_file(folder / WEIGHTS)
        found = {
            name: {"shape": list(value.shape), "dtype": str(value.dtype)}
            for name, value in arrays.items()
        }
        if WEIGHTS not in spec["files"] or found != spec["tensors"]:
            raise InputError(f"{folder / WEIGHTS} holds other arrays than {SPEC} says")
    except InputError as error:
        raise InputError(f"{error}: the artefact was damaged or changed") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"the compact network in {folder} is damaged ({error})"
        ) from error
    return unflatten_dict(arrays, sep="/"), spec


def _digest(spec: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a spec but its own hash."""
    rest = {key: value for key, value in spec.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def export_program(
    function: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any
) -> bytes:
    """A function of a batch as StableHLO, batch size left open, for every platform.

    To run it: `jax.export.deserialize(data).call(x)`.

    Args:
      function: [N, *shape] -> array; what it closes over becomes part of the file.
      shape: of one example.
      dtype: of the input.
    """
    (size,) = export.symbolic_shape("N")
    x = jax.ShapeDtypeStruct((size, *shape), dtype)
    return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(x).serialize())
