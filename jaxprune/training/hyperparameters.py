"""The numbers and choices that decide how a network is fine-tuned."""

from dataclasses import dataclass

import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, check_choice
from jaxprune.training import losses

# Modes of BatchNorm: it keeps its statistics, or uses each batch's.
EVALUATION, TRAINING = MODES = "evaluation", "training"
_LARGEST_SEED = 2.0**32 - 1


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """How a network is fine-tuned; see `jaxprune.finetune`.

    Attributes:
      epochs: passes over the images.
      batch_size: images in a step.
      learning_rate: Adam's first; None where there is another optimizer.
      temperature: that logits are divided by.
      weight: of the whole network in the loss, in [0, 1].
      blend: whether images are blended.
      batch_norm: BatchNorm's mode.
      momentum: share of its statistics that is kept in a step.
      seed: of all that is drawn.
    """

    epochs: int
    batch_size: int
    learning_rate: float | None
    temperature: float
    weight: float
    blend: bool
    batch_norm: str
    momentum: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            arguments.check_count(name, getattr(self, name))
        for name, highest in (
            ("learning_rate", 1e3), ("temperature", 1e6), ("weight", 1.0),
            ("momentum", 1.0), ("seed", _LARGEST_SEED),
        ):  # fmt: skip
            value = getattr(self, name)
            if name != "learning_rate" or value is not None:
                arguments.check_number(name, value, 0.0, highest)
        arguments.check_kind("seed", self.seed, int | np.integer, "an integer")
        losses.check_distillation(self.temperature, self.weight)
        check_choice("batch_norm", self.batch_norm, MODES)
        if self.blend and self.weight < 1:
            raise InputError("blended images have no labels: blend takes weight=1")
