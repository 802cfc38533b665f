"""A user's network on the command line.

--model=my_package.my_module:build names a function that takes nothing and returns one
of

    (linen model, variables, example [1, H, W, C], keyword arguments of its call)
    a jaxprune.Network with an example, from any framework or none
    a Keras model

The module is imported from the current folder, as `python -m` would. --model=net.keras,
or net.h5, is a file that Keras has saved.
"""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from jaxprune._base import arguments, manifest, processes, schema
from jaxprune._base.errors import InputError, check_choice, first_line
from jaxprune._base.files import sha256
from jaxprune.adapters.linen import from_linen
from jaxprune.adapters.networks import of_keras
from jaxprune.cli.settings import NetworkSettings
from jaxprune.data import datasets, npz
from jaxprune.graph.network import Network
from jaxprune.graph.trace import shape_of, trace
from jaxprune.recipes import config
from jaxprune.recipes.config import AnyConfig, Config, UserConfig
from jaxprune.recipes.recipe import Defaults
from jaxprune.tasks.classes import Classification, classification
from jaxprune.tasks.ready import by_name
from jaxprune.tasks.task import Task

DEFAULTS = Defaults(criterion="abs_mean", tap=None, fill="linear")
_FORM = (
    "a jaxprune.Network with an example, a Keras model, or (linen model, variables, "
    "example, keyword arguments of the model's call)"
)
SHA256 = "sha256:"
_COLOURS = 3  # channels of the images in a folder


class UserNetwork(NamedTuple):
    """A network that the user's function returned, or that a file holds.

    Attributes:
      network: the network, its weights as NumPy arrays.
      shape: of an image as it takes it, [H, W, C] or [C, H, W]; None where it takes
        any size.
      classes: number of classes; None where its outputs are none.
      weights: SHA-256 of its weights, or of its file.
      inputs: shapes [1, ...] and types of the arrays that it takes, where it takes
        several, or one that is in a tree; None where it takes images.
    """

    network: Network
    shape: tuple[int | None, ...]
    classes: int | None
    weights: str
    inputs: Any = None

    def channels_first(self, image: tuple[int, ...]) -> bool | None:
        """Whether it takes images [H, W, C] of this shape as [C, H, W].

        None where it does not take them at all.
        """
        moved = (image[-1], *image[:-1])
        for first, shape in ((False, image), (True, moved)):
            pairs = zip(self.shape, shape, strict=True)
            if all(own in (None, size) for own, size in pairs):
                return first
        return None

    @property
    def side(self) -> int:
        """Height and width of a folder's images.

        Raises:
          InputError: it takes any.
        """
        size = self.shape[1 if _is_colours_first(self.shape) else 0]
        if size is None:
            raise InputError(
                "the network takes images of any size: say which with --image_size"
            )
        return size


def parse(name: str) -> tuple[str, str]:
    """Module and function.

    >>> parse("nets.small:build")
    ('nets.small', 'build')
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise InputError(
            f"--model={name}: a network of your own is my_package.my_module:build, or "
            "a file of Keras's, net.keras"
        )
    return module, function


def folder_name(name: str) -> str:
    """The name of a network's run directory.

    >>> folder_name("nets.small:build"), folder_name("there/net.keras")
    ('nets.small.build', 'net.keras')

    Raises:
      InputError: it is no name of a network.
    """
    return Path(name).name if config.is_keras_file(name) else ".".join(parse(name))


def task_of(settings: NetworkSettings, saved: AnyConfig | None) -> Task:
    """The task that the flags name or, where they do not, the run directory's.

    Raises:
      InputError: another task than segmentation is to ignore a target.
    """
    kept = saved if isinstance(saved, UserConfig) else None
    name = settings.task or (kept.task if kept is not None else "classification")
    output = settings.output or (kept.output if kept is not None else None)
    ignore = settings.ignore
    if ignore is None and kept is not None:
        ignore = kept.ignore
    if ignore is not None and name != "segmentation":
        raise InputError(f"--ignore={ignore} is for --task=segmentation, not {name}")
    return by_name(name, output, ignore)


def build(
    name: str, image_size: int | None = None, task: Task | None = None
) -> UserNetwork:
    """Reads the file, or calls the function and looks at what it returns.

    Args:
      name: my_package.my_module:build, or a file.
      image_size: height and width of the images; by default those of the example.
      task: what its outputs are for; by default classification.

    Raises:
      InputError: something fails; names what, and where in the user's code.
    """
    if config.is_keras_file(name):
        what, network, weights = name, of_keras(name), sha256(Path(name))
    else:
        what, weights = f"{name}()", ""
        with _without_arguments():
            found = _call(what, _function(name))
    try:
        if not weights:
            network = _as_network(found)
            weights = manifest.fingerprint(network.params)
        task = task or classification()
        if inputs := _inputs(network):
            classes = _classes(network, _few(inputs), task)
            return UserNetwork(network, (), classes, weights, inputs)
        shape = _shape(network)
        if image_size is not None:
            first = _is_colours_first(shape)
            size, channels = (image_size, image_size), shape[0 if first else 2]
            shape = (channels, *size) if first else (*size, channels)
        if None in shape:
            classes = _keras_classes(network, task)
        else:
            images = jax.ShapeDtypeStruct((2, *shape), np.float32)
            classes = _classes(network, images, task)
        return UserNetwork(network, shape, classes, weights)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


@contextmanager
def _without_arguments() -> Iterator[None]:
    """The user's code finds no command line: its flags are of this command."""
    given = sys.argv
    sys.argv = given[:1]
    try:
        yield
    finally:
        sys.argv = given


def _function(name: str) -> Callable[[], Any]:
    module_name, function = parse(name)
    if os.getcwd() not in sys.path:  # where the console command has another folder
        sys.path.insert(0, os.getcwd())
    if "keras" not in sys.modules:  # which the module may import
        os.environ.setdefault("KERAS_BACKEND", "jax")
    parents = module_name.split(".")
    known = {".".join(parents[: i + 1]) for i in range(len(parents))}
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in known:
            raise _failed(f"importing {module_name}", error) from error
        raise InputError(
            f"--model={name}: there is no module {error.name} in {os.getcwd()}, nor "
            "among those installed"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(f"importing {module_name}", error) from error
    there = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
    if not hasattr(module, function):
        check_choice(f"function of {module_name}", function, there)
    found: Callable[[], Any] = getattr(module, function)
    if not callable(found):
        raise InputError(f"{name} must be a function, got {_described(found)}")
    return found


def _call(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _failed(what, error) from error


def _failed(what: str, error: BaseException) -> InputError:
    """One line: what went wrong in the user's code, and the last place in it."""
    places = traceback.extract_tb(error.__traceback__)
    ours = (__file__, importlib.__file__)
    where = [p for p in places if p.filename not in ours and p.filename[0] != "<"]
    here = [p for p in where if Path(p.filename).is_relative_to(os.getcwd())] or where
    place = f" ({here[-1].filename}, line {here[-1].lineno})" if here else ""
    return InputError(
        f"{what} failed: {type(error).__name__}: {first_line(error)}{place}"
    )


def _as_network(found: Any) -> Network:
    """What a user's function returned, as a network with NumPy arrays.

    Raises:
      InputError: it is none of the three.
    """
    if isinstance(found, Network):
        network = found
    elif isinstance(found, tuple | list) and len(found) == 4:
        network = _of_linen(*found)
    else:
        if not _is_keras(found):
            got = arguments.known_form(found) or _described(found)
            raise InputError(f"it must return {_FORM}, got {got}")
        network = of_keras(found)
    try:
        return network.with_params(jax.tree.map(np.asarray, network.params))
    except TypeError as error:
        raise InputError(
            f"the parameters must be arrays of numbers: {first_line(error)}"
        ) from error


def _is_keras(value: Any) -> bool:
    """Whether it is a Keras model; Keras is not imported for that."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, keras.Model)


def _of_linen(model: Any, variables: Any, example: Any, call: Any) -> Network:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model must be a flax.linen Module, got {_described(model)}"
        )
    arguments.check_variables(variables)
    schema.check_json("the keyword arguments", call)
    return from_linen(model, variables, example, **call)


def _shape(network: Network) -> tuple[int | None, ...]:
    """The shape of an image as the network takes it; None where a size is open.

    Raises:
      InputError: it says no shape, or not that of images.
    """
    is_keras = getattr(network.origin, "framework", "") == "Keras model"
    inputs: Any = getattr(network.origin.model, "inputs", ()) if is_keras else ()
    if network.example is None and not inputs:
        raise InputError(
            "the network must have an example of the images that it takes: "
            "jaxprune.Network(..., example=images)"
        )
    example = inputs[0] if network.example is None else network.example
    shape = tuple(getattr(example, "shape", ()))
    dtype = str(getattr(example, "dtype", None))
    if len(shape) != 4 or dtype not in ("float32", "float64"):
        raise InputError(
            "the example must be float32 images [1, H, W, C], which is what the "
            f"network is given; got {_described(example)}"
        )
    return shape[1:]


def _is_colours_first(shape: tuple[int | None, ...]) -> bool:
    """Whether images in colours are taken as [C, H, W]."""
    return shape[0] == _COLOURS and shape[2] != _COLOURS


def _inputs(network: Network) -> Any:
    """Shapes and types of the arrays in its example; None where that is one array.

    Raises:
      InputError: they have no images on their first axes, or names that a file's other
        arrays have.
    """
    example = network.example
    structure: Any = jax.tree.structure(example)
    if example is None or jax.tree_util.treedef_is_leaf(structure):
        return None
    found = jax.tree.map(lambda a: shape_of(np.asarray(a)[:1]), example)
    npz.input_names(found)
    return found


def _few(inputs: Any) -> Any:
    """Shapes of a batch of two."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), inputs
    )


def _classes(network: Network, images: Any, task: Task) -> int | None:
    """How many the network tells apart, by its logits of two images.

    None where its outputs are no classes.

    Args:
      network: the network.
      images: their shapes.
      task: what its outputs are for.
    """
    network = task.applied(network)
    trace(network.function, network.params, images)  # or says why that cannot be
    if not isinstance(task, Classification):
        return None
    logits = jax.eval_shape(network.function, network.params, images)
    if getattr(logits, "ndim", 0) != 2 or logits.shape[0] != 2:
        got = jax.tree.map(lambda leaf: list(leaf.shape), logits)
        raise InputError(
            f"the network must return logits [N, classes], got {got}: --output names a "
            "part that is, --task says what other outputs are for"
        )
    return int(logits.shape[1])


def _keras_classes(network: Network, task: Task) -> int:
    """The same of a Keras model that takes images of any size, as it says itself."""
    if not isinstance(task, Classification):
        raise InputError(f"task {task.name} needs images of one size: give an example")
    found = tuple(network.origin.model.output_shape)
    if len(found) != 2 or not isinstance(found[1], int):
        raise InputError(f"the network must return logits [N, classes], got {found}")
    return found[1]


def _described(value: Any) -> str:
    """A short description of a value, for people."""
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in value)
        return f"a {type(value).__name__} of {len(value)}: {kinds}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{list(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"


def given(
    settings: NetworkSettings, name: str, network: UserNetwork, dataset: str | None
) -> dict[str, Any]:
    """The fields of the configuration that settings, weights and images fix.

    Args:
      settings: the flags.
      name: of the network.
      network: the network.
      dataset: the images as the configuration has them; None where no flag says.

    Raises:
      InputError: flags that only an experiment has, or processes that were given
        different weights.
    """
    fields = {field.name: field for field in dataclasses.fields(UserConfig)}
    values: dict[str, Any] = {"model": name}
    for field in dataclasses.fields(Config):
        if field.name not in settings.overrides:
            continue
        if field.name == "dataset":
            raise InputError(f"--dataset is an experiment's: give {name} --data")
        if field.name not in fields:
            raise InputError(f"--{field.name} is an experiment's: {name} has its own")
        values[field.name] = config.parse(field, settings.overrides[field.name])
    values["weights"] = f"{SHA256}{network.weights}"
    everywhere = processes.gather(np.frombuffer(values["weights"].encode(), np.uint8))
    if len({text.tobytes() for text in everywhere}) > 1:
        raise InputError(f"{name} has other weights in another process")
    if dataset is not None:
        values["dataset"] = dataset
    for flag in ("task", "output", "ignore"):
        if getattr(settings, flag) is not None:
            values[flag] = getattr(settings, flag)
    return values


def configure(given: Mapping[str, Any]) -> UserConfig:
    """The configuration of a new run directory.

    Raises:
      InputError: nothing says on which images, or numbers out of range.
    """
    if "dataset" not in given:
        raise InputError(
            f"say on which images with --data: an .npz file (images [N, H, W, C], "
            "labels [N]), a folder of images, one subfolder for each class, or a TFDS "
            f"name, such as {datasets.DATASETS[0]}"
        )
    conf = UserConfig(**given)
    config.check_numbers(conf)
    return conf
