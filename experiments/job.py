"""A run directory's data and network, ready for use."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn
from jax import Array

from experiments import cluster, config
from experiments.config import Config
from experiments.flags import value
from experiments.recipes import RECIPES, Recipe
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.errors import InputError, check_choice

FLAGS = flags.FLAGS


@dataclass(frozen=True)
class Job:
    """What the scripts work on: configuration, data and network."""

    config: Config
    workdir: Path
    splits: datasets.Splits
    model: nn.Module

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model."""
        return RECIPES[self.config.model]

    @property
    def l2(self) -> Mapping[str, float]:
        """Coefficient of each layer's L2 penalty in training."""
        return self.recipe.l2(self.config)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.workdir / "checkpoints"

    @property
    def image(self) -> Array:
        """One black image, for tracing."""
        return jnp.zeros((1, *self.splits.test.image_shape), jnp.uint8)

    def scale(self, images: Array) -> Array:
        """uint8 images -> what the network takes: (pixel - mean) / std."""
        mean = jnp.asarray(self.config.pixel_mean, jnp.float32)
        std = jnp.asarray(self.config.pixel_std, jnp.float32)
        return (images.astype(jnp.float32) - mean) / std

    def apply(self, variables: Any, images: Array, **kwargs: Any) -> Any:
        """Logits of uint8 images; `kwargs` go to the model's apply."""
        return self.model.apply(variables, self.scale(images), train=False, **kwargs)

    @cached_property
    def shapes(self) -> Any:
        """Shapes and types of the variables."""
        return jax.eval_shape(self.init)

    def init(self) -> Any:
        """Freshly drawn variables."""
        key = jax.random.key(self.config.seed)
        return jax.jit(self.model.init)(key, self.scale(self.image))

    def batch_size(self, split: Split) -> int:
        """Images to evaluate at once."""
        given = value("batch_size")
        if given is None:
            default = 128 if jax.default_backend() == "cpu" else 1024
            return min(default, len(split))
        if given > len(split):
            raise InputError(
                f"--batch_size={given} is more than the split's {len(split)} images"
            )
        return given


def load(*, train_imported: bool) -> Job:
    """Resolves the configuration, see `resolve`, and loads its data."""
    cluster.start()
    conf, workdir = resolve(train_imported=train_imported)
    splits = datasets.load(
        conf.dataset,
        data_dir=FLAGS.data_dir,
        cache_dir=FLAGS.cache_dir,
        seed=conf.seed,
        source_images=conf.source_images,
        train_pairs=conf.train_pairs,
        test_pairs=conf.test_pairs,
    )
    recipe = RECIPES[conf.model]
    _check_images(conf, recipe, splits.test.image_shape)
    model = recipe.build(conf, len(splits.test.class_names))
    return Job(conf, workdir, splits, model)


def resolve(*, train_imported: bool) -> tuple[Config, Path]:
    """The configuration that the flags and the run directory agree on, and that folder.

    In a new run directory, flags override the recipe. In one with a config.json,
    flags that are given must equal what it holds. Nothing is written.

    Args:
      train_imported: whether weights from --init_from are trained on by default.

    Raises:
      InputError: unknown model, values out of range, or a run directory of another
        configuration; the differences are listed.
    """
    given = {
        field.name: config.parse(field, FLAGS[field.name].value)
        for field in dataclasses.fields(Config)
        if FLAGS[field.name].value is not None
    }
    if FLAGS.model is not None:
        check_choice("model", FLAGS.model, RECIPES)
    elif FLAGS.workdir is None:
        raise InputError(f"say which network with --model: {', '.join(RECIPES)}")
    workdir = Path(FLAGS.workdir or f"runs/{FLAGS.model}")
    path = workdir / "config.json"
    if path.exists():
        conf = config.read(path)
        config.check_same(conf, given, workdir)
        return conf, workdir
    if FLAGS.model is None:
        raise InputError(f"{workdir} holds no run: say which with --model")
    if "init_from" in given and not train_imported:
        given.setdefault("epochs", 0)
    defaults = RECIPES[FLAGS.model].config
    conf = dataclasses.replace(defaults, **given)
    config.check(conf, defaults)
    return conf, workdir


def _check_images(
    conf: Config, recipe: Recipe, image_shape: tuple[int, int, int]
) -> None:
    """Raises InputError if the network or its pixel scaling does not fit the images."""
    height, width, channels = image_shape
    if min(height, width) < recipe.smallest_image:
        raise InputError(
            f"{conf.model} needs images of at least {recipe.smallest_image} pixels a "
            f"side, {conf.dataset} has {height} x {width}"
        )
    for name in ("pixel_mean", "pixel_std"):
        if len(getattr(conf, name)) not in (1, channels):
            raise InputError(
                f"--{name} takes 1 or {channels} numbers for {conf.dataset}, got "
                f"{list(getattr(conf, name))}"
            )


def kept(run: Job) -> str:
    """What an interrupted sweep leaves."""
    return (
        f"interrupted: the trained network is kept in {run.checkpoints}, and every "
        "finished sweep beside it; run the same command again to start this sweep anew"
    )
