"""The configuration of a network's weights, config.json in its run directory.

Either an experiment's, which are trained here, or those of a user's network.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict

from jaxprune._base import schema
from jaxprune._base.errors import InputError, check_choice
from jaxprune._base.files import sha256, write_text
from jaxprune.data.datasets import DATASETS

DTYPES = ("float32", "bfloat16")
# Of what draws random numbers; scikit-learn takes no more.
_LARGEST_SEED = 2**32 - 1


def flag(
    description: str,
    *,
    at_least: int | float | None = None,
    at_most: int | float | None = None,
    choices: Sequence[str] = (),
    default: Any = dataclasses.MISSING,
) -> Any:
    """A field, with its flag's help text and the values that it may have."""
    about = {
        "help": description, "at_least": at_least, "at_most": at_most,
        "choices": choices,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a network's weights; each field is also a flag.

    A recipe (`jaxprune.recipes.recipe`) gives the values that no flag does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: str = flag("Experiment.")
    dataset: str = flag(f"Dataset: {', '.join(DATASETS)}.")
    seed: int = flag("Seed of everything drawn. Default: 0.", at_least=0, default=0)
    dtype: str = flag(f"Computation type: {', '.join(DTYPES)}.", default="float32")
    widths: tuple[int, ...] = flag("Channels of the convolutions, comma-separated.")
    dense: tuple[int, ...] = flag("Units of the dense layers but the last.")
    depth: int = flag("Layers of cifar_resnet, 6n + 2.", at_least=8, default=0)
    epochs: int = flag("Training epochs.", at_least=0)
    train_batch_size: int = flag("Images in a training step.", at_least=1)
    learning_rate: float = flag("Adam's highest learning rate.", at_least=0.0)
    warmup_epochs: float = flag("Epochs of linear warm-up.", at_least=0.0, default=1.0)
    train_split: str = flag("Images to train on. Default: train.", default="train")
    source_images: int = flag(
        "Training images that pairs are made of.", at_least=1, default=6000
    )
    train_pairs: int = flag("Training pairs.", at_least=1, default=0)
    test_pairs: int = flag("Test pairs.", at_least=1, default=0)
    pixel_mean: tuple[float, ...] = flag("Subtracted from pixels, per channel or one.")
    pixel_std: tuple[float, ...] = flag("Divides pixels then, per channel or one.")
    init_from: str = flag("Keras file with weights to begin with.", default="")


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """The configuration of a user's network: function or file, weights and images.

    It comes trained, so that nobody has said on what; it is given float32.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    dtype: ClassVar[str] = "float32"
    train_split: ClassVar[str | None] = None

    model: str = flag("The function that returns it, or its file; as it was given.")
    weights: str = flag("Their SHA-256; of a file, that of all of it.")
    dataset: str = flag("A TFDS name, or the SHA-256 of a file or folder.")
    seed: int = flag("Seed of everything drawn.", at_least=0, default=0)
    pixel_mean: tuple[float, ...] = flag("Subtracted from pixels.", default=(0.0,))
    pixel_std: tuple[float, ...] = flag("Divides pixels then.", default=(1.0,))
    task: str = flag("What its outputs are for.", default="classification")
    output: str | None = flag("Part of its output that this goes by.", default=None)
    ignore: int | None = flag("Target of pixels that do not count.", default=None)


AnyConfig = Config | UserConfig
# Fields that the config.json of earlier versions lacks.
_LATER = ("task", "output", "ignore")


def is_own(model: str) -> bool:
    """Whether a network is a user's: `my_package.my_module:build`, or a Keras file."""
    return ":" in model or is_keras_file(model)


def is_keras_file(model: str) -> bool:
    """Whether a network is that of a file that Keras has saved."""
    return model.endswith((".keras", ".h5"))


def parse(field: dataclasses.Field, value: Any) -> Any:
    """A flag's value as the field holds it.

    Raises:
      InputError: no numbers where there must be some, or a file that is missing.
    """
    if field.name == "init_from":
        if not Path(value).is_file():
            raise InputError(f"--init_from: there is no file {value}")
        return f"sha256:{sha256(Path(value))}"
    if typing.get_origin(field.type) is not tuple:
        return value
    number = typing.get_args(field.type)[0]
    try:
        return tuple(number(text) for text in value)
    except ValueError as error:
        raise InputError(
            f"--{field.name} takes comma-separated numbers, got {value}"
        ) from error


def check(config: Config, recipe: Config) -> None:
    """Checks a configuration; the recipe's has the right number of layers.

    Raises:
      InputError: a value that is unknown or out of range.
    """
    check_choice("dataset", config.dataset, DATASETS)
    check_choice("dtype", config.dtype, DTYPES)
    for name in ("widths", "dense"):
        values = getattr(config, name)
        expected = len(getattr(recipe, name))
        if len(values) != expected or min(values, default=1) < 1:
            raise InputError(
                f"--{name} of {config.model} takes {expected} positive numbers, "
                f"got {list(values)}"
            )
    check_numbers(config)
    if config.depth and not recipe.depth:
        raise InputError(f"{config.model} takes no --depth: leave it out")
    if config.learning_rate <= 0:
        raise InputError(f"--learning_rate must be positive: {config.learning_rate}")


def check_numbers(config: AnyConfig) -> None:
    """Raises InputError if a number is not finite, or out of range."""
    for field in dataclasses.fields(config):
        _check_number(field, getattr(config, field.name))
    if min(config.pixel_std, default=0) <= 0:
        raise InputError(f"--pixel_std must be positive, got {list(config.pixel_std)}")
    if config.seed > _LARGEST_SEED:
        raise InputError(f"--seed={config.seed}: the largest is {_LARGEST_SEED}")


def _check_number(field: dataclasses.Field, value: Any) -> None:
    """Raises InputError if numbers are not finite, or too low."""
    numbers = value if isinstance(value, tuple) else (value,)
    if isinstance(value, str) or value == field.default:
        return
    lowest = field.metadata["at_least"]
    lowest = -np.inf if lowest is None else lowest
    if not all(np.isfinite(number) and number >= lowest for number in numbers):
        least = "" if lowest == -np.inf else f" of at least {lowest:g}"
        raise InputError(f"--{field.name} takes finite numbers{least}, got {value}")


def differences(config: AnyConfig, given: Mapping[str, Any]) -> list[str]:
    """Which values are not those of `config`."""
    made_with = dataclasses.asdict(config)
    return [
        f"{name} is {_short(made_with.get(name))}, not {_short(value)}"
        for name, value in given.items()
        if made_with.get(name) != value
    ]


def check_same(config: AnyConfig, given: Mapping[str, Any], workdir: Path) -> None:
    """Raises InputError, with the differences, if values are not those of `config`."""
    if found := differences(config, given):
        raise InputError(
            f"{workdir} holds another configuration: {'; '.join(found)}. "
            "Give another --workdir, or leave these flags out"
        )


def write(config: AnyConfig, workdir: Path) -> None:
    """Writes config.json, which fixes what the run directory holds."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    write_text(workdir / "config.json", text)


def read(path: Path) -> AnyConfig:
    """Reads config.json.

    Raises:
      InputError: it is damaged.
    """
    return of_facts(schema.read(path, dict[str, Any]), path)


def of_facts(facts: Mapping[str, Any], where: Path) -> AnyConfig:
    """The configuration with these values, which were read from a file.

    Raises:
      InputError: it is damaged.
    """
    own = is_own(str(facts.get("model")))
    kind: type[AnyConfig] = UserConfig if own else Config
    needed = [f for f in dataclasses.fields(kind) if f.name not in _LATER]
    missing = [f.name for f in needed if f.name not in facts]
    if missing:
        raise InputError(f"{where} is damaged: it lacks {', '.join(missing)}")
    return schema.check({**facts}, kind, where)


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
