r"""A small vision transformer on CIFAR-10.

    python -m examples.vit_cifar
    jaxprune sweep --model=examples.vit_cifar:build --data=cifar10 \
        --pixel_mean=127 --pixel_std=128 --layer=block2/expand
    jaxprune shrink --model=examples.vit_cifar:build --speedup=2

Five epochs, some fifteen minutes on two CPU cores: what it is for is whole heads,
dimensions of heads and widths of MLPs that go, not the accuracy of transformers.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxprune.data.datasets import load
from jaxprune.training.augmentation import crop_and_flip

FOLDER = Path("runs/vit_cifar")
PATCH, WIDTH, DEPTH, HEADS, CLASSES = 4, 96, 4, 4, 10
EPOCHS, BATCH, RATE = 5, 64, 1e-3


class Block(nn.Module):
    """Attention, then an MLP, each added to the stream."""

    @nn.compact
    def __call__(self, x):
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention")
        x = x + attention(nn.LayerNorm(name="norm0")(x))
        h = nn.Dense(4 * WIDTH, name="expand")(nn.LayerNorm(name="norm1")(x))
        return x + nn.Dense(WIDTH, name="project")(nn.gelu(h))


class ViT(nn.Module):
    """Patches, positions, blocks, the mean over patches."""

    @nn.compact
    def __call__(self, x):
        size = (PATCH, PATCH)
        x = nn.Conv(WIDTH, size, size, "VALID", name="patches")(x)
        x = x.reshape(len(x), -1, WIDTH)
        init = nn.initializers.normal(0.02)
        x = x + self.param("positions", init, (1, *x.shape[1:]))
        for i in range(DEPTH):
            x = Block(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x).mean(1)
        return nn.Dense(CLASSES, name="classes")(x)


def build():
    """What `--model` names: the model, its variables, an example, call arguments."""
    flat = load_file(FOLDER / "weights.safetensors")
    return (
        ViT(),
        unflatten_dict(flat, sep="/"),
        np.zeros((1, 32, 32, 3), np.float32),
        {},
    )


def scaled(images):
    """Pixels -> what the network takes."""
    return (images.astype(jnp.float32) - 127) / 128


def main():
    """Trains, and writes the weights to FOLDER."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    train = load("cifar10", data_dir=os.environ.get("JAXPRUNE_DATA_DIR"))["train"]
    images, labels = train.images, train.labels
    model, steps = ViT(), EPOCHS * (len(images) // BATCH)
    params = model.init(jax.random.key(0), scaled(images[:1]))["params"]
    schedule = optax.warmup_cosine_decay_schedule(0, RATE, 200, steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05)
    )
    state = optimizer.init(params)

    def loss(params, key, x, y):
        logits = model.apply({"params": params}, scaled(crop_and_flip(key, x)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, key, x, y):
        grad = jax.value_and_grad(loss)
        value, gradients = grad(params, key, x, y.astype(jnp.int32))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        losses = []
        order = rng.permutation(len(images))[: steps // EPOCHS * BATCH]
        for index in order.reshape(-1, BATCH):
            key = jax.random.fold_in(jax.random.key(epoch), len(losses))
            batch = images[index], labels[index]
            params, state, value = step(params, state, key, *batch)
            losses.append(value)
        mean = float(np.mean(jax.device_get(losses)))
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {mean:.4f}", flush=True)
    flat = flatten_dict({"params": params}, sep="/")
    save_file(jax.tree.map(np.array, flat), FOLDER / "weights.safetensors")


if __name__ == "__main__":
    main()
