"""What decides a network's weights, kept as config.json in its run directory."""

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprune.data.datasets import DATASETS
from jaxprune.errors import InputError, check_choice
from jaxprune.files import sha256, write_text

DTYPES = ("float32", "bfloat16")
# What a config.json that is older than a field means.
_BEFORE: dict[str, Any] = {"depth": 0}


def _field(
    description: str,
    *,
    at_least: float | None = None,
    default: Any = dataclasses.MISSING,
) -> Any:
    """A field, with its flag's help text and lowest value."""
    about = {"help": description, "at_least": at_least}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a network's weights; each field is also a flag.

    A recipe (`experiments.recipes`) gives the values that no flag does.
    """

    model: str = _field("Experiment.")
    dataset: str = _field(f"Dataset: {', '.join(DATASETS)}.")
    seed: int = _field("Seed of everything drawn. Default: 0.", default=0)
    dtype: str = _field(f"Computation type: {', '.join(DTYPES)}.", default="float32")
    widths: tuple[int, ...] = _field("Channels of the convolutions, comma-separated.")
    dense: tuple[int, ...] = _field("Units of the dense layers but the last.")
    depth: int = _field("Layers of cifar_resnet, 6n + 2.", at_least=8, default=0)
    epochs: int = _field("Training epochs.", at_least=0)
    train_batch_size: int = _field("Images in a training step.", at_least=1)
    learning_rate: float = _field("Adam's highest learning rate.", at_least=0.0)
    warmup_epochs: float = _field(
        "Epochs of linear warm-up.", at_least=0.0, default=1.0
    )
    train_split: str = _field("Images to train on. Default: train.", default="train")
    source_images: int = _field(
        "Training images that pairs are made of.", at_least=1, default=6000
    )
    train_pairs: int = _field("Training pairs.", at_least=1, default=0)
    test_pairs: int = _field("Test pairs.", at_least=1, default=0)
    pixel_mean: tuple[float, ...] = _field(
        "Subtracted from pixels, per channel or one."
    )
    pixel_std: tuple[float, ...] = _field("Divides pixels then, per channel or one.")
    init_from: str = _field("Keras .h5 file with weights to begin with.", default="")


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
    """Checks a new configuration; the recipe's has the right number of layers.

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
    if config.depth and not recipe.depth:
        raise InputError(f"{config.model} takes no --depth: leave it out")
    if min(config.pixel_std) <= 0:
        raise InputError(f"--pixel_std must be positive, got {list(config.pixel_std)}")
    if config.learning_rate <= 0:
        raise InputError(f"--learning_rate must be positive: {config.learning_rate}")


def check_same(config: Config, given: dict[str, Any], workdir: Path) -> None:
    """Raises InputError, with the differences, if values are not those of `config`."""
    differences = [
        f"{name} is {_short(getattr(config, name))}, not {_short(value)}"
        for name, value in given.items()
        if getattr(config, name) != value
    ]
    if differences:
        raise InputError(
            f"{workdir} holds another configuration: {'; '.join(differences)}. "
            "Give another --workdir, or leave these flags out"
        )


def write(config: Config, workdir: Path) -> None:
    """Writes config.json, which fixes what the run directory holds."""
    text = json.dumps(dataclasses.asdict(config), indent=2) + "\n"
    write_text(workdir / "config.json", text)


def read(path: Path) -> Config:
    """Reads config.json.

    Raises:
      InputError: it is damaged.
    """
    try:
        values: dict[str, Any] = {**_BEFORE, **json.loads(path.read_text())}
        missing = [f.name for f in dataclasses.fields(Config) if f.name not in values]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return Config(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error})") from error


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
