"""Small versions of architectures that are no plain classifiers of one image.

Segmentation, detection, super-resolution, diffusion, autoencoders, policies, sound,
volumes, transformers: outputs and batches are trees. Their structure, and the way their
code is put, are those of public implementations. `Architecture.network()` is the
network with drawn variables; beside it stands what must be found, worked out by hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

import jaxprune
from random_data import random_variables
from wrapped import StdConv
from zoo import channel_shuffle

CLASSES = 5
OUTPUT = "they are the network's output"
NORM = "'reduce_sum' in .*norm"


def drawer(seed=0):
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.uniform(size=shape).astype(np.float32)


IMAGES = drawer()(2, 8, 8, 3)


@dataclass(frozen=True)
class Architecture:
    """A network, and what is to be found of it.

    Attributes:
      make: returns a linen model, or a function and its parameters.
      batch: its inputs.
      groups: units of each group by name.
      whole: a pattern of the reason for each layer that is left whole, by name.
    """

    make: Callable[[], Any]
    groups: Mapping[str, int]
    whole: Mapping[str, str]
    batch: Any = field(default_factory=lambda: IMAGES, repr=False)

    def network(self) -> jaxprune.Network:
        """The network with drawn variables."""
        made = self.make()
        if isinstance(made, tuple):
            return jaxprune.Network(*made, self.batch)
        few = jax.tree.map(lambda a: a[:1], self.batch)
        return jaxprune.from_linen(made, random_variables(made, few), self.batch)


def scaled(x, factor, method):
    n, h, w, c = x.shape
    return jax.image.resize(x, (n, factor * h, factor * w, c), method)


def normed(x, width, name, **options):
    x = nn.Conv(width, (3, 3), use_bias=False, name=name, **options)(x)
    return nn.relu(nn.BatchNorm(use_running_average=True, name=f"{name}_norm")(x))


class UNet(nn.Module):
    """Ronneberger et al. 2015: what goes down is joined to what comes up again."""

    transposed: bool

    @nn.compact
    def __call__(self, x):
        skips = []
        for i, width in enumerate((4, 6)):
            x = normed(x, width, f"down{i}a")
            x = normed(x, width, f"down{i}b")
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = normed(x, 8, "bottom")
        for i, width in ((1, 6), (0, 4)):
            if self.transposed:
                x = nn.ConvTranspose(width, (2, 2), (2, 2), name=f"up{i}")(x)
            else:
                x = nn.Conv(width, (3, 3), name=f"up{i}")(scaled(x, 2, "nearest"))
            x = jnp.concatenate([skips[i], x], axis=-1)
            x = normed(x, width, f"out{i}")
        return nn.Conv(CLASSES, (1, 1), name="logits")(x)


UNET = {
    "down0a": 4, "down0b": 4, "down1a": 6, "down1b": 6, "bottom": 8, "up1": 6,
    "out1": 6, "up0": 4, "out0": 4,
}  # fmt: skip


class DeepLab(nn.Module):
    """Chen et al. 2018: dilated convolutions side by side, and a small decoder."""

    @nn.compact
    def __call__(self, x):
        size = x.shape[1:3]
        low = x = normed(x, 6, "stem", strides=2)
        x = normed(x, 8, "dilated", kernel_dilation=2)
        branches = [nn.relu(nn.Conv(4, (1, 1), name="aspp1")(x))]
        for rate in (2, 3):
            branches.append(normed(x, 4, f"aspp_rate{rate}", kernel_dilation=rate))
        pooled = nn.relu(
            nn.Conv(4, (1, 1), name="pooled")(x.mean((1, 2), keepdims=True))
        )
        branches.append(jax.image.resize(pooled, branches[0].shape, "bilinear"))
        x = nn.relu(nn.Conv(6, (1, 1), name="project")(jnp.concatenate(branches, -1)))
        low = nn.relu(nn.Conv(3, (1, 1), name="low")(low))
        x = normed(jnp.concatenate([x, low], axis=-1), 6, "decoder")
        x = jax.image.resize(x, (len(x), *size, 6), "bilinear")
        return nn.Conv(CLASSES, (1, 1), name="logits")(x)


class RetinaNet(nn.Module):
    """Lin et al. 2017: a pyramid, and heads that every level of it shares."""

    anchors: int = 2

    @nn.compact
    def __call__(self, x):
        levels = []
        for i, width in enumerate((6, 8, 10)):
            x = normed(x, width, f"stage{i}", strides=2)
            levels.append(x)
        top, pyramid = None, []
        for i in (2, 1, 0):
            lateral = nn.Conv(8, (1, 1), name=f"lateral{i}")(levels[i])
            top = lateral if top is None else lateral + scaled(top, 2, "nearest")
            pyramid.append(nn.Conv(8, (3, 3), name=f"smooth{i}")(top))
        outputs = {}
        for name, size in (("classes", CLASSES), ("boxes", 4)):
            hidden = nn.Conv(6, (3, 3), name=f"{name}_hidden")
            last = nn.Conv(self.anchors * size, (3, 3), name=f"{name}_out")
            maps = [last(nn.relu(hidden(level))) for level in pyramid]
            flat = [m.reshape(len(m), -1, size) for m in maps]
            outputs[name] = jnp.concatenate(flat, axis=1)
        return outputs


class SSD(nn.Module):
    """Liu et al. 2016: a head of its own for each level; maps as they are, in lists."""

    @nn.compact
    def __call__(self, x):
        outputs = {"classes": [], "boxes": []}
        for i, width in enumerate((6, 8)):
            x = normed(x, width, f"stage{i}", strides=2)
            outputs["classes"].append(nn.Conv(CLASSES, (3, 3), name=f"classes{i}")(x))
            outputs["boxes"].append(nn.Conv(4, (3, 3), name=f"boxes{i}")(x))
        return outputs


class MLP(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.hidden, name="up")(x))
        return nn.Dense(x.shape[-1], name="down")(y)


class DETR(nn.Module):
    """Carion et al. 2020: a transformer from a map's places to objects; post-norm."""

    @nn.compact
    def __call__(self, x):
        x = normed(x, 6, "stem", strides=4)
        x = nn.Conv(8, (1, 1), name="project")(x)
        n, h, w, c = x.shape
        init = nn.initializers.normal()
        memory = x.reshape(n, h * w, c)
        places = self.param("places", init, (h * w, c))
        y = memory + places
        y = nn.MultiHeadDotProductAttention(2, name="encoder")(y, y, memory)
        memory = nn.LayerNorm(name="encoder_norm0")(memory + y)
        memory = memory + MLP(10, name="encoder_mlp")(memory)
        memory = nn.LayerNorm(name="encoder_norm1")(memory)
        queries = self.param("queries", init, (3, c))
        queries = jnp.broadcast_to(queries, (n, 3, c))
        y = nn.MultiHeadDotProductAttention(2, name="decoder")(
            queries, memory + places, memory
        )
        y = nn.LayerNorm(name="decoder_norm")(queries + y)
        boxes = nn.relu(nn.Dense(7, name="box_hidden")(y))
        return {
            "logits": nn.Dense(CLASSES + 1, name="classes")(y),
            "boxes": nn.sigmoid(nn.Dense(4, name="boxes")(boxes)),
        }


def conv(x, kernel, strides=1, padding="SAME", **options):
    """Of plain functions: any number of positions, features last."""
    axes = "DHW"[-(kernel.ndim - 2) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(
        x, kernel, (strides,) * len(axes), padding, dimension_numbers=numbers,
        **options,
    )  # fmt: skip


def super_resolution():
    """EDSR (Lim et al. 2017) as a plain function: residual blocks, pixel shuffle."""
    drawn = drawer()
    sizes = {
        "head": (3, 6), "block0/up": (6, 8), "block0/down": (8, 6),
        "block1/up": (6, 8), "block1/down": (8, 6), "body": (6, 6),
        "shuffled": (6, 16), "out": (4, 3),
    }  # fmt: skip
    params = {name: drawn(3, 3, *size) - 0.5 for name, size in sizes.items()}

    def function(params, x):
        x = head = conv(x, params["head"])
        for i in range(2):
            y = jax.nn.relu(conv(x, params[f"block{i}/up"]))
            x = x + 0.1 * conv(y, params[f"block{i}/down"])
        x = conv(conv(x, params["body"]) + head, params["shuffled"])
        n, h, w, c = x.shape
        x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
        return conv(x.reshape(n, 2 * h, 2 * w, c // 4), params["out"])

    return function, params


class TimedBlock(nn.Module):
    """Of DDPM (Ho et al. 2020): the time is added between two convolutions."""

    width: int

    @nn.compact
    def __call__(self, x, time):
        y = nn.Conv(self.width, (3, 3), name="first")(
            nn.swish(nn.GroupNorm(2, name="norm0")(x))
        )
        y = y + nn.Dense(self.width, name="time")(nn.swish(time))[:, None, None]
        y = nn.swish(nn.GroupNorm(2, name="norm1")(y))
        y = nn.Conv(self.width, (3, 3), name="second")(y)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), name="shortcut")(x)
        return x + y


class Diffusion(nn.Module):
    """A U-Net of a noisy image and a time, which are the batch together."""

    @nn.compact
    def __call__(self, batch):
        x, steps = batch["image"], batch["time"]
        rates = 10.0 ** -jnp.arange(4.0)
        angles = steps.astype(jnp.float32)[:, None] * rates
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        time = nn.Dense(10, name="time0")(time)
        time = nn.Dense(12, name="time1")(nn.swish(time))
        x = nn.Conv(4, (3, 3), name="stem")(x)
        x = skip = TimedBlock(4, name="down")(x, time)
        x = nn.Conv(4, (3, 3), 2, name="downsample")(x)
        x = TimedBlock(8, name="middle")(x, time)
        x = self.attention(x)
        x = nn.Conv(8, (3, 3), name="upsample")(scaled(x, 2, "nearest"))
        x = TimedBlock(4, name="up")(jnp.concatenate([x, skip], axis=-1), time)
        x = nn.swish(nn.GroupNorm(2, name="norm")(x))
        return nn.Conv(3, (3, 3), name="noise")(x)

    def attention(self, x):
        """Of a single head, by 1 x 1 convolutions and the width in the code."""
        y = nn.GroupNorm(2, name="attention_norm")(x)
        q, k, v = (nn.Dense(8, name=name)(y) for name in ("query", "key", "value"))
        weights = jnp.einsum("bhwc,bHWc->bhwHW", q, k) * x.shape[-1] ** -0.5
        n, h, w, _, _ = weights.shape
        weights = nn.softmax(weights.reshape(n, h, w, h * w))
        weights = weights.reshape(n, h, w, h, w)
        y = jnp.einsum("bhwHW,bHWc->bhwc", weights, v)
        return x + nn.Dense(8, name="attention_out")(y)


class VAE(nn.Module):
    """Returns what it makes of the mean, the mean, and the variance's logarithm."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), 2, name="encoder0")(x))
        x = nn.relu(nn.Conv(6, (3, 3), 2, name="encoder1")(x))
        x = nn.relu(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        mean = nn.Dense(3, name="mean")(x)
        log_variance = nn.Dense(3, name="log_variance")(x)
        x = nn.relu(nn.Dense(2 * 2 * 6, name="decoder0")(mean))
        x = x.reshape(-1, 2, 2, 6)
        x = nn.relu(nn.ConvTranspose(4, (3, 3), (2, 2), name="decoder1")(x))
        x = nn.ConvTranspose(3, (3, 3), (2, 2), name="decoder2")(x)
        return nn.sigmoid(x), mean, log_variance


def actor_critic():
    """Mnih et al. 2016 as a plain function: a policy, and a number for each image."""
    drawn = drawer()
    params = {
        "conv0": {"w": drawn(3, 3, 3, 4), "b": drawn(4)},
        "conv1": {"w": drawn(3, 3, 4, 6), "b": drawn(6)},
        "hidden": {"w": drawn(2 * 2 * 6, 8), "b": drawn(8)},
        "policy": {"w": drawn(8, CLASSES)},
        "value": {"w": drawn(8, 1)},
    }

    def function(params, x):
        for name in ("conv0", "conv1"):
            layer = params[name]
            x = jax.nn.relu(conv(x - 0.5, layer["w"], 2) + layer["b"] - 1)
        layer = params["hidden"]
        x = jax.nn.relu(x.reshape(len(x), -1) @ layer["w"] / 8 + layer["b"])
        return x @ params["policy"]["w"], (x @ params["value"]["w"])[..., 0]

    return function, params


class WaveNet(nn.Module):
    """Van den Oord et al. 2016: causal, dilated, gated; residual and skip sums."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (2,), padding="CAUSAL", name="stem")(x)
        total = 0.0
        for i, rate in enumerate((1, 2)):
            y = nn.Conv(
                8, (2,), padding="CAUSAL", kernel_dilation=rate, name=f"gated{i}"
            )(x)
            left, right = jnp.split(y, 2, axis=-1)
            y = jnp.tanh(left) * nn.sigmoid(right)
            total = total + nn.Conv(5, (1,), name=f"skip{i}")(y)
            x = x + nn.Conv(6, (1,), name=f"residual{i}")(y)
        x = nn.relu(nn.Conv(7, (1,), name="after")(nn.relu(total)))
        return nn.Dense(CLASSES, name="classes")(x.mean(1))


class Volume(nn.Module):
    """C3D (Tran et al. 2015): convolutions over time too."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3, 3), name="conv0")(x))
        x = nn.max_pool(x, (1, 2, 2), (1, 2, 2))
        x = nn.relu(nn.Conv(6, (3, 3, 3), (2, 2, 2), name="conv1")(x))
        x = x.mean((1, 2, 3))
        return nn.Dense(CLASSES, name="classes")(x)


class FusedAttention(nn.Module):
    """As timm has it: one kernel for query, key and value of all heads."""

    heads: int = 2

    @nn.compact
    def __call__(self, x):
        n, t, c = x.shape
        qkv = nn.Dense(3 * c, name="qkv")(x)
        qkv = qkv.reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        weights = nn.softmax(q @ k.swapaxes(-2, -1) * (c // self.heads) ** -0.5)
        y = (weights @ v).transpose(0, 2, 1, 3).reshape(n, t, c)
        return nn.Dense(c, name="out")(y)


class ViT(nn.Module):
    """Dosovitskiy et al. 2021; pre-norm."""

    attention: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, 8)
        first = self.param("cls", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, 8)), x], axis=1)
        x = x + self.param("places", nn.initializers.normal(), (1, x.shape[1], 8))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm{i}a")(x)
            x = x + self.attention(name=f"attention{i}")(y)
            x = x + MLP(12, name=f"mlp{i}")(nn.LayerNorm(name=f"norm{i}b")(x))
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(CLASSES, name="classes")(x[:, 0])


class Swin(nn.Module):
    """Liu et al. 2021: attention in windows, shifted, with a table of places."""

    window: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (2, 2), (2, 2), name="patches")(x)
        for i, shift in enumerate((0, 1)):
            y = nn.LayerNorm(name=f"norm{i}a")(x)
            y = jnp.roll(y, (-shift, -shift), (1, 2))
            y = jnp.roll(self.attention(y, i), (shift, shift), (1, 2))
            x = x + y
            x = x + MLP(12, name=f"mlp{i}")(nn.LayerNorm(name=f"norm{i}b")(x))
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = nn.LayerNorm(name="merging_norm")(jnp.concatenate(parts, axis=-1))
        x = nn.Dense(10, use_bias=False, name="merging")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(CLASSES, name="classes")(x.mean((1, 2)))

    def attention(self, x, i):
        n, h, w, c = x.shape
        size, heads = self.window, 2
        x = x.reshape(n, h // size, size, w // size, size, c)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)
        qkv = nn.Dense(3 * c, name=f"qkv{i}")(x)
        qkv = qkv.reshape(len(x), size * size, 3, heads, c // heads)
        q, k, v = (qkv[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
        weights = (q * (c // heads) ** -0.5) @ k.transpose(0, 1, 3, 2)
        table = self.param(
            f"table{i}", nn.initializers.normal(), ((2 * size - 1) ** 2, heads)
        )
        places = np.stack(np.mgrid[:size, :size]).reshape(2, -1)
        apart = places[:, :, None] - places[:, None] + size - 1
        index = (apart[0] * (2 * size - 1) + apart[1]).reshape(-1)
        bias = table[index].reshape(size * size, size * size, heads)
        weights = nn.softmax(weights + bias.transpose(2, 0, 1)[None])
        x = (weights @ v).transpose(0, 2, 1, 3).reshape(len(x), size * size, c)
        x = nn.Dense(c, name=f"out{i}")(x)
        x = x.reshape(n, h // size, w // size, size, size, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


class Mixer(nn.Module):
    """Tolstikhin et al. 2021: a network over places, one over channels, in turns."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (2, 2), (2, 2), name="stem")(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        for i in range(2):
            y = nn.LayerNorm(name=f"norm{i}a")(x).swapaxes(1, 2)
            x = x + MLP(6, name=f"places{i}")(y).swapaxes(1, 2)
            y = nn.LayerNorm(name=f"norm{i}b")(x)
            x = x + MLP(10, name=f"channels{i}")(y)
        x = nn.LayerNorm(name="norm")(x).mean(1)
        return nn.Dense(CLASSES, name="classes")(x)


class BiT(nn.Module):
    """Kolesnikov et al. 2020: ResNet v2, GroupNorm, standardised kernels."""

    @nn.compact
    def __call__(self, x):
        x = StdConv(8, (3, 3), use_bias=False, name="stem")(x)
        for i, strides in enumerate((1, 2)):
            y = nn.relu(nn.GroupNorm(4, name=f"norm{i}a")(x))
            if i == 0:
                x = StdConv(16, (1, 1), use_bias=False, name="shortcut")(y)
            elif strides > 1:
                x = nn.max_pool(x, (1, 1), (2, 2))
            y = StdConv(8, (1, 1), use_bias=False, name=f"reduce{i}")(y)
            y = nn.relu(nn.GroupNorm(4, name=f"norm{i}b")(y))
            y = StdConv(8, (3, 3), strides, use_bias=False, name=f"middle{i}")(y)
            y = nn.relu(nn.GroupNorm(4, name=f"norm{i}c")(y))
            x = x + StdConv(16, (1, 1), use_bias=False, name=f"expand{i}")(y)
        x = nn.relu(nn.GroupNorm(4, name="norm")(x)).mean((1, 2))
        return nn.Dense(CLASSES, name="classes")(x)


class Siamese(nn.Module):
    """One encoder of two images."""

    def setup(self):
        self.conv0, self.conv1 = nn.Conv(4, (3, 3), 2), nn.Conv(6, (3, 3), 2)
        self.embed, self.score = nn.Dense(8), nn.Dense(1)

    def encode(self, x):
        x = nn.relu(self.conv1(nn.relu(self.conv0(x))))
        return self.embed(x.mean((1, 2)))

    def __call__(self, pair):
        left, right = map(self.encode, pair)
        return self.score(jnp.abs(left - right))


class Stacked(nn.Module):
    """Blocks of a transformer as one scan, whose kernels are stacks."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                y = nn.RMSNorm(name="norm0")(x)
                x = x + nn.MultiHeadDotProductAttention(2, name="heads")(y)
                gate, up = jnp.split(
                    nn.Dense(12, name="gated")(nn.RMSNorm(name="norm1")(x)), 2, -1
                )
                return x + nn.Dense(8, name="down")(nn.silu(gate) * up), None

        x = nn.Conv(8, (4, 4), (4, 4), name="patches")(x).reshape(len(x), -1, 8)
        blocks = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(CLASSES, name="classes")(x.mean(1))


class Members(nn.Module):
    """Several networks, their kernels stacked, each with a classifier of its own."""

    @nn.compact
    def __call__(self, x):
        class Member(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.relu(nn.Conv(4, (3, 3), 2, name="conv0")(x))
                x = nn.relu(nn.Conv(6, (3, 3), 2, name="conv1")(x))
                x = nn.relu(nn.Dense(7, name="hidden")(x.reshape(len(x), -1)))
                return nn.Dense(CLASSES, name="classes")(x)

        several = nn.vmap(
            Member, {"params": 0}, split_rngs={"params": True}, in_axes=None,
            out_axes=1, axis_size=3,
        )  # fmt: skip
        return several(name="members")(x)


class Shuffled(nn.Module):
    """ShuffleNet v1 (Zhang et al. 2018): grouped convolutions, channels in turns."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), 2, name="stem")(x))
        x = nn.relu(nn.Conv(8, (1, 1), name="mixed")(x))
        x = channel_shuffle(x)
        x = nn.relu(nn.Conv(6, (3, 3), name="last")(x))
        return nn.Dense(CLASSES, name="classes")(x.mean((1, 2)))


def widths_in_the_code():
    """A root of a width, a reshape to numbers, a depthwise convolution by hand."""
    drawn = drawer()
    params = {
        "first": drawn(3, 3, 3, 8),
        "depthwise": drawn(3, 3, 8),
        "second": drawn(1, 1, 8, 6),
        "hidden": drawn(4 * 4 * 6, 9),
        "out": drawn(9, CLASSES),
    }

    def function(params, x):
        x = jax.nn.relu(conv(x - 0.5, params["first"], 2))
        x = x / x.shape[-1] ** 0.5
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = sum(
            padded[:, i : i + 4, j : j + 4] * params["depthwise"][i, j]
            for i in range(3)
            for j in range(3)
        )
        x = jax.nn.relu(conv(x, params["second"] - 0.5))
        x = jax.nn.relu(jnp.reshape(x, (-1, 4 * 4 * 6)) @ (params["hidden"] - 0.5))
        return x @ params["out"]

    return function, params


def of_heads(name):
    """Groups of nn.MultiHeadDotProductAttention: heads, and dimensions of each."""
    return {name: 2, f"{name}[2]": 4, name.replace("query", "value"): 4}


def several(reason, *names):
    return dict.fromkeys(names, reason)


MULTI_HEAD = partial(nn.MultiHeadDotProductAttention, 2)
TIMED = {"image": IMAGES, "time": np.array([3, 70], np.int32)}
ARCHITECTURES = {
    "unet": Architecture(partial(UNet, True), UNET, {"logits": OUTPUT}),
    "unet_resized": Architecture(partial(UNet, False), UNET, {"logits": OUTPUT}),
    "deeplab": Architecture(
        DeepLab,
        {
            "stem": 6, "dilated": 8, "aspp1": 4, "aspp_rate2": 4, "aspp_rate3": 4,
            "pooled": 4, "project": 6, "low": 3, "decoder": 6,
        },
        {"logits": OUTPUT},
    ),
    "retinanet": Architecture(
        RetinaNet,
        {
            "stage0": 6, "stage1": 8, "stage2": 10, "lateral2": 8, "smooth2": 8,
            "classes_hidden": 6, "boxes_hidden": 6,
        },
        several(OUTPUT, *(
            f"{head}_out{call}"
            for head in ("classes", "boxes") for call in ("", "#2", "#3")
        )),
        drawer()(2, 16, 16, 3),
    ),
    "ssd": Architecture(
        SSD,
        {"stage0": 6, "stage1": 8},
        several(OUTPUT, "classes0", "boxes0", "classes1", "boxes1"),
    ),
    # The queries do not depend on the image: as the kernel of the keys they are a
    # layer, and its channels are the places of objects.
    "detr": Architecture(
        DETR,
        {
            "stem": 6, **of_heads("encoder/query"), "encoder_mlp/up": 10,
            "decoder/key": 2, "decoder/key[2]": 4, "decoder/value": 4, "box_hidden": 7,
        },
        {
            **several(NORM, "project", "encoder/out", "encoder_mlp/down"),
            "decoder/out": NORM,
            **several(OUTPUT, "decoder/query", "classes", "boxes"),
        },
    ),
    "super_resolution": Architecture(
        super_resolution,
        {"head": 6, "block0": 8, "block1": 8, "shuffled": 4},
        {"out": OUTPUT},
    ),
    # Units of those that meet in a GroupNorm of two groups: its groups.
    "diffusion": Architecture(
        Diffusion,
        {
            "time0": 10, "time1": 12, "stem": 2, "down/first": 2, "downsample": 2,
            "middle/first": 2, "middle/second": 2, "query": 8, "value": 8,
            "up/first": 2, "up/second": 2,
        },
        {"noise": OUTPUT},
        TIMED,
    ),
    "vae": Architecture(
        VAE,
        {"encoder0": 4, "encoder1": 6, "hidden": 8, "decoder0": 6, "decoder1": 4},
        several(OUTPUT, "mean", "log_variance", "decoder2"),
    ),
    "actor_critic": Architecture(
        actor_critic,
        {"conv0": 4, "conv1": 6, "hidden": 8},
        {"policy": OUTPUT, "value": "'squeeze' .* by its position"},
    ),
    "wavenet": Architecture(
        WaveNet,
        {"stem": 6, "gated0": 4, "skip0": 5, "gated1": 4, "after": 7},
        {"classes": OUTPUT},
        drawer()(2, 16, 1),
    ),
    "volume": Architecture(
        Volume, {"conv0": 4, "conv1": 6}, {"classes": OUTPUT}, drawer()(2, 4, 8, 8, 1)
    ),
    "vit": Architecture(
        partial(ViT, MULTI_HEAD),
        {
            **of_heads("attention0/query"), "mlp0/up": 12,
            **of_heads("attention1/query"), "mlp1/up": 12,
        },
        {
            **several(NORM, "patches", "attention0/out", "mlp0/down"),
            **several(NORM, "attention1/out", "mlp1/down"), "classes": OUTPUT,
        },
    ),
    "vit_fused": Architecture(
        partial(ViT, FusedAttention),
        {"attention0/qkv": 2, "mlp0/up": 12, "attention1/qkv": 2, "mlp1/up": 12},
        {
            **several(NORM, "patches", "attention0/out", "mlp0/down"),
            **several(NORM, "attention1/out", "mlp1/down"), "classes": OUTPUT,
        },
    ),
    "swin": Architecture(
        Swin,
        {"qkv0": 2, "mlp0/up": 12, "qkv1": 2, "mlp1/up": 12},
        {
            **several(NORM, "patches", "out0", "mlp0/down", "out1", "mlp1/down"),
            "merging": NORM,
            "classes": OUTPUT,
        },
    ),
    "mixer": Architecture(
        Mixer,
        {"places0/up": 6, "channels0/up": 10, "places1/up": 6, "channels1/up": 10},
        {
            **several(NORM, "stem", "channels0/down", "channels1/down"),
            **several("with the input or positions", "places0/down", "places1/down"),
            "classes": OUTPUT,
        },
    ),
    "bit": Architecture(
        BiT,
        {
            "stem": 4, "shortcut": 4, "reduce0": 4, "middle0": 4, "reduce1": 4,
            "middle1": 4,
        },
        {"classes": OUTPUT},
    ),
    "siamese": Architecture(
        Siamese,
        {"conv0": 4, "conv1": 6, "embed": 8},
        {"score": OUTPUT},
        (IMAGES, IMAGES[::-1].copy()),
    ),
    "stacked": Architecture(
        Stacked,
        {**of_heads("blocks/heads/query"), "blocks/gated": 6},
        {
            **several(NORM, "patches", "blocks/heads/out", "blocks/down"),
            "classes": OUTPUT,
        },
    ),
    "members": Architecture(
        Members,
        {"members/conv0": 4, "members/conv1": 6, "members/hidden": 7},
        {"members/classes": OUTPUT},
    ),
    "shuffled": Architecture(
        Shuffled, {"stem": 8, "mixed": 8, "last": 6}, {"classes": OUTPUT}
    ),
    "widths_in_the_code": Architecture(
        widths_in_the_code, {"first": 8, "second": 6, "hidden": 9}, {"out": OUTPUT}
    ),
}  # fmt: skip
