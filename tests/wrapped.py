"""Networks written with the rest of Flax and of JAX: wrappers, odd layers, odd axes.

Images are those of the zoo, and every model is called as those are. Beside each stands
what must be found, worked out by hand: its groups, with their units, and the layers
that are left whole, with a pattern of the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from random_data import random_variables
from zoo import CLASSES, EXAMPLE_SHAPE, BasicBlock, ConvNorm, avg_pool

OUTPUT = "they are the network's output"


@dataclass(frozen=True)
class Wrapped:
    """A network, and what is to be found of it.

    Attributes:
      make: returns the model.
      groups: units of each group by name.
      whole: a pattern of the reason for each layer that is left whole, by name; of the
        classifier no more than its name, "out".
      variables: what becomes of the variables that are drawn.
    """

    make: Callable[[], nn.Module]
    groups: Mapping[str, int]
    whole: Mapping[str, str] = field(default_factory=dict)
    variables: Callable[[Any], Any] = lambda variables: variables

    def build(self) -> tuple[nn.Module, Any]:
        """The model, and its variables."""
        model = self.make()
        drawn = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
        return model, self.variables(drawn)


class Between(nn.Module):
    """A convolution, what is tried, another convolution, and the classifier."""

    tried: Callable[..., Any]

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2), name="first")(x))
        x = self.tried(x, train)
        x = nn.relu(nn.Conv(6, (3, 3), name="last")(x))
        return nn.Dense(CLASSES, name="out")(x.mean((1, 2)))


def between(tried, groups, whole=None, **rest):
    return Wrapped(partial(Between, tried), groups, whole or {}, **rest)


class Residual(nn.Module):
    """A block whose arguments are arrays alone, as lifted transforms have them."""

    @nn.compact
    def __call__(self, x):
        norm = partial(nn.BatchNorm, use_running_average=True)
        return BasicBlock(8, partial(nn.Conv, use_bias=False), norm)(x)


def scanned(x, train):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.relu(nn.Conv(8, (3, 3), name="up")(x))
            return x + nn.Conv(8, (3, 3), name="down")(y), None

    # The initialiser of each step's kernels is drawn by itself.
    steps = nn.scan(Step, {"params": 0}, split_rngs={"params": True}, length=3)
    return steps(name="steps")(x, None)[0]


def heads(x, train):
    """Three convolutions of the same maps, each with kernels of its own, added up."""
    several = nn.vmap(
        nn.Conv, {"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
    )
    return several(8, (1, 1), name="heads")(x).sum(0)


class StdConv(nn.Conv):
    """A convolution whose kernel is standardised, as in Big Transfer."""

    def param(self, name, *args, **kwargs):
        param = super().param(name, *args, **kwargs)
        if name == "kernel":
            axes = tuple(range(param.ndim - 1))
            param = param - param.mean(axes)
            param = param / jnp.sqrt(param.var(axes) + 1e-5)
        return param


class ConvRelu(nn.Conv):
    """A convolution that comes with its activation."""

    def __call__(self, x):
        return nn.relu(super().__call__(x))


def weight_norm(x, train):
    return nn.relu(nn.WeightNorm(nn.Conv(8, (3, 3), name="inner"), name="normed")(x))


def spectral_norm(x, train):
    normed = nn.SpectralNorm(nn.Conv(8, (3, 3), name="inner"), name="normed")
    return nn.relu(normed(x, update_stats=False))


def partitioned(x, train):
    init = nn.initializers.lecun_normal()
    boxed = nn.with_partitioning(init, (None, None, None, "model"))
    return nn.relu(nn.Conv(8, (3, 3), kernel_init=boxed, name="boxed")(x))


class ReZero(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        y = nn.PReLU(name="slope")(nn.Conv(12, (3, 3), name="up")(x))
        y = nn.Conv(8, (3, 3), name="down")(y)
        return x + self.param("alpha", nn.initializers.ones, ()) * y


def tied(x, train):
    conv = nn.Conv(8, (3, 3), name="shared")
    return nn.relu(conv(nn.relu(conv(x))))


def transposed(x, train):
    x = nn.relu(nn.ConvTranspose(10, (2, 2), (2, 2), name="up")(x))
    return nn.max_pool(x, (2, 2), (2, 2))


def dense_general(x, train):
    x = nn.DenseGeneral((2, 5), name="split")(x)
    return nn.relu(nn.DenseGeneral(8, axis=(-2, -1), name="joined")(nn.relu(x)))


def dense_einsum(x, train):
    return nn.relu(nn.Einsum((8, 10), "nhwc,cd->nhwd", name="product")(x))


def attention(x, train):
    """Of the pixels to one another, two heads of four features."""
    n, h, w, c = x.shape
    y = nn.MultiHeadDotProductAttention(2, name="heads")(x.reshape(n, h * w, c))
    return x + y.reshape(n, h, w, c)


def local(x, train):
    return nn.relu(nn.ConvLocal(8, (3, 3), name="local")(x))


def line(x, train):
    """The pixels as a sequence."""
    y = nn.relu(nn.Conv(10, (3,), name="line")(x.reshape(len(x), -1, 8)))
    return y.reshape((*x.shape[:-1], 10))


def volume(x, train):
    """The rows as another axis of space."""
    y = nn.relu(nn.Conv(10, (1, 3, 3), name="volume")(x[:, None]))
    return y[:, 0]


def resized(method):
    def resize(x, train):
        shape = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
        return avg_pool(jax.image.resize(x, shape, method), (2, 2), (2, 2))

    return resize


def pixel_shuffle(x, train):
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


def chunked(x, train):
    left, right = jnp.split(x, 2, axis=-1)
    return left * jnp.tanh(right)


def glu(x, train):
    return nn.glu(nn.Conv(12, (3, 3), name="both")(x))


def instance_norm(x, train):
    return nn.relu(nn.InstanceNorm(name="norm")(nn.Conv(8, (3, 3), name="mid")(x)))


def pooled_by_hand(x, train):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def sorted_maps(x, train):
    return x[..., jnp.argsort(-x.mean((0, 1, 2)))]


class FirstDimensions(nn.Module):
    """Channels before pixels where it flattens, as weights from PyTorch need it."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2), name="first")(x))
        x = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="last")(x))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return nn.Dense(CLASSES, name="out")(x)


class Remat(nn.Module):
    """A block of the zoo, rematerialised, with an argument that is no array."""

    @nn.compact
    def __call__(self, x, train):
        return nn.remat(ConvNorm, static_argnums=(2,))(8, name="block")(x, train)


PLAIN = {"first": 8, "last": 6}
RESIDUAL = {"first": 8, "block/BasicBlock_0/Conv_0": 8, "last": 6}
WRAPPED = {
    "remat": between(
        lambda x, train: Remat()(x, train), {**PLAIN, "Remat_0/block/Conv_0": 8}
    ),
    "jit": between(lambda x, train: nn.jit(Residual)(name="block")(x), RESIDUAL),
    "remat residual": between(
        lambda x, train: nn.checkpoint(Residual)(name="block")(x), RESIDUAL
    ),
    "scan": between(scanned, {**PLAIN, "steps/up": 8}),
    "vmap": between(heads, {**PLAIN, "heads": 8}),
    "weight norm": between(weight_norm, {**PLAIN, "inner": 8}),
    "spectral norm": between(spectral_norm, {**PLAIN, "inner": 8}),
    "standardised": between(
        lambda x, train: nn.relu(StdConv(8, (3, 3), name="mid")(x)),
        {**PLAIN, "mid": 8},
    ),
    "partitioned": between(partitioned, {**PLAIN, "boxed": 8}),
    "frozen": between(
        lambda x, train: nn.relu(nn.Conv(10, (3, 3), name="mid")(x)),
        {**PLAIN, "mid": 10},
        variables=flax.core.freeze,
    ),
    "scalars": between(
        lambda x, train: ReZero()(x, train), {**PLAIN, "ReZero_0/up": 12}
    ),
    "subclass": between(
        lambda x, train: ConvRelu(10, (3, 3), name="mid")(x), {**PLAIN, "mid": 10}
    ),
    "tied": between(tied, PLAIN),
    "transposed": between(transposed, {**PLAIN, "up": 10}),
    "dense general": between(
        dense_general, {**PLAIN, "split": 2, "split[2]": 5, "joined": 8}
    ),
    "einsum": between(dense_einsum, {**PLAIN, "product": 10}),
    "attention": between(
        attention,
        {**PLAIN, "heads/query": 2, "heads/query[2]": 4, "heads/value": 4},
    ),
    "local": between(
        local,
        {"local": 8, "last": 6},
        {"first": "'conv_general_dilated' in Between/local .* ties them all together"},
    ),
    "one axis": between(line, {**PLAIN, "line": 10}),
    "three axes": between(volume, {**PLAIN, "volume": 10}),
    "nearest": between(resized("nearest"), PLAIN),
    "bilinear": between(resized("bilinear"), PLAIN),
    "roll": between(lambda x, train: jnp.roll(x, 2, -1), PLAIN),
    "pixel shuffle": between(pixel_shuffle, {"first": 2, "last": 6}),
    "channels first": Wrapped(FirstDimensions, PLAIN),
    "chunk": between(chunked, {"first": 4, "last": 6}),
    "repeat": between(lambda x, train: jnp.repeat(x, 2, axis=-1), PLAIN),
    "tile": between(lambda x, train: jnp.tile(x, (1, 1, 1, 2)), PLAIN),
    "instance norm": between(instance_norm, {**PLAIN, "mid": 8}),
    "glu": between(glu, {**PLAIN, "both": 6}),
    "pooled by hand": between(pooled_by_hand, PLAIN),
    "sorted": between(
        sorted_maps,
        {"last": 6},
        {"first": r"'sort' in Between \(wrapped.py:\d+\) joins them"},
    ),
}
