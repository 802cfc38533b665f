"""A network in a folder that stands alone: weights, description, compiled program.

    weights.safetensors   every array, by path
    spec.json             what it is, with the sha256 of every file and of itself
    model.stablehlo       on request: the program and its weights, for any platform

Nothing is pickled. Every hash and shape is checked before anything is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from jax.extend.mlir import passmanager
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir
from pydantic import Field
from safetensors import numpy as safetensors
from typing_extensions import TypedDict

from jaxprune import schema, sealed
from jaxprune.errors import InputError, first_line
from jaxprune.files import replacing_folder

WEIGHTS, SPEC, PROGRAM = "weights.safetensors", "spec.json", "model.stablehlo"
FORMAT = 2
PLATFORMS = ("cpu", "cuda", "tpu")
_Size = Annotated[int, Field(ge=1, lt=2**31)]


class _Tensor(TypedDict):
    shape: list[int]
    dtype: str


_Model = TypedDict(
    "_Model",
    {
        "class": str,
        "fields": NotRequired[dict[str, int | float | list[int | float]]],
        "dtype": NotRequired[str],
    },
)


class _Layer(TypedDict):
    channels: int
    kept: list[int]
    fill: str
    fill_facts: NotRequired[dict[str, Any]]


@schema.and_others
class Spec(TypedDict):
    """What spec.json holds, and more."""

    format: Literal[2]
    model: _Model
    call: dict[str, Any]
    layers: dict[str, _Layer]
    input_shape: list[_Size]
    proof: dict[str, Any] | None
    group_sizes: dict[str, _Size]
    tensors: dict[str, _Tensor]


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
    tensors = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype)}
        for name, value in sorted(arrays.items())
    }
    schema.check_json("spec", spec)
    with replacing_folder(folder) as new:
        (new / WEIGHTS).write_bytes(safetensors.save(arrays))
        if program is not None:
            (new / PROGRAM).write_bytes(program)
        sealed.write(new, SPEC, {"format": FORMAT, **spec, "tensors": tensors})


def check_target(folder: Path) -> None:
    """Raises InputError if the folder holds something that is not to be replaced."""
    if folder.exists() and not (folder / SPEC).is_file():
        raise InputError(
            f"{folder} exists and is no compact network: give another path"
        )


def read(folder: Path) -> tuple[Any, Spec]:
    """Reads an artefact: variables and facts.

    Raises:
      InputError: it is missing, damaged or changed; the file is named.
    """
    folder = Path(folder)
    if not (folder / SPEC).is_file():
        raise InputError(f"{folder} holds no compact network (no {SPEC})")
    try:
        spec = sealed.read(folder, SPEC, Spec, (WEIGHTS,))
    except InputError as error:
        raise InputError(f"{error}: the artefact was damaged or changed") from error
    try:
        arrays = safetensors.load_file(folder / WEIGHTS)
    except Exception as error:  # of its parser, which a crafted file may break
        raise InputError(
            f"{folder / WEIGHTS} is damaged ({first_line(error)})"
        ) from error
    found = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype)}
        for name, value in arrays.items()
    }
    if found != spec["tensors"]:
        raise InputError(f"{folder / WEIGHTS} holds other arrays than {SPEC} says")
    return unflatten_dict(arrays, sep="/"), spec


def export_program(
    function: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any
) -> bytes:
    """A function of a batch as StableHLO, batch size left open, for every platform.

    To run it: `jax.export.deserialize(data).call(x)`. It says nothing of the files that
    the function was written in, so that it is the same wherever it is made.

    Args:
      function: [N, *shape] -> array; what it closes over becomes part of the file.
      shape: of one example.
      dtype: of the input.

    Raises:
      InputError: a function that needs to know how many inputs there are.
    """
    (size,) = export.symbolic_shape("N")
    x = jax.ShapeDtypeStruct((size, *shape), dtype)
    try:
        program = export.export(jax.jit(function), platforms=PLATFORMS)(x)
    except Exception as error:  # whatever the model's own code raises
        raise InputError(
            f"the network cannot be exported for any number of images: "
            f"{type(error).__name__}: {first_line(error)}; where its code says len(x), "
            "x.shape[0] works"
        ) from error
    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(
            context, program.mlir_module_serialized
        )
        strip = passmanager.PassManager.parse("builtin.module(strip-debuginfo)")
        strip.run(module.operation)
        # As jax.export itself: for readers up to four weeks older.
        version = stablehlo.get_version_from_compatibility_requirement(
            stablehlo.StablehloCompatibilityRequirement.WEEK_4
        )
        data = stablehlo.serialize_portable_artifact(module, version)
    return bytes(replace(program, mlir_module_serialized=data).serialize())
