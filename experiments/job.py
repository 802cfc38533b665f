"""A run directory's data and network, ready for use."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn
from jax import Array

from experiments import cluster
from experiments import config as config_lib
from experiments.config import Config
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_integer(
    "batch_size", None, "Images evaluated at once. Default: 128 on CPU, or 1024.", 1
)


@dataclass(frozen=True)
class Job:
    """What the scripts work on: configuration, data and network."""

    config: Config
    workdir: Path
    splits: datasets.Splits
    model: nn.Module

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.workdir / "checkpoints"

    @property
    def example(self) -> Array:
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
        return jax.jit(self.model.init)(key, self.scale(self.example))

    def batch_size(self, split: Split) -> int:
        """Images to evaluate at once."""
        if FLAGS.batch_size is None:
            default = 128 if jax.default_backend() == "cpu" else 1024
            return min(default, len(split))
        if FLAGS.batch_size > len(split):
            raise InputError(
                f"--batch_size={FLAGS.batch_size} is more than the split's "
                f"{len(split)} images"
            )
        return FLAGS.batch_size


def load(*, train_imported: bool) -> Job:
    """Resolves the configuration and loads its data; see `config.resolve`."""
    cluster.start()
    config, workdir = config_lib.resolve(train_imported=train_imported)
    splits = datasets.load(
        config.dataset,
        data_dir=FLAGS.data_dir,
        cache_dir=FLAGS.cache_dir,
        seed=config.seed,
        source_images=config.source_images,
        train_pairs=config.train_pairs,
        test_pairs=config.test_pairs,
    )
    height, width, channels = splits.test.image_shape
    recipe = config.recipe
    if min(height, width) < recipe.smallest_image:
        raise InputError(
            f"{config.model} needs images of at least {recipe.smallest_image} pixels a "
            f"side, {config.dataset} has {height} x {width}"
        )
    for name in ("pixel_mean", "pixel_std"):
        if len(getattr(config, name)) not in (1, channels):
            raise InputError(
                f"--{name} takes 1 or {channels} numbers for {config.dataset}, got "
                f"{list(getattr(config, name))}"
            )
    model = recipe.network(
        widths=config.widths,
        dense=(*config.dense, len(splits.test.class_names)),
        dtype=jnp.dtype(config.dtype),
    )
    return Job(config, workdir, splits, model)
