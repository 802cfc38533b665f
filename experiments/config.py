"""What a run directory was made with: flags, recipe and config.json."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from experiments.recipes import RECIPES, Recipe
from jaxprune.data.datasets import DATASETS
from jaxprune.errors import InputError, check_choice
from jaxprune.files import sha256, write_text

FLAGS = flags.FLAGS
DTYPES = ("float32", "bfloat16")

flags.DEFINE_string("model", None, f"Experiment: {', '.join(RECIPES)}.")
flags.DEFINE_string("data_dir", None, "Prepared TFDS datasets. Default: TFDS's own.")
flags.DEFINE_string("cache_dir", None, "Decoded arrays. Default: ~/.cache/jaxprune.")

# The rest describes a network and its training, and is kept in config.json. None
# stands for what is there or, in a new run directory, for the recipe's value.
flags.DEFINE_string("dataset", None, f"Dataset: {', '.join(DATASETS)}.")
flags.DEFINE_integer("seed", None, "Seed of everything drawn. Default: 0.")
flags.DEFINE_string("dtype", None, f"Computation type: {', '.join(DTYPES)}.")
flags.DEFINE_list("widths", None, "Channels of the convolutions, comma-separated.")
flags.DEFINE_list("dense", None, "Units of the dense layers but the last.")
flags.DEFINE_integer("epochs", None, "Training epochs.", lower_bound=0)
flags.DEFINE_integer("train_batch_size", None, "Images in a training step.", 1)
flags.DEFINE_float("learning_rate", None, "Adam's highest learning rate.", 0.0)
flags.DEFINE_float("warmup_epochs", None, "Epochs of linear warm-up.", 0.0)
flags.DEFINE_string("train_split", None, "Images to train on. Default: train.")
flags.DEFINE_integer("source_images", None, "Training images that pairs draw on.", 1)
flags.DEFINE_integer("train_pairs", None, "Training pairs.", lower_bound=1)
flags.DEFINE_integer("test_pairs", None, "Test pairs.", lower_bound=1)
flags.DEFINE_list("pixel_mean", None, "Subtracted from pixels, per channel or one.")
flags.DEFINE_list("pixel_std", None, "Divides pixels then, per channel or one.")
flags.DEFINE_string("init_from", None, "Keras .h5 file with weights to begin with.")


@dataclass(frozen=True)
class Config:
    """Everything that decides a network's weights; kept as config.json."""

    model: str
    dataset: str
    seed: int
    dtype: str
    widths: tuple[int, ...]
    dense: tuple[int, ...]
    epochs: int
    train_batch_size: int
    learning_rate: float
    warmup_epochs: float
    train_split: str
    source_images: int
    train_pairs: int
    test_pairs: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    init_from: str

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model."""
        return RECIPES[self.model]


def resolve(*, train_imported: bool) -> tuple[Config, Path]:
    """The configuration that the flags and the run directory agree on.

    In a new run directory, flags override the recipe. In one with a config.json,
    flags that are given must equal what it holds. Nothing is written.

    Args:
      train_imported: whether weights from --init_from are trained on by default.

    Raises:
      InputError: unknown model, values out of range, or a run directory of another
        configuration; the differences are listed.
    """
    given = _given()
    if FLAGS.model is not None:
        check_choice("model", FLAGS.model, RECIPES)
    elif FLAGS.workdir is None:
        raise InputError(f"say which network with --model: {', '.join(RECIPES)}")
    workdir = Path(FLAGS.workdir or f"runs/{FLAGS.model}")
    path = workdir / "config.json"
    if path.exists():
        config = read(path)
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
        return config, workdir
    if FLAGS.model is None:
        raise InputError(f"{workdir} holds no run: say which with --model")
    if "init_from" in given and not train_imported:
        given.setdefault("epochs", 0)
    return _new(given), workdir


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
        values = json.loads(path.read_text())
        return Config(**{k: _frozen(v) for k, v in values.items()})
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error})") from error


def _given() -> dict[str, Any]:
    """Configuration values whose flags were given."""
    parse = {"widths": int, "dense": int, "pixel_mean": float, "pixel_std": float}
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        value: Any = FLAGS[field.name].value
        if value is None:
            continue
        if field.name in parse:
            try:
                value = tuple(parse[field.name](v) for v in value)
            except ValueError as error:
                raise InputError(
                    f"--{field.name} takes comma-separated numbers, got {value}"
                ) from error
        if field.name == "init_from":
            if not Path(value).is_file():
                raise InputError(f"--init_from: there is no file {value}")
            value = f"sha256:{sha256(Path(value))}"
        given[field.name] = value
    return given


def _new(given: dict[str, Any]) -> Config:
    recipe = RECIPES[given["model"]]
    defaults: dict[str, Any] = {
        "seed": 0,
        "dtype": "float32",
        "widths": tuple(recipe.network.widths),
        "dense": tuple(recipe.network.dense[:-1]),
        "train_split": "train",
        "init_from": "",
    }
    from_recipe = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(Config)
        if hasattr(recipe, field.name)
    }
    config = Config(**{**from_recipe, **defaults, **given})
    check_choice("dataset", config.dataset, DATASETS)
    check_choice("dtype", config.dtype, DTYPES)
    for name in ("widths", "dense"):
        values = getattr(config, name)
        expected = len(defaults[name])
        if len(values) != expected or min(values) < 1:
            raise InputError(
                f"--{name} of {config.model} takes {expected} positive numbers, "
                f"got {list(values)}"
            )
    if min(config.pixel_std) <= 0:
        raise InputError(f"--pixel_std must be positive, got {list(config.pixel_std)}")
    if config.learning_rate <= 0:
        raise InputError(f"--learning_rate must be positive: {config.learning_rate}")
    return config


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
