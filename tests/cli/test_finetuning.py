"""What a smaller network is fine-tuned on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.cli.finetuning import Finetuning
from jaxprune.cli.settings import EpochSettings
from jaxprune.recipes import recipe
from jaxprune.training.augmentation import crop_and_flip
from random_data import random_split


class Run:
    """A job, as far as it is looked at."""

    def __init__(self, model):
        self.config = recipe.RECIPES[model].config

    def scale(self, images):
        return images.astype(jnp.float32)


@pytest.mark.parametrize("model", ["cifar_vgg", "digits_pair"])
@pytest.mark.parametrize(
    ("given", "blended"),
    [
        ({}, False),
        ({"distill": True}, True),
        ({"distill": True, "distill_weight": 0.9}, False),
    ],
)
def test_images_are_blended_where_no_label_is_used(model, given, blended):
    images = random_split(n=8, shape=(6, 6, 1)).images
    settings = EpochSettings(finetune_epochs=1, **given)
    tuning = Finetuning(Run(model), settings)
    found = np.asarray(jax.jit(tuning.inputs)(jax.random.key(0), images))
    own = augment_alone(model, images)
    assert np.array_equal(found, own) == (not blended)
    if blended:
        other = np.roll(own, 1, axis=0)
        low, high = np.minimum(own, other), np.maximum(own, other)
        assert (low - 1e-3 <= found).all() and (found <= high + 1e-3).all()


def augment_alone(model, images):
    if model == "digits_pair":
        return images.astype(np.float32)
    return np.asarray(crop_and_flip(jax.random.key(0), jnp.asarray(images)))
