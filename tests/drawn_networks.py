"""Networks drawn from the block kinds of `zoo`: `draw_network(rng)`."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn

import zoo


class Drawn(nn.Module):
    """Blocks, each a function of (x, train) that calls its modules, and a classifier.

    Attributes:
      blocks: in order.
      hidden: units of a dense layer in front of the last; 0 for none.
      flatten: the map's positions are kept, not averaged.
    """

    blocks: tuple[Callable, ...]
    hidden: int
    flatten: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.max_pool(x, (2, 2), (2, 2))
        for block in self.blocks:
            x = block(x, train)
        x = x.reshape(len(x), -1) if self.flatten else x.mean((1, 2))
        if self.hidden:
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(2)(x)


def residual(x, train, *, block, filters, strides, group_norm):
    conv = partial(nn.Conv, use_bias=False)
    norm = partial(nn.BatchNorm, use_running_average=not train)
    if group_norm:
        norm = partial(nn.GroupNorm, num_groups=2)
    return block(filters, conv, norm, (strides, strides))(x)


def plain(x, train, *, filters, kernel, strides, padding, act):
    return act(nn.Conv(filters, (kernel, kernel), strides, padding=padding)(x))


def dense_layers(x, train, *, growth_rate, count):
    for _ in range(count):
        x = zoo.DenseLayer(growth_rate)(x, train)
    return x


def pool(x, train, *, kind):
    return kind(x, (2, 2), strides=(2, 2), padding="SAME")


def module(x, train, *, make):
    return make()(x, train)


def without_train(x, train, *, make):
    return make()(x)


def grouped(x, train, *, make, filters):
    """In front of it a convolution to a number of channels that groups divide."""
    return make()(zoo.ConvNorm(filters, 1)(x, train), train)


def mobile(x, train, *, filters):
    """With a sum where no filters are given; else the resolution halves."""
    features = x.shape[-1]
    block = zoo.MBConv(features, filters or features, strides=2 if filters else 1)
    return block(x, train)


def draw_block(rng):
    """One of the zoo's blocks, its widths, groups, strides and activation drawn."""
    width, strides = int(rng.integers(2, 9)), int(rng.integers(1, 3))
    even = 2 * width
    act = (nn.relu, nn.swish, nn.hard_swish, nn.gelu)[rng.integers(4)]
    kinds = {
        "conv": partial(
            plain, filters=width, kernel=int(rng.integers(1, 4)), strides=strides,
            padding=("SAME", "VALID", "CIRCULAR", 1)[rng.integers(4)], act=act,
        ),
        "conv_norm": partial(
            module, make=partial(zoo.ConvNorm, width, 3, strides, act=act)
        ),
        "pool": partial(pool, kind=(nn.max_pool, zoo.avg_pool)[rng.integers(2)]),
        "basic": partial(
            residual, block=(zoo.BasicBlock, zoo.SEBlock)[rng.integers(2)],
            filters=even, strides=strides, group_norm=bool(rng.integers(2)),
        ),
        "bottleneck": partial(
            residual,
            block=(
                partial(zoo.BottleneckBlock, expansion=2),
                partial(zoo.ResNeXtBlock, groups=2),
                partial(zoo.RegNetYBlock, groups=2),
            )[rng.integers(3)],
            filters=even, strides=strides, group_norm=bool(rng.integers(2)),
        ),
        "preact": partial(module, make=partial(zoo.PreActBlock, width, (strides,) * 2)),
        "dense": partial(
            dense_layers, growth_rate=int(rng.integers(2, 5)),
            count=int(rng.integers(1, 3)),
        ),
        "inception": partial(
            module, make=partial(
                zoo.InceptionBlock, b1=width, b3=(3, 4), b5=(2, width), pool=3
            ),
        ),
        "fire": partial(without_train, make=partial(zoo.Fire, width, even)),
        "inverted": partial(
            module, make=partial(
                zoo.InvertedResidual, width, strides, int(rng.integers(1, 3))
            ),
        ),
        "bneck": partial(
            module, make=partial(
                zoo.Bneck, 3, even, width, (None, 3)[rng.integers(2)], act, strides
            ),
        ),
        "mbconv": partial(mobile, filters=(0, width)[rng.integers(2)]),
        "grouped": partial(
            grouped, filters=even,
            make=partial(zoo.ConvNorm, even, 3, strides, groups=2, act=act),
        ),
        "convnext": partial(without_train, make=zoo.ConvNeXtBlock),
        "shuffle": partial(
            grouped, filters=4 * (width // 2),
            make=partial(zoo.ShuffleUnit, 4 * (width // 2), strides),
        ),
    }  # fmt: skip
    name = list(kinds)[rng.integers(len(kinds))]
    return name, kinds[name]


def draw_network(rng):
    """One to three blocks behind a convolution; the kinds' names, and the network."""
    drawn = [draw_block(rng) for _ in range(rng.integers(1, 4))]
    stem = partial(module, make=partial(zoo.ConvNorm, int(rng.integers(2, 9))))
    model = Drawn(
        blocks=(stem, *(block for _, block in drawn)),
        hidden=int(rng.integers(0, 2) * rng.integers(3, 9)),
        flatten=bool(rng.integers(2)),
    )
    return [name for name, _ in drawn], model
