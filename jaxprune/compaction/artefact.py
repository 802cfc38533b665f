"""A network in a folder that stands alone: weights, description, program.

    weights.safetensors   every array, by path
    example.safetensors   a few inputs; where they are a tree, each array by its path
    spec.json             what it is, with the sha256 of every file and of itself
    function.stablehlo    (weights, inputs) -> what the network returns
    model.stablehlo       on request: pixels -> the same, its weights and scaling inside
    model.onnx            on request: the same for other runtimes
    model.keras           on request, by the commands: the smaller Keras model

Programs take any number of inputs, on any platform: `jax.export.deserialize(data)`
reads them. Nothing is pickled. Every hash and shape is checked before anything is used.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import jax
import numpy as np
from jax import export as jax_export
from pydantic import Field
from safetensors import numpy as safetensors
from typing_extensions import TypedDict

from jaxprune._base import arguments, manifest, schema
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError, first_line
from jaxprune._base.files import replacing_folder

INPUTS = "inputs"
WEIGHTS, EXAMPLE, SPEC = "weights.safetensors", "example.safetensors", "spec.json"
FUNCTION, PROGRAM = "function.stablehlo", "model.stablehlo"
ONNX, KERAS = "model.onnx", "model.keras"
FORMAT = 3
PLATFORMS = ("cpu", "cuda", "tpu")
# JAX's option: how many lines of code a program names for each operation.
_LOCATIONS = "jax_traceback_in_locations_limit"
_Size = Annotated[int, Field(ge=1, lt=2**31)]


class _Tensor(TypedDict):
    shape: list[int]
    dtype: str


class _Mask(TypedDict):
    """The kept indices of an axis: its first size, and a bit for each, as hex."""

    size: _Size
    mask: str


class _Layer(TypedDict):
    channels: int
    kept: list[int]
    fill: str
    fill_facts: NotRequired[dict[str, Any]]


@schema.and_others
class Spec(TypedDict):
    """The fields of spec.json that are read; there are more."""

    format: Literal[3]
    model: str
    call: dict[str, Any]
    layers: dict[str, _Layer]
    kept: dict[str, dict[str, _Mask]]
    keys: dict[str, list[str]]
    streams: NotRequired[bool]
    head_dimensions: NotRequired[bool]
    input_shape: list[_Size]
    inputs: NotRequired[dict[str, list[_Size]]]
    versions: NotRequired[dict[str, str]]
    proof: dict[str, Any] | None
    tensors: dict[str, _Tensor]


def describe_masks(
    kept: Mapping[tuple[str, int], np.ndarray],
) -> dict[str, dict[str, _Mask]]:
    """The kept indices of leaves' axes, as JSON; of whole ones nothing."""
    found: dict[str, dict[str, _Mask]] = {}
    for (path, axis), keep in kept.items():
        if not keep.all():
            mask: _Mask = {"size": len(keep), "mask": np.packbits(keep).tobytes().hex()}
            found.setdefault(path, {})[str(axis)] = mask
    return found


def masks(spec: Spec) -> dict[tuple[str, int], np.ndarray]:
    """The inverse of `describe_masks`."""
    return {
        (path, int(axis)): np.unpackbits(
            np.frombuffer(bytes.fromhex(mask["mask"]), np.uint8), count=mask["size"]
        ).astype(bool)
        for path, axes in spec["kept"].items()
        for axis, mask in axes.items()
    }


def describe_inputs(example: Any) -> dict[str, Any]:
    """The shape of an input, as JSON; of a tree's arrays those by path, "inputs"."""
    shapes = {name: list(np.shape(a)[1:]) for name, a in _by_path(example).items()}
    if shapes.keys() == {INPUTS}:
        return {"input_shape": shapes[INPUTS]}
    return {"input_shape": [], "inputs": shapes}


def _by_path(example: Any) -> dict[str, Any]:
    """The arrays of a batch by name: of one that is an array, INPUTS."""
    return {
        "/".join(filter(None, (INPUTS, path_name(path)))): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(example)
    }


def plain(tree: Any) -> Any:
    """A tree in what a program's file knows: dictionaries by text, lists and tuples."""
    if tree is None:
        return None
    if type(tree) in (list, tuple):
        return type(tree)(map(plain, tree))
    nodes, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree
    )
    if jax.tree_util.treedef_is_leaf(structure):
        return tree
    return {path_name(path): plain(node) for path, node in nodes}


def write(
    folder: Path,
    arrays: Mapping[str, Any],
    spec: Mapping[str, Any],
    files: Mapping[str, bytes],
    example: Any,
) -> None:
    """Writes an artefact, whole or not at all, in place of one that is there.

    Args:
      folder: the folder to write.
      arrays: weights by path.
      spec: JSON-able facts.
      files: programs, see `export`, and others, by name.
      example: a few inputs.

    Raises:
      InputError: the folder holds something else.
    """
    folder = Path(folder)
    check_target(folder)
    weights = {name: np.array(value, order="C") for name, value in arrays.items()}
    tensors = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype)}
        for name, value in sorted(weights.items())
    }
    schema.check_json("spec", spec)
    with replacing_folder(folder) as new:
        (new / WEIGHTS).write_bytes(safetensors.save(weights))
        (new / EXAMPLE).write_bytes(safetensors.save(_by_path(example)))
        for name, content in files.items():
            (new / name).write_bytes(content)
        manifest.write(new, SPEC, {"format": FORMAT, **spec, "tensors": tensors})


def check_target(folder: Path) -> None:
    """Raises InputError if the folder holds something that is not to be replaced."""
    if there := [parent for parent in folder.parents if parent.is_file()]:
        raise InputError(f"{there[0]} is a file: give another path")
    if folder.exists() and not (folder / SPEC).is_file():
        raise InputError(
            f"{folder} exists and is no compact network: give another path"
        )


def check_names(files: Mapping[str, bytes]) -> None:
    """Raises InputError if further files are not to lie beside the artefact's own."""
    arguments.check_kind("files", files, Mapping, "a dictionary")
    own = (WEIGHTS, EXAMPLE, SPEC, FUNCTION, PROGRAM)
    for name, content in files.items():
        if Path(name).name != name or name in own or not isinstance(content, bytes):
            raise InputError(
                f"files takes bytes by the name of their file, and none of the "
                f"artefact's own: not so '{name}'"
            )


def read(
    folder: Path,
) -> tuple[dict[str, np.ndarray], Spec, Callable[[Any, Any], Any], Any]:
    """Reads an artefact: weights, facts, function and example.

    Raises:
      InputError: it is missing, damaged or changed; the file is named.
    """
    folder = Path(folder)
    if not (folder / SPEC).is_file():
        raise InputError(f"{folder} holds no compact network (no {SPEC})")
    try:
        spec = manifest.read(folder, SPEC, Spec, (WEIGHTS, EXAMPLE, FUNCTION))
    except InputError as error:
        raise InputError(f"{error}: the artefact was damaged or changed") from error
    arrays = _load(folder / WEIGHTS)
    found = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype)}
        for name, value in arrays.items()
    }
    if found != spec["tensors"]:
        raise InputError(f"{folder / WEIGHTS} holds other arrays than {SPEC} says")
    inputs = _load(folder / EXAMPLE)
    function, structure = _function(folder / FUNCTION)
    names = [*_by_path(jax.tree.unflatten(structure, range(structure.num_leaves)))]
    described = spec.get("inputs", {INPUTS: spec["input_shape"]})
    if not {name: list(np.shape(a)[1:]) for name, a in inputs.items()} == described or (
        inputs.keys() != {*names}
    ):
        raise InputError(f"{folder / EXAMPLE} holds no inputs as {SPEC} says")
    example = jax.tree.unflatten(structure, [inputs[name] for name in names])
    return arrays, spec, function, example


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.load_file(path)
    except Exception as error:  # of its parser, which a crafted file may break
        raise InputError(f"{path} is damaged ({first_line(error)})") from error


def _function(path: Path) -> tuple[Callable[[Any, Any], Any], Any]:
    """A program that `export` has made of (weights, inputs); the inputs' structure."""
    try:
        program = jax_export.deserialize(bytearray(path.read_bytes()))
        given, _ = jax.tree_util.treedef_children(program.in_tree)
        inputs: Any = jax.tree_util.treedef_children(given)[1]
    except Exception as error:  # of its parser, or of a version that is too old
        raise InputError(
            f"{path} cannot be read by JAX {jax.__version__} ({first_line(error)})"
        ) from error
    types = [aval.dtype for aval in program.in_avals[-inputs.num_leaves :]]

    def function(arrays: Any, batch: Any) -> Any:
        cast = (
            leaf.astype(dtype)
            for leaf, dtype in zip(jax.tree.leaves(batch), types, strict=True)
        )
        return program.call(arrays, jax.tree.unflatten(inputs, cast))

    return function, inputs


def export(function: Callable[..., Any], example: Any, *first: Any) -> bytes:
    """A function of a batch as StableHLO, batch size left open, for every platform.

    It says nothing of the files that the function was written in, so that it is the
    same wherever it is made.

    Args:
      function: (*first, batch) -> a tree of arrays, images on their first axis; what it
        closes over becomes part of the file. Nodes of other kinds than dictionaries,
        lists and tuples become dictionaries.
      example: a batch: an array or a tree of them.
      first: shapes of the arguments before it.

    Raises:
      InputError: a function that cannot be exported.
    """
    (size,) = jax_export.symbolic_shape("N")
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((size, *np.shape(a)[1:]), a.dtype), example
    )
    structure: Any = jax.tree.structure(example)
    if jax.tree.structure(plain(example)) != structure:
        raise InputError(
            "a network can be saved whose batch is made of dictionaries by text, lists "
            f"and tuples, not so {structure}"
        )

    def of_any_size(*arguments: Any) -> Any:
        *others, batch = arguments

        def one(x: Any) -> Any:
            few = jax.tree.map(lambda a: a[None], x)
            return plain(jax.tree.map(_of_one_image, function(*others, few)))

        return jax.vmap(one)(batch)

    locations = getattr(jax.config, _LOCATIONS)
    jax.config.update(_LOCATIONS, 0)
    try:
        program = jax_export.export(jax.jit(of_any_size), platforms=PLATFORMS)(
            *first, batch
        )
        return bytes(program.serialize())
    except InputError:
        raise
    except Exception as error:  # whatever the network's own operations raise
        raise InputError(
            f"the network cannot be exported: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    finally:
        jax.config.update(_LOCATIONS, locations)


def _of_one_image(output: Any) -> Any:
    """An output for one image, without its axis."""
    if output.shape[:1] != (1,):
        raise InputError(
            "the network cannot be exported: an output has no images on its first "
            f"axis, it is {list(output.shape)} for one image"
        )
    return output[0]
