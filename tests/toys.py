"""Small networks with data, whose right result is known or easily worked out."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxprune.adapters.linen import called_layers
from jaxprune.ranking import criteria
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from random_data import random_split, random_variables


def network(model, shape):
    """(apply on uint8 images, variables)"""

    apply, variables = _network(model, shape)
    return apply, copy.deepcopy(variables)


@functools.lru_cache
def _network(model, shape):
    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    variables = random_variables(model, jnp.zeros((1, *shape)))
    # Every class as likely as the others, so that predictions depend on the image.
    last = called_layers(apply, variables, jnp.zeros((1, *shape)))[-1].name
    images = jnp.asarray(random_split(shape=shape).images)
    logits = jax.jit(apply)(variables, images)
    variables["params"][last]["bias"] -= np.asarray(logits.mean(0), np.float32)
    return apply, variables


class Planted(nn.Module):
    """Class = brighter colour plane. Channel 0 is dead, 1 constant, 2 and 3 decide."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (1, 1), name="only")(x))
        return nn.Dense(2, name="out")(x.mean((1, 2)))


def planted():
    kernel = np.zeros((1, 1, 2, 4), np.float32)
    kernel[0, 0, 0, 2] = kernel[0, 0, 1, 3] = 1
    out = np.array([[9, 9], [1, 1], [1, 0], [0, 1]], np.float32)
    variables = {
        "params": {
            "only": {"kernel": kernel, "bias": np.array([-1, 0.01, 0, 0], np.float32)},
            "out": {"kernel": out, "bias": np.zeros(2, np.float32)},
        }
    }
    rng = np.random.default_rng(0)
    split = random_split(n=40, shape=(3, 3, 2), classes=2)
    labels = split.labels
    images = split.images // 2
    images[np.arange(40), :, :, labels] += rng.integers(64, 128, (40, 1, 1), np.uint8)

    def apply(variables, x, **kwargs):
        return Planted().apply(variables, x.astype(jnp.float32) / 255, **kwargs)

    return apply, variables, type(split)(images, split.sources, labels, ("a", "b"))


def run_sweep(apply, variables, split, layer=None, tap="relu", **options):
    tapped = tap_layer(
        apply, variables, split, layer=layer, tap=tap, batch_size=8,
        mesh=options.pop("mesh", None),
    )  # fmt: skip
    scores = options.pop("scores", criteria.mean(tapped.mean_feature_map))
    return sweep_layer(tapped, scores, **options)
