"""A U-Net that finds discs, squares and crosses in noise.

    python -m examples.unet_shapes
    data=runs/unet_shapes/shapes.npz
    jaxprune sweep --model=examples.unet_shapes:build --data=$data --task=segmentation
    jaxprune shrink --model=examples.unet_shapes:build --speedup=2

The images are drawn by a seed, so that the right answer is known at every pixel. The
first command takes some three minutes on two CPU cores.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

FOLDER = Path("runs/unet_shapes")
SIDE, CLASSES = 48, 4  # the ground, discs, squares, crosses
TRAIN, TEST = 4096, 1024
EPOCHS, BATCH, RATE = 6, 32, 2e-3


class Block(nn.Module):
    """Twice convolution, BatchNorm, ReLU."""

    channels: int

    @nn.compact
    def __call__(self, x, train):
        for i in range(2):
            x = nn.Conv(self.channels, (3, 3), use_bias=False, name=f"conv{i}")(x)
            x = nn.BatchNorm(not train, momentum=0.9, name=f"bn{i}")(x)
            x = nn.relu(x)
        return x


class UNet(nn.Module):
    """Three levels; what goes down is joined to what comes up."""

    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x, train=False):
        passed = []
        for i, width in enumerate(self.widths[:-1]):
            x = Block(width, name=f"down{i}")(x, train)
            passed.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = Block(self.widths[-1], name="bottom")(x, train)
        for i, width in reversed([*enumerate(self.widths[:-1])]):
            x = nn.ConvTranspose(width, (2, 2), (2, 2), name=f"rise{i}")(x)
            x = Block(width, name=f"up{i}")(jnp.concatenate([x, passed[i]], -1), train)
        return nn.Conv(CLASSES, (1, 1), name="classes")(x)


def draw(count, seed):
    """Images [N, side, side, 1] of two to four shapes, and the classes of pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    images = rng.normal(0, 0.7, (count, SIDE, SIDE)).astype(np.float32)
    classes = np.zeros((count, SIDE, SIDE), np.uint8)
    for image, target in zip(images, classes, strict=True):
        for _ in range(rng.integers(2, 5)):
            kind, size = rng.integers(1, CLASSES), rng.uniform(4, 9)
            dy, dx = y - rng.uniform(5, SIDE - 5), x - rng.uniform(5, SIDE - 5)
            far, near = np.maximum(abs(dy), abs(dx)), np.minimum(abs(dy), abs(dx))
            inside = {
                1: np.hypot(dy, dx) < size,
                2: far < 0.85 * size,
                3: (far < size) & (near < 0.35 * size),
            }[int(kind)]
            image[inside] += rng.uniform(0.8, 1.2)
            target[inside] = kind
    return images[..., None], classes


def build():
    """What `--model` names: the model, its variables, an example, call arguments."""
    flat = load_file(FOLDER / "weights.safetensors")
    variables = unflatten_dict(flat, sep="/")
    return UNet(), variables, np.zeros((1, SIDE, SIDE, 1), np.float32), {}


def main():
    """Draws the images, trains, and writes both to FOLDER."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    images, targets = draw(TRAIN, seed=0)
    test = dict(zip(("images", "targets"), draw(TEST, seed=1), strict=True))
    np.savez(FOLDER / "shapes.npz", train_images=images, train_targets=targets, **test)
    model, steps = UNet(), EPOCHS * TRAIN // BATCH
    variables = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    state = optimizer.init(variables["params"])

    def loss(params, stats, x, y):
        logits, changed = model.apply(
            {"params": params, "batch_stats": stats}, x, train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return entropy.mean(), changed["batch_stats"]

    @jax.jit
    def step(params, stats, state, x, y):
        grad = jax.value_and_grad(loss, has_aux=True)
        (value, stats), gradients = grad(params, stats, x, y.astype(jnp.int32))
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), stats, state, value

    params, stats = variables["params"], variables["batch_stats"]
    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        for index in rng.permutation(TRAIN).reshape(-1, BATCH):
            batch = images[index], targets[index]
            params, stats, state, value = step(params, stats, state, *batch)
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {float(value):.4f}", flush=True)
    flat = flatten_dict({"params": params, "batch_stats": stats}, sep="/")
    save_file(jax.tree.map(np.array, flat), FOLDER / "weights.safetensors")


if __name__ == "__main__":
    main()
