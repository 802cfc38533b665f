"""Random images, and random variables for a network."""

import jax
import numpy as np

from jaxprune.data.splits import Split


def random_split(n=23, shape=(8, 8, 3), classes=4, seed=0) -> Split:
    """Random images that differ in more than noise, every class present."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    pattern = rng.uniform(0, 1, (classes + 3, *shape))
    mixture = rng.dirichlet(np.full(len(pattern), 0.3), n)
    images = (255 * np.tensordot(mixture, pattern, 1)).astype(np.uint8)
    names = tuple(f"class {c}" for c in range(classes))
    return Split(images, np.arange(n)[:, None], labels, names)


def random_variables(model, x, seed=0):
    """Variables in which no BatchNorm is the identity and no bias is zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = next(key.key for key in reversed(path) if hasattr(key, "key"))
        if name == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            value = rng.normal(0, (2 / fan_in) ** 0.5, leaf.shape)
        elif name in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.normal(0, 0.2, leaf.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
