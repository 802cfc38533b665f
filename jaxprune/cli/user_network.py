"""A user's network on the command line: --model=my_package.my_module:build.

`build` takes nothing and returns the linen model, its trained variables, an example of
what it takes, [1, H, W, C], and the keyword arguments of its call, such as
{"train": False}. It is imported from the current folder, as `python -m` would.
"""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from jaxprune._base import arguments, manifest, processes, schema
from jaxprune._base.errors import InputError, check_choice, first_line
from jaxprune._base.files import sha256
from jaxprune.adapters.linen import from_linen, plain
from jaxprune.cli import cluster
from jaxprune.cli.settings import NetworkSettings
from jaxprune.data import datasets, npz, slices
from jaxprune.data import images as folders
from jaxprune.data.datasets import Splits
from jaxprune.data.images import ImageFolder
from jaxprune.graph.network import Network
from jaxprune.graph.trace import trace
from jaxprune.recipes import config
from jaxprune.recipes.config import Config, UserConfig
from jaxprune.recipes.recipe import Defaults

DEFAULTS = Defaults(criterion="abs_mean", tap=None, fill="linear")
_FORM = "(linen model, variables, example, keyword arguments of the model's call)"
_FILE = "sha256:"


class UserNetwork(NamedTuple):
    """A network that the user's function returned.

    Attributes:
      network: the network, its weights as NumPy arrays.
      shape: of the images that it is given, H, W, C.
      classes: number of classes.
    """

    network: Network
    shape: tuple[int, ...]
    classes: int


def parse(name: str) -> tuple[str, str]:
    """Module and function.

    >>> parse("nets.small:build")
    ('nets.small', 'build')
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise InputError(
            f"--model={name}: a network of your own is my_package.my_module:build"
        )
    return module, function


def build(name: str, image_size: int | None = None) -> UserNetwork:
    """Imports the module, calls the function, and looks at what it returns.

    Args:
      name: my_package.my_module:build.
      image_size: height and width of the images; by default those of the example.

    Raises:
      InputError: one of the three fails; names what, and where in the user's code.
    """
    found = _call(f"{name}()", _function(name))
    if not isinstance(found, tuple | list) or len(found) != 4:
        raise InputError(f"{name}() must return {_FORM}, got {_described(found)}")
    model, variables, example, call = found
    try:
        if not isinstance(model, nn.Module):
            raise InputError(
                f"the model must be a flax.linen Module, got {_described(model)}"
            )
        arguments.check_variables(variables)
        variables = jax.tree.map(np.asarray, plain(variables))
        schema.check_json("the keyword arguments", call)
        shape = _shape(example)
        if image_size is not None:
            shape = (image_size, image_size, shape[2])
        network = from_linen(model, variables, **call)
        classes = _classes(network, shape)
    except InputError as error:
        raise InputError(f"{name}(): {error}") from None
    return UserNetwork(network, shape, classes)


def _function(name: str) -> Callable[[], Any]:
    module_name, function = parse(name)
    if os.getcwd() not in sys.path:  # where the console command has another folder
        sys.path.insert(0, os.getcwd())
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


def _shape(example: Any) -> tuple[int, ...]:
    """H, W, C of what the network takes."""
    shape, dtype = np.shape(example), getattr(example, "dtype", None)
    if len(shape) != 4 or dtype not in (np.float32, np.float64):
        raise InputError(
            "the example must be float32 images [1, H, W, C], which is what the "
            f"network is given; got {_described(example)}"
        )
    return shape[1:]


def _classes(network: Network, shape: tuple[int, ...]) -> int:
    """How many the network tells apart, by its logits of two images."""
    images = jax.ShapeDtypeStruct((2, *shape), np.float32)
    trace(network.function, network.params, images)  # or says why that cannot be
    logits = jax.eval_shape(network.function, network.params, images)
    if getattr(logits, "ndim", 0) != 2 or logits.shape[0] != 2:
        got = jax.tree.map(lambda leaf: list(leaf.shape), logits)
        raise InputError(f"the network must return logits [N, classes], got {got}")
    return logits.shape[1]


def _described(value: Any) -> str:
    """A short description of a value, for people."""
    if isinstance(value, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in value)
        return f"a {type(value).__name__} of {len(value)}: {kinds}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{list(value.shape)} of {value.dtype}"
    return f"a {type(value).__name__}"


def folder(settings: NetworkSettings) -> ImageFolder | None:
    """The folder of images that --data names; None where it names something else.

    Raises:
      InputError: it holds something else, or --image_size has no folder to go with.
    """
    data = settings.data
    if data is not None and data not in datasets.DATASETS and Path(data).is_dir():
        return folders.find(data)
    if settings.image_size is not None:
        raise InputError(
            "--image_size is of a folder of images, and --data names "
            f"{'none' if data is None else data}"
        )
    return None


def given(
    settings: NetworkSettings,
    name: str,
    network: UserNetwork,
    folder: ImageFolder | None,
) -> dict[str, Any]:
    """The fields of the configuration that settings, weights and images fix.

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
    values["weights"] = f"{_FILE}{manifest.fingerprint(network.network.params)}"
    everywhere = processes.gather(np.frombuffer(values["weights"].encode(), np.uint8))
    if len({text.tobytes() for text in everywhere}) > 1:
        raise InputError(f"{name}() returned other weights in another process")
    if settings.data is not None:
        values["dataset"] = settings.data
        if folder is not None:
            values["dataset"] = f"{_FILE}{folder.fingerprint(network.shape[0])}"
        elif _is_file(settings.data):
            values["dataset"] = f"{_FILE}{sha256(_existing(settings.data))}"
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


def images(
    settings: NetworkSettings,
    conf: UserConfig,
    network: UserNetwork,
    folder: ImageFolder | None,
) -> Splits:
    """The images that the network is tested on, and those that fits are made on.

    Raises:
      InputError: they are not to be had, or not what the network takes.
    """
    data = settings.data or conf.dataset
    if folder is not None:
        size = network.shape[0]
        _check(conf, data, network, (size, size, 3), folder.class_names)
        _check_splits(settings, folder.files)
        with cluster.progress(
            total=len(folder), unit="img", desc="decoding", delay=1
        ) as bar:
            return folders.decode(
                folder, size, cache_dir=settings.cache_dir, on_images=bar.update
            )
    if data.startswith(_FILE):
        raise InputError("the images are a file's or folder's: say which with --data")
    if _is_file(data):
        splits = npz.load(_existing(data), network.classes, conf.seed)
    else:
        splits = datasets.load_any(
            data,
            data_dir=settings.data_dir,
            cache_dir=settings.cache_dir,
            seed=conf.seed,
        )
    first = splits.first
    _check(conf, data, network, first.image_shape, first.class_names)
    _check_splits(settings, splits.names)
    return splits


def _check_splits(settings: NetworkSettings, names: Collection[str]) -> None:
    """Raises InputError where a flag names a split that there is not."""
    for flag in ("rank_split", "eval_split", "select_split", "calibration_split"):
        which = getattr(settings, flag, None)  # of those that the command has
        try:
            for part in slices.parse(which) if which is not None else ():
                check_choice("split", part.name, names)
        except InputError as error:
            raise InputError(f"--{flag}: {error}") from None


def _check(
    conf: UserConfig,
    data: str,
    network: UserNetwork,
    shape: tuple[int, ...],
    names: tuple[str, ...],
) -> None:
    """Raises InputError if images or classes are not what the network takes."""
    if shape != network.shape:
        raise InputError(
            f"{data} has images [{', '.join(map(str, shape))}], and {conf.model} takes "
            f"[{', '.join(map(str, network.shape))}], by its example"
        )
    if len(names) != network.classes:
        raise InputError(
            f"{data} has {len(names)} classes, and {conf.model} tells "
            f"{network.classes} apart"
        )


def _is_file(data: str) -> bool:
    """Whether --data names a file, and no dataset of TFDS."""
    return data.endswith(".npz") or "/" in data or Path(data).is_file()


def _existing(data: str) -> Path:
    if not Path(data).is_file():
        kind = "file" if data.endswith(".npz") else "file or folder"
        raise InputError(f"--data: there is no {kind} {data}")
    return Path(data)
